"""Reads the bodies of providers' replies, valid or not: text, usage and error details."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.json_text import is_deeper

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ErrorDetails",
    "content_text",
    "error_details",
    "error_details_in",
    "json_of",
    "text_or_none",
]

# Characters of a body that are read: a web page or an echoed prompt may be long.
_LOOKED_AT = 4_000
_MESSAGE_NAMES = ("message", "detail", "error_description", "msg", "title", "error")
_CODE_NAMES = ("code", "type", "status", "reason", "error_type", "error_code", "err_code")
_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{0,300})", re.IGNORECASE)
_PAGE = re.compile(r"\s{0,200}<(?:!doctype html|html|head|body)\b", re.IGNORECASE)
_CHARSET = re.compile(
    r"utf-?(?:8|16|32)(?:-?[bl]e)?|us-ascii|ascii|iso-?8859-\d{1,2}|latin-?1|cp\d{3,5}"
    r"|windows-\d{3,4}|gb(?:2312|k|18030)|big5|shift[-_]jis|euc-(?:jp|kr)|koi8-[ru]"
)
_MOST_DIGITS = 1_000
# The deepest nesting of an error to search: no server nests deeper.
_DEEPEST = 100
_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)s")
# Parts of an answer that are not its text.
_ASIDES = ("thinking", "reasoning", "redacted_thinking")


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The details of an error reply.

    Attributes:
        message: The message; empty if there is none.
        codes: Machine-readable codes, in lower case, the most specific first.
        param: The field of the request that the error names, or the empty string.
        is_page: Whether the body is a web page.
        wait_s: Seconds that the body asks to wait, or None.
        quotas: The ids and values of the quotas that are used up, as Google lists them.
    """

    message: str = ""
    codes: tuple[str, ...] = ()
    param: str = ""
    is_page: bool = False
    wait_s: float | None = None
    quotas: tuple[tuple[str, str], ...] = ()


def json_of(body: bytes, content_type: str = "") -> Any:
    """Return the JSON of a body; accepts cut characters, ``NaN`` and a byte order mark.

    Raises:
        ValueError: The body is not JSON; the message says what it is.
    """
    try:
        return json.loads(body, parse_int=_integer)
    except (ValueError, RecursionError):
        pass
    encoding = _charset(content_type)
    try:
        text = body.decode(encoding, "replace").lstrip("\ufeff")
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (ValueError, LookupError):
        named = content_type.partition(";")[0].strip()
        is_named_so = "json" in named.lower()
        kind = f", though its type is {named}" if is_named_so else f", but {named or 'of no type'}"
        what = "it is empty" if not body.strip() else f"it is not JSON{kind}"
        raise ValueError(what) from None


def _charset(content_type: str) -> str:
    _, _, charset = content_type.lower().partition("charset=")
    named = charset.partition(";")[0].strip(" \"'")
    # Other codecs do not decode to text (hex), or take quadratic time (punycode).
    return named if _CHARSET.fullmatch(named) else "utf-8"


def _integer(digits: str) -> int | float:
    # Python refuses an int of thousands of digits. Only that value is nonsense, not the whole body.
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def error_details(body: bytes, content_type: str = "") -> ErrorDetails:
    """Return the details of an error reply."""
    try:
        return error_details_in(json_of(body, content_type))
    except ValueError:
        pass
    text = body[: 4 * _LOOKED_AT].decode("utf-8", "replace")[:_LOOKED_AT]
    if "html" not in content_type.lower() and not _PAGE.match(text):
        return ErrorDetails(message=text.strip())
    title = _TITLE.search(text)
    named = " ".join(title[1].split()) if title else ""
    return ErrorDetails(message=f"a web page, {named!r}" if named else "a web page", is_page=True)


