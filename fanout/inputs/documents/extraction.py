"""The text of a document, by kreuzberg; runs in a process of its own."""

from __future__ import annotations

import re
import secrets
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from fanout.inputs.documents.document_formats import (
    DOCUMENT_FORMATS,
    ENCRYPTED,
    HEAD_BYTES,
    binary_name,
    format_of_content,
    looks_like_html,
    named_format,
)
from fanout.inputs.documents.encodings import decoded, html_text
from fanout.inputs.documents.headings import headings_of
from fanout.inputs.documents.mail import html_mail
from fanout.inputs.documents.packed_documents import REWRITTEN, rewritten
from fanout.inputs.documents.parsed import Parsed, Request
from fanout.inputs.documents.pdf_parser import load_pdf_parser, why_not_loaded
from fanout.inputs.documents.rows import EMPTY, too_large
from fanout.inputs.documents.texts import is_markdown
from fanout.inputs.documents.web_pages import MOST_DEPTH, lost_share, repaired, scan, with_all_parts

__all__ = ["MEMORY", "extract", "prepare"]

MEMORY = "reading it needs more memory than a document may take"
_TEXT = ("html", "eml")
# Formats of which the plain text is taken: what would be their Markdown is a guess.
_PLAIN = ("pdf", "eml", "msg")
# The whole of a PowerPoint file: its Markdown has no notes.
_NOTES = "notes"
_NOTE = "\n\nNotes:\n\n"
_IMAGE = re.compile(rb"/Subtype\s*/Image\b")
_SCAN_BYTES = 1_000_000
_HEAD = re.compile(r"<head\b.*?</head\s*>", re.IGNORECASE | re.DOTALL)
# What kreuzberg puts before a page: its title and its other metadata.
_FRONT = re.compile(r"\A---\n+(?:(?:## )?[\w-]+:[^\n]*\n+)+?(?:---\n+)?(?=\n|[^\s\w#]|#|\w)")
# Characters in which two renderings of a table do not differ.
_SOLID = re.compile(r"[^\s|:-]+")
_PREFIX = re.compile(r"^(?:\w*Error: )+")
_MOST_CHARS = 200
# kreuzberg may leave out less of the letters of a page than this.
_MOST_LOST = 0.05
_PANIC = "PanicException"
# Letters and digits only, as others would be escaped in Markdown.
_MARK = f"FANOUT{secrets.token_hex(8)}PAGE"
_SLIDE = re.compile(_MARK + r"\d+E\n*")


def prepare() -> None:
    """Load the library, with its parser of PDF. Raises ImportError."""
    _config("pdf")
    load_pdf_parser()


def extract(request: Request) -> Parsed:
    """Return the text of a document, or the reason why there is none. Never raises Exception."""
    try:
        return _extract(request)
    except FileNotFoundError:
        return Parsed(is_gone=True)
    except Exception as error:  # noqa: BLE001 - a document costs nothing but itself
        return Parsed(error=_words(error), is_last=isinstance(error, MemoryError))


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return MEMORY
    # Those of this package say it themselves.
    return str(error) if type(error) is ValueError else f"it cannot be read: {type(error).__name__}"


def _extract(request: Request) -> Parsed:
    with Path(request.path).open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not head:
            return Parsed(error=EMPTY)
        key = format_of_content(file, request.name) or _format_of_text(head, request.name)
        if key is None:
            file.seek(0)
            made = _as_text(file, head, request)
        else:
            made = _parsed(key, file, request)
    if made.error is None and len(made.text) * 4 > request.max_bytes:
        size = len(made.text.encode("utf-8", "replace"))
        if size > request.max_bytes:
            return Parsed(error=too_large(size, request.max_bytes))
    return made


def _format_of_text(head: bytes, name: str) -> str | None:
    named = named_format(name)
    if named in _TEXT:
        return named
    return "html" if looks_like_html(head) else None


