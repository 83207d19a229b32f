"""The encodings of text: as a byte order mark, a web page, or the user says; else UTF-8."""

from __future__ import annotations

import codecs
import io
import re
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]

__all__ = ["GIVE_ENCODING", "Recoded", "bom_encoding", "decoded", "html_text", "no_text"]

# UTF-32 first: its mark begins as that of UTF-16 does.
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GIVE_ENCODING = "give its encoding (--encoding)"
_CHARSET = re.compile(
    rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w:.-]+)|<\?xml[^>]{1,200}?encoding\s*=\s*["']([\w.-]+)""",
    re.IGNORECASE,
)
_CHARSET_WITHIN = 4_096
# Encodings of seven bits, which look like ASCII, and so like UTF-8.
_ESCAPED = ("iso2022", "iso-2022", "hz", "utf-7", "utf7")
# What web pages mean by these names: https://encoding.spec.whatwg.org/#names-and-labels
_WEB = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "shift_jis": "cp932"}
_PART_BYTES = 65_536
_MARK = "fanout.mark"


def bom_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark says, or None."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), None)


def decoded(data: bytes, encoding: str | None = None) -> str:
    """Return bytes as text. Raises ValueError with the reason if they are none.

    Args:
        data: The bytes of a file; a byte order mark decides their encoding.
        encoding: Their encoding without such a mark; None is UTF-8.
    """
    name = bom_encoding(data) or encoding or "utf-8"
    try:
        text = data.decode(name)
    except UnicodeError as error:
        raise ValueError(no_text(error, name, is_given=encoding is not None)) from None
    if "\0" in text:
        raise ValueError(_nul(data))
    return text.removeprefix("\ufeff")


def no_text(error: UnicodeError, name: str, *, is_given: bool) -> str:
    """Return why bytes are not text of an encoding."""
    words = "UTF-8" if name.startswith("utf-8") else name
    where = ""
    if isinstance(error, UnicodeDecodeError):
        where = f" (byte {error.object[error.start]:#04x} at offset {error.start})"
    hint = "" if is_given else f"; if it is text, {GIVE_ENCODING}"
    return f"not valid {words}{where}{hint}"


def _nul(data: bytes) -> str:
    head = data[:_CHARSET_WITHIN]
    for name, ends in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
        if ends.count(0) > len(ends) / 2:
            return f"it holds NUL bytes; it looks like {name}: {GIVE_ENCODING}"
    return "it holds NUL bytes, so it is not text"


def html_text(data: bytes, encoding: str | None = None) -> str:
    """Return a web page as text. Raises ValueError with the reason if its encoding is unclear.

    A byte order mark comes first, then ``encoding``, then UTF-8 if the bytes are valid UTF-8,
    also if the page declares another, as other text is hardly ever valid by chance.
    """
    if encoding is not None or bom_encoding(data):
        return decoded(data, encoding)
    match = _CHARSET.search(data[:_CHARSET_WITHIN])
    label = (match[1] or match[2]).decode("ascii", "replace") if match else None
    reason = ""
    if label is None or not label.lower().startswith(_ESCAPED):
        try:
            return decoded(data)
        except ValueError as error:
            reason = str(error).partition(";")[0]
    if label is None:
        msg = f"{reason}, and it declares no charset: {GIVE_ENCODING}"
        raise ValueError(msg)
    return _declared(data, label, reason)


def _declared(data: bytes, label: str, reason: str) -> str:
    """Return a web page in the encoding that it declares, which is not UTF-8."""
    declared = f"it declares the charset {label!r}"
    try:
        name = codecs.lookup(label).name
        b"ab".decode(name, "replace")
    except (LookupError, UnicodeError):
        msg = f"{declared}, which is unknown: {GIVE_ENCODING}"
        raise ValueError(msg) from None
    if name.startswith(("utf-8", "utf-16")):
        msg = f"{declared}, and is {reason}: {GIVE_ENCODING}"
        raise ValueError(msg)
    name = _WEB.get(name, name)
    try:
        return data.decode(name)
    except UnicodeError as error:
        # Windows assigns five of its bytes to no character; web pages have them all the same.
        if name == "cp1252":
            return data.decode("cp1252", "replace")
        msg = f"{declared}, and is {no_text(error, label, is_given=True)}: {GIVE_ENCODING}"
        raise ValueError(msg) from None


def _marked(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udfff", error.end


codecs.register_error(_MARK, _marked)


class Recoded(io.RawIOBase):
    """A file of another encoding as UTF-8, read in parts.

    In the place of bytes that are not valid stands a half character, which UTF-8 does not have: its
    row alone is then not valid.
    """

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK)
        self._pending = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer with UTF-8."""
        while not self._pending:
            part = self._file.read(_PART_BYTES)
            text = self._decoder.decode(part, final=not part)
            self._pending = text.encode("utf-8", "surrogatepass")
            if not part:
                break
        view = memoryview(buffer)
        size = min(len(view), len(self._pending))
        view[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size