def error_details_in(content: Any) -> ErrorDetails:
    """Return the details in the JSON of an error reply.

    Accepts ``{"error": {...}}``, the inner object alone, or a list of either.
    """
    if is_deeper(content, _DEEPEST):
        return ErrorDetails()
    if isinstance(content, list):
        # Google sends a list of errors.
        content = next((each for each in content if isinstance(each, dict)), None)
    if isinstance(content, str):
        return ErrorDetails(message=content[:_LOOKED_AT])
    if not isinstance(content, dict):
        return ErrorDetails()
    if "error" not in content and _is_listed(content.get("errors")):
        # Cloudflare and watsonx list errors.
        content = content["errors"][0]
    inner = content.get("error")
    # "error" may be only a message; its type is then a field next to it.
    fields = inner if isinstance(inner, dict) else content
    detail = _first_fault(fields)
    return ErrorDetails(
        message=_message(fields)[:_LOOKED_AT],
        codes=tuple(_codes(fields, detail)),
        param=_param(fields, detail),
        wait_s=_wait_s(fields),
        quotas=tuple(_quotas(fields)),
    )


def _is_listed(errors: Any) -> bool:
    return isinstance(errors, list) and bool(errors) and isinstance(errors[0], dict)


def _message(fields: dict[str, Any]) -> str:
    words = next((_words(fields[name]) for name in _MESSAGE_NAMES if fields.get(name)), "")
    metadata = fields.get("metadata")
    # OpenRouter passes on the reply of its provider here.
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return f"{words}: {raw}" if isinstance(raw, str) and raw else words


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _message(value) or _dumped(value)
    if isinstance(value, list) and all(isinstance(each, dict) and "msg" in each for each in value):
        # FastAPI lists faults, each with its location.
        return "; ".join(f"{_place(each)}{each['msg']}" for each in value[:3])
    return _dumped(value)


def _place(fault: dict[str, Any]) -> str:
    place = fault.get("loc")
    return f"{'.'.join(map(str, place))}: " if isinstance(place, list) and place else ""


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""


def _first_fault(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the first of FastAPI's faults, which Mistral nests in its message; else {}."""
    for value in (fields.get("detail"), fields.get("message")):
        faults = value.get("detail") if isinstance(value, dict) else value
        if isinstance(faults, list) and faults and isinstance(faults[0], dict):
            return faults[0]
    return {}


def _codes(fields: dict[str, Any], fault: dict[str, Any]) -> list[str]:
    inner = fields.get("innererror") or fields.get("inner_error")
    nested = [inner, fault, *_details(fields)]
    given = [fields.get("code")]
    given += [part.get(name) for part in nested if isinstance(part, dict) for name in _CODE_NAMES]
    given += [fields.get(name) for name in _CODE_NAMES[1:]]
    codes = [str(each).lower() for each in given if isinstance(each, str | int) and each != ""]
    # A code has no spaces; text with spaces is a message.
    return list(dict.fromkeys(code for code in codes if " " not in code))


def _details(fields: dict[str, Any]) -> list[Any]:
    details = fields.get("details")
    return details[:10] if isinstance(details, list) else []


def _param(fields: dict[str, Any], fault: dict[str, Any]) -> str:
    param = fields.get("param")
    if isinstance(param, str):
        return param
    place = fault.get("loc")
    return str(place[-1]) if isinstance(place, list) and place else ""


def _wait_s(fields: dict[str, Any]) -> float | None:
    for detail in _details(fields):
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        found = _SECONDS.fullmatch(delay) if isinstance(delay, str) else None
        if found:
            return float(found[1])
    return None


def _quotas(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for detail in _details(fields):
        violations = detail.get("violations") if isinstance(detail, dict) else None
        for quota in violations[:10] if isinstance(violations, list) else ():
            names = (
                (quota.get("quotaId"), quota.get("quotaValue")) if isinstance(quota, dict) else ()
            )
            if len(names) == len(found := [name for name in names if isinstance(name, str)]) != 0:
                yield found[0], found[1]


def text_or_none(value: Any) -> str | None:
    """Return a text; None for anything else."""
    return value if isinstance(value, str) else None


def content_text(content: Any) -> str | None:
    """Return the text of a message's content: a string, or the text parts of a list.

    None if there is no text. Reasoning does not count.
    """
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [text for part in parts if (text := _part_text(part)) is not None]
    return "".join(texts) if texts else None


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") in _ASIDES:
        return None
    text = part.get("text")
    # The Assistants API nests the text one level deeper.
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else None