def _as_text(file: BinaryIO, head: bytes, request: Request) -> Parsed:
    """Return the text of a file that is none of the formats that are parsed."""
    named = named_format(request.name)
    wanted = DOCUMENT_FORMATS[named].words if named else "text"
    if what := binary_name(head):
        return Parsed(error=f"it is {what}, and not {wanted}")
    data = file.read(request.max_bytes + 1)
    if len(data) > request.max_bytes:
        return Parsed(error=too_large(Path(request.path).stat().st_size, request.max_bytes))
    try:
        text = decoded(data, request.encoding)
    except ValueError as error:
        reason = f"it is not {wanted}, and its content is of no known kind"
        return Parsed(error=reason if named else str(error))
    return Parsed(
        text=text,
        headings=headings_of(text) if is_markdown(request.name) else [],
        instead_of=wanted if named else "",
    )


def _parsed(key: str, file: BinaryIO, request: Request) -> Parsed:
    mail = _html_mail(file) if key == "eml" else None
    if mail is not None:
        return mail
    result = _result(key, file, request)
    if isinstance(result, Parsed):
        return result
    text, pages = _text_and_pages(key, result)
    if not text.strip():
        return Parsed(error=_why_empty(key, result, file))
    return Parsed(text=text, pages=pages, headings=[] if key in _PLAIN else headings_of(text))


def _html_mail(file: BinaryIO) -> Parsed | None:
    """Return a mail whose only text is a web page; None if it is another, or damaged."""
    file.seek(0)
    data = file.read()
    if b"text/html" not in data.lower():
        return None
    try:
        found = html_mail(data)
        if found is None:
            return None
        head, page = found
        text = _page_text(page)
    except Exception:  # noqa: BLE001 - kreuzberg takes what Python's parser of mail does not
        return None
    return Parsed(text=f"{head}\n\n{text}")


def _page_text(page: str) -> str:
    """Return a web page as Markdown, with all its text."""
    page = with_all_parts(page)
    wanted = scan(page)
    if wanted.depth <= MOST_DEPTH:
        made = _markdown(page)
        if lost_share(wanted.text, made) <= _MOST_LOST:
            return made
    made = _markdown(repaired(page))
    return made if lost_share(wanted.text, made) <= _MOST_LOST else wanted.text


def _markdown(page: str) -> str:
    import kreuzberg

    mime, config = DOCUMENT_FORMATS["html"].mime, _config("html")
    content = kreuzberg.extract_bytes_sync(page.encode("utf-8", "replace"), mime, config).content
    return _FRONT.sub("", _unix(content), count=1)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _result(key: str, file: BinaryIO, request: Request) -> Any:
    """Return kreuzberg's result, a page's text, or a document with the reason why there is none."""
    import kreuzberg

    mime, config = DOCUMENT_FORMATS[key].mime, _config(key)
    try:
        if key == "html":
            file.seek(0)
            page = _HEAD.sub("", html_text(file.read(), request.encoding), count=1)
            return _page_text(page)
        data = rewritten(key, file) if key in REWRITTEN else None
        if data is not None:
            result = kreuzberg.extract_bytes_sync(data, mime, config)
            if key != "pptx":
                return result
            whole = kreuzberg.extract_file_sync(request.path, mime, _config(_NOTES))
            return _with_notes(_unix(result.content), _unix(whole.content))
        return kreuzberg.extract_file_sync(request.path, mime, config)
    except (kreuzberg.KreuzbergError, RuntimeError) as error:
        return Parsed(error=_reason(key, str(error)))
    except BaseException as error:
        # A panic of Rust is no Exception; the state of the library is unknown after it.
        if type(error).__name__ != _PANIC:
            raise
        return Parsed(
            error=f"the parser of {DOCUMENT_FORMATS[key].words} failed on it", is_last=True
        )


@cache
def _config(key: str) -> Any:
    from kreuzberg import ConcurrencyConfig, ExtractionConfig, PageConfig

    pages = PageConfig(
        extract_pages=key in {"pdf", "docx"},
        insert_page_markers=key in {"pptx", _NOTES},
        marker_format=_MARK + "{page_num}E",
    )
    return ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        output_format="plain" if key in (*_PLAIN, _NOTES) else "markdown",
        pages=pages,
        concurrency=ConcurrencyConfig(max_threads=1),
    )


