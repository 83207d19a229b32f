"""The formats of documents that are parsed: by name, and by content where that is wrong or says nothing."""

from __future__ import annotations

import struct
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterable

__all__ = [
    "DOCUMENT_FORMATS",
    "DOCUMENT_SUFFIXES",
    "ENCRYPTED",
    "HEAD_BYTES",
    "MAGIC",
    "DocumentFormat",
    "binary_name",
    "format_of_content",
    "is_document",
    "looks_like_html",
    "named_format",
    "zip_errors",
]

HEAD_BYTES = 8_192
ENCRYPTED = "it is encrypted, and needs a password"


class DocumentFormat(NamedTuple):
    """A format of documents that are parsed.

    Attributes:
        words: Its name in messages.
        mime: Its media type.
        suffixes: The ends of the names of its files.
    """

    words: str
    mime: str
    suffixes: tuple[str, ...]


_OOXML = "application/vnd.openxmlformats-officedocument"
_ODF = "application/vnd.oasis.opendocument"
DOCUMENT_FORMATS = {
    "pdf": DocumentFormat("a PDF", "application/pdf", (".pdf",)),
    "docx": DocumentFormat(
        "a Word document", f"{_OOXML}.wordprocessingml.document", (".docx", ".docm")
    ),
    "doc": DocumentFormat("a Word 97 document", "application/msword", (".doc",)),
    "pptx": DocumentFormat(
        "a PowerPoint file", f"{_OOXML}.presentationml.presentation", (".pptx", ".pptm")
    ),
    "ppt": DocumentFormat("a PowerPoint 97 file", "application/vnd.ms-powerpoint", (".ppt",)),
    "odt": DocumentFormat("an OpenDocument text", f"{_ODF}.text", (".odt",)),
    "rtf": DocumentFormat("an RTF file", "application/rtf", (".rtf",)),
    "html": DocumentFormat("an HTML page", "text/html", (".html", ".htm", ".xhtml")),
    "epub": DocumentFormat("an EPUB", "application/epub+zip", (".epub",)),
    "eml": DocumentFormat("an e-mail", "message/rfc822", (".eml",)),
    "msg": DocumentFormat("an Outlook message", "application/vnd.ms-outlook", (".msg",)),
    "xlsx": DocumentFormat("an Excel file", f"{_OOXML}.spreadsheetml.sheet", (".xlsx", ".xlsm")),
    "xls": DocumentFormat("an Excel 97 file", "application/vnd.ms-excel", (".xls",)),
    "ods": DocumentFormat("an OpenDocument spreadsheet", f"{_ODF}.spreadsheet", (".ods",)),
}
_NAMED = {suffix: key for key, one in DOCUMENT_FORMATS.items() for suffix in one.suffixes}
DOCUMENT_SUFFIXES = tuple(_NAMED)

_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Within the first kilobyte, as readers of PDF accept it.
_PDF_WITHIN = 1_024
# What a document begins with that is no text.
MAGIC = (b"%PDF-", b"{\\rtf", _OLE, *_ZIP)
_HTML = (b"<!doctype html", b"<html", b"<!doctype xhtml")
# Binary files that are often among documents, by their first bytes.
_BINARIES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"SQLite format 3": "a SQLite database",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
}
# A part of each ZIP that is a document, by its name or the beginning of its name.
_PARTS = (
    ("word/", "docx"),
    ("ppt/presentation.xml", "pptx"),
    ("xl/workbook.xml", "xlsx"),
    ("META-INF/container.xml", "epub"),
)
_ZIP_TYPES = {DOCUMENT_FORMATS[key].mime: key for key in ("odt", "ods", "epub")}
_ZIP_TYPES_RAW = tuple(mime.encode() for mime in _ZIP_TYPES)
# What the first part of a document of Office is called.
_FIRST_PARTS = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/", b"ppt/", b"xl/")
# The streams of an OLE file that say what it is.
_STREAMS = {
    "WordDocument": "doc",
    "__properties_version1.0": "msg",
    "PowerPoint Document": "ppt",
    "Workbook": "xls",
    "Book": "xls",
}
_DIRECTORY_BYTES = 16_384
_ENTRY_BYTES = 128
_WORD_MAGIC = 0xA5EC
_WORD_ENCRYPTED = 0x0100


def named_format(name: str) -> str | None:
    """Return the key of the format that a file's name says, or None."""
    return _NAMED.get(PurePath(name).suffix.lower())