def _text_and_pages(key: str, result: Any) -> tuple[str, list[int]]:
    """Return a document's text, and the offset in it at which each of its pages begins."""
    if key == "html":
        return str(result), []
    is_text = isinstance(result, str)
    text = result if is_text else _unix(str(result.content))
    pieces = [] if is_text else [str(page["content"]) for page in result.pages or []]
    if key == "pdf":
        return _joined(list(map(_unix, pieces)))
    if key == "pptx":
        first, *slides = _SLIDE.split(text)
        joined, starts = _joined([slide.rstrip() for slide in slides])
        return (joined, starts) if slides and not first.strip() else (_SLIDE.sub("", text), [])
    if key == "docx" and len(pieces) > 1:
        # Word writes two marks for a page that the author began, so an empty page is none.
        return text, page_starts(text, [piece for piece in pieces if piece.strip()])
    return text, []


def _with_notes(text: str, whole: str) -> str:
    """Return the slides with the notes of each behind it."""
    first, *slides = _SLIDE.split(text)
    wholes = _SLIDE.split(whole)[1:]
    if first.strip() or len(wholes) != len(slides):
        return _SLIDE.sub("", whole)
    made = ""
    for number, (slide, with_note) in enumerate(zip(slides, wholes, strict=True), 1):
        _, mark, note = with_note.rpartition(_NOTE)
        made += f"{_MARK}{number}E\n\n{slide.rstrip()}{mark}{note.rstrip() if mark else ''}\n\n"
    return made


def _joined(pieces: list[str]) -> tuple[str, list[int]]:
    starts: list[int] = []
    at = 0
    for piece in pieces:
        starts.append(at)
        at += len(piece) + 2
    return "\n\n".join(pieces), starts


def page_starts(text: str, pieces: list[str]) -> list[int]:
    """Return the offset in a text at which each piece begins; empty if they are not its parts.

    The pieces may differ from the text in their white space and in the lines of their tables.
    """
    sizes = [sum(map(len, _SOLID.findall(piece))) for piece in pieces]
    if sum(sizes) != sum(map(len, _SOLID.findall(text))):
        return []
    starts = [0]
    passed, behind = 0, sizes[0]
    for match in _SOLID.finditer(text):
        size = match.end() - match.start()
        while len(starts) < len(pieces) and passed + size > behind:
            starts.append(match.start() + behind - passed)
            behind += sizes[len(starts) - 1]
        passed += size
    # A page begins with the marks before its first word, such as those of a heading.
    return [0, *(text.rfind("\n", 0, start) + 1 for start in starts[1:])]


def _why_empty(key: str, result: Any, file: BinaryIO) -> str:
    if key != "pdf":
        return "it holds no text"
    count = len(result.pages or [])
    pages = f"its {count:,} pages hold" if count > 1 else "its only page holds"
    return f"{pages} {'images and ' if _has_images(file) else ''}no text" + (
        " (a scan must go through OCR first)" if _has_images(file) else ""
    )


def _has_images(file: BinaryIO) -> bool:
    file.seek(0)
    before = b""
    while part := file.read(_SCAN_BYTES):
        if _IMAGE.search(before + part):
            return True
        before = part[-32:]
    return False


def _reason(key: str, message: str) -> str:
    """Return an error of kreuzberg in one short line."""
    line = " ".join(_PREFIX.sub("", message).split())
    lowered = line.lower()
    if key == "pdf" and (reason := why_not_loaded(line)):
        return reason
    if "password" in lowered or "encrypted" in lowered:
        return ENCRYPTED
    if "security limit" in lowered or "exceeds limit" in lowered:
        return f"it unpacks to more than is allowed: {line[:_MOST_CHARS]}"
    if "no page boundaries" in lowered:
        return "it is damaged: its pages cannot be found"
    half = len(line) // 2
    if line[: half - 1] == line[half + 1 :]:
        line = line[: half - 1]
    return f"it cannot be read as {DOCUMENT_FORMATS[key].words}: {line[:_MOST_CHARS]}"