def is_document(file: BinaryIO) -> bool:
    """Say whether a file begins as a document that is parsed does, under any name. Raises OSError.

    This is asked in the client, so no archive is opened, which may be a hostile one.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if head.startswith(_ZIP):
        size = int.from_bytes(head[26:28], "little")
        name = head[30 : 30 + size]
        is_typed = name == b"mimetype" and any(one in head[:_ENTRY_BYTES] for one in _ZIP_TYPES_RAW)
        return is_typed or name.startswith(_FIRST_PARTS)
    try:
        return format_of_content(file, "") is not None
    except ValueError:
        return False


def format_of_content(file: BinaryIO, name: str) -> str | None:
    """Return the key of the format of a file's content; None if its first bytes do not say.

    Args:
        file: The file, which can be sought.
        name: Its name, which decides where the content is ambiguous.

    Raises:
        ValueError: It is a file that cannot be read as a document; the message says why.
        OSError: It cannot be read.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if b"%PDF-" in head[:_PDF_WITHIN]:
        return "pdf"
    if head.startswith(b"{\\rtf"):
        return "rtf"
    if head.startswith(_ZIP):
        return _zip_format(file)
    if head.startswith(_OLE):
        return _ole_format(file, head, name)
    return None


def looks_like_html(head: bytes) -> bool:
    """Say whether a text begins as an HTML page does."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith(_HTML) or (start.startswith(b"<?xml") and b"<html" in start[:1_024])


def binary_name(head: bytes) -> str | None:
    """Return what a binary file is, by its first bytes, or None."""
    if head[4:8] == b"ftyp":
        return "an MP4 or HEIC file"
    if head[8:12] == b"WEBP":
        return "a WebP image"
    return next((words for magic, words in _BINARIES.items() if head.startswith(magic)), None)


def zip_errors() -> tuple[type[Exception], ...]:
    """Return what zipfile raises for damaged archives, beside OSError and ValueError."""
    import lzma
    import zipfile
    import zlib

    return (
        zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, struct.error, zlib.error,
        lzma.LZMAError,
    )  # fmt: skip


def _zip_format(file: BinaryIO) -> str:
    import zipfile

    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.flag_bits & 1 for entry in entries):
                raise ValueError(ENCRYPTED)
            names = [entry.filename for entry in entries]
            found = next((key for part, key in _PARTS if _has(names, part)), None)
            return found or _by_media_type(archive, names)
    except zip_errors() as error:
        msg = f"it is a damaged ZIP file: {error}"
        raise ValueError(msg) from None


def _has(names: Iterable[str], part: str) -> bool:
    return any(name.startswith(part) if part.endswith("/") else name == part for name in names)


def _by_media_type(archive: zipfile.ZipFile, names: list[str]) -> str:
    if "mimetype" not in names:
        msg = "it is a ZIP archive and no document: unpack it first"
        raise ValueError(msg)
    with archive.open("mimetype") as entry:
        mime = entry.read(_ENTRY_BYTES).decode("ascii", "replace").strip()
    key = _ZIP_TYPES.get(mime.removesuffix("-template"))
    if key is None:
        msg = f"it is a file of the type {mime!r}, which cannot be read: save it as another, or as PDF"
        raise ValueError(msg)
    if "META-INF/manifest.xml" in names and key != "epub":
        with archive.open("META-INF/manifest.xml") as entry:
            if b"encryption-data" in entry.read(1_000_000):
                raise ValueError(ENCRYPTED)
    return key


def _ole_format(file: BinaryIO, head: bytes, name: str) -> str:
    """Return the format of a file of Office 97, or raise ValueError."""
    shift, first = struct.unpack_from("<H16xI", head.ljust(_ENTRY_BYTES, b"\0"), 30)
    found = {}
    if shift in {9, 12}:
        file.seek((first + 1) << shift)
        directory = file.read(_DIRECTORY_BYTES)
        for at in range(0, len(directory) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
            size, start = struct.unpack_from("<H50xI", directory, at + 64)
            stream = directory[at : at + max(0, min(size - 2, 64))].decode("utf-16-le", "replace")
            found[stream] = (start + 1) << shift
    if "EncryptedPackage" in found:
        raise ValueError(ENCRYPTED)
    named = named_format(name)
    keys = [key for stream, key in _STREAMS.items() if stream in found]
    if not keys and named not in _STREAMS.values():
        msg = "it is a file of an older Office program that cannot be read: save it as another"
        raise ValueError(msg)
    key = named if named in keys or not keys else keys[0]
    if key == "doc" and "WordDocument" in found:
        file.seek(found["WordDocument"])
        magic, flags = struct.unpack("<H8xH", file.read(12).ljust(12, b"\0"))
        if magic == _WORD_MAGIC and flags & _WORD_ENCRYPTED:
            raise ValueError(ENCRYPTED)
    return str(key)
