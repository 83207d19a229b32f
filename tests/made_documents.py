"""Small documents of each format, and hostile ones, made of what Python has."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "bomb_xlsx",
    "damaged",
    "deep_odt",
    "docx",
    "eml",
    "encrypted_pdf",
    "epub",
    "nested",
    "odt",
    "ole",
    "pdf",
    "pptx",
    "scanned_pdf",
    "unclosed",
    "xlsx",
    "zipped",
]

_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_MAIN = "http://schemas.openxmlformats.org"
_ODF = "urn:oasis:names:tc:opendocument:xmlns"


def zipped(parts: Mapping[str, str | Iterable[str]]) -> bytes:
    """A ZIP archive; a ``mimetype`` in it is not compressed."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            if isinstance(content, str):
                packing = zipfile.ZIP_STORED if name == "mimetype" else None
                archive.writestr(name, content, packing)
                continue
            with archive.open(name, "w") as part:
                for piece in content:
                    part.write(piece.encode())
    return made.getvalue()


def damaged(data: bytes, name: str) -> bytes:
    """A ZIP archive with a part of this name that cannot be unpacked; it is added if there is none."""
    made = io.BytesIO(data)
    with zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as archive:
        if name not in archive.namelist():
            archive.writestr(name, "x" * 999)
        part = archive.getinfo(name)
    begin = part.header_offset + 30 + len(name)
    content = made.getvalue()[begin : begin + part.compress_size]
    made.seek(begin)
    made.write(bytes(byte ^ 255 for byte in content))
    return made.getvalue()


def _objects(objects: list[bytes], trailer: bytes) -> bytes:
    """A PDF of these objects; the first is its catalog."""
    made = io.BytesIO()
    made.write(b"%PDF-1.4\n")
    offsets = []
    for number, one in enumerate(objects, 1):
        offsets.append(made.tell())
        made.write(b"%d 0 obj\n%s\nendobj\n" % (number, one))
    table = made.tell()
    made.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    made.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    made.write(b"trailer<</Size %d/Root 1 0 R%s>>" % (len(objects) + 1, trailer))
    made.write(b"\nstartxref\n%d\n%%%%EOF" % table)
    return made.getvalue()


def _stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(data), data)


_FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"
_PAGE = (
    b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents %d 0 R"
    b"/Resources<</Font<</F 3 0 R>>/XObject<</I 4 0 R>>>>>>"
)
_PIXEL = b"/Type/XObject/Subtype/Image/Width 1/Height 1/BitsPerComponent 8/ColorSpace/DeviceGray"


def pdf(pages: list[str]) -> bytes:
    """A PDF with a text on each page, whose lines are lines of it; an image is on none."""
    return _pdf([_words(text) for text in pages])


def scanned_pdf(pages: int) -> bytes:
    """A PDF whose pages hold an image and no text."""
    return _pdf([b"q 600 0 0 700 0 0 cm /I Do Q"] * pages)


def _words(text: str) -> bytes:
    lines = b" ".join(b"(%s) Tj T*" % line.encode("cp1252") for line in text.splitlines())
    return b"BT /F 12 Tf 72 720 Td 14 TL %s ET" % lines


def _pdf(contents: list[bytes]) -> bytes:
    kids = b" ".join(b"%d 0 R" % (5 + 2 * at) for at in range(len(contents)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(contents), kids),
        _FONT,
        _stream(b"\x80", _PIXEL),
    ]
    for at, content in enumerate(contents):
        objects += [_PAGE % (6 + 2 * at), _stream(content)]
    return _objects(objects, b"")


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    made = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        made.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(made)


_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def encrypted_pdf(password: bytes) -> bytes:
    """A PDF with an owner's password, and the user's; revision 2 of the standard handler."""
    name = b"0123456789abcdef"
    padded = (password + _PAD)[:32]
    owner = _rc4(hashlib.md5((b"owner" + _PAD)[:32]).digest()[:5], padded)
    rights = (-4).to_bytes(4, "little", signed=True)
    key = hashlib.md5(padded + owner + rights + name).digest()[:5]
    own = hashlib.md5(key + (4).to_bytes(3, "little") + b"\0\0").digest()[:10]
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        page,
        _stream(_rc4(own, _words("hidden words"))),
        _FONT,
        b"<</Filter/Standard/V 1/R 2/O<%s>/U<%s>/P -4>>"
        % (owner.hex().encode(), _rc4(key, _PAD).hex().encode()),
    ]
    return _objects(objects, b"/Encrypt 6 0 R/ID[<%s><%s>]" % ((name.hex().encode(),) * 2))


def _package(part: str, kind: str) -> dict[str, str]:
    types = f"{_MAIN}/package/2006/content-types"
    relations = f"{_MAIN}/package/2006/relationships"
    main = f"application/vnd.openxmlformats-officedocument.{kind}.main+xml"
    return {
        "[Content_Types].xml": f'{_XML}<Types xmlns="{types}">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/{part}" ContentType="{main}"/></Types>',
        "_rels/.rels": f'{_XML}<Relationships xmlns="{relations}"><Relationship Id="r1" Target="{part}"'
        f' Type="{_MAIN}/officeDocument/2006/relationships/officeDocument"/></Relationships>',
    }


def docx(paragraphs: list[str]) -> bytes:
    """A Word document: ``# x`` is a heading, ``---`` a page break with Word's own mark of it."""
    styles = {"# ": "Heading1", "## ": "Heading2"}
    body = ""
    breaks = False
    for one in paragraphs:
        if one == "---":
            body += '<w:p><w:r><w:br w:type="page"/></w:r></w:p>'
            breaks = True
            continue
        mark = next((mark for mark in styles if one.startswith(mark)), "")
        style = f'<w:pPr><w:pStyle w:val="{styles[mark]}"/></w:pPr>' if mark else ""
        seen = "<w:r><w:lastRenderedPageBreak/></w:r>" if breaks else ""
        breaks = False
        body += f"<w:p>{style}{seen}<w:r><w:t>{one.removeprefix(mark)}</w:t></w:r></w:p>"
    parts = _package("word/document.xml", "wordprocessingml.document")
    space = f'xmlns:w="{_MAIN}/wordprocessingml/2006/main"'
    parts["word/document.xml"] = f"{_XML}<w:document {space}><w:body>{body}</w:body></w:document>"
    return zipped(parts)


def pptx(slides: list[tuple[str, str]], notes: Iterable[str] = ()) -> bytes:
    """A presentation: a title and a text for each slide, and the notes of the first slides."""
    spaces = (
        f'xmlns:p="{_MAIN}/presentationml/2006/main" xmlns:a="{_MAIN}/drawingml/2006/main" '
        f'xmlns:r="{_MAIN}/officeDocument/2006/relationships"'
    )
    parts = _package("ppt/presentation.xml", "presentationml.presentation")
    kind = f"{_MAIN}/officeDocument/2006/relationships/slide"
    ids = links = ""
    for number, (title, text) in enumerate(slides, 1):
        ids += f'<p:sldId id="{255 + number}" r:id="r{number}"/>'
        links += f'<Relationship Id="r{number}" Type="{kind}" Target="slides/slide{number}.xml"/>'
        shapes = "".join(
            f'<p:sp><p:nvSpPr><p:cNvPr id="{at}" name="s"/><p:cNvSpPr/><p:nvPr>{place}</p:nvPr>'
            "</p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r>"
            f"<a:t>{words}</a:t></a:r></a:p></p:txBody></p:sp>"
            for at, words, place in ((2, title, '<p:ph type="title"/>'), (3, text, ""))
        )
        parts[f"ppt/slides/slide{number}.xml"] = (
            f"{_XML}<p:sld {spaces}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"
        )
    parts["ppt/presentation.xml"] = (
        f"{_XML}<p:presentation {spaces}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"
    )
    for number, note in enumerate(notes, 1):
        parts[f"ppt/slides/_rels/slide{number}.xml.rels"] = (
            f'{_XML}<Relationships xmlns="{_MAIN}/package/2006/relationships"><Relationship Id="r1" '
            f'Type="{kind.removesuffix("slide")}notesSlide" '
            f'Target="../notesSlides/notesSlide{number}.xml"/></Relationships>'
        )
        parts[f"ppt/notesSlides/notesSlide{number}.xml"] = (
            f"{_XML}<p:notes {spaces}><p:cSld><p:spTree><p:sp><p:nvSpPr>"
            '<p:cNvPr id="2" name="n"/><p:cNvSpPr/><p:nvPr><p:ph type="body"/></p:nvPr></p:nvSpPr>'
            f"<p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{note}</a:t></a:r></a:p></p:txBody>"
            "</p:sp></p:spTree></p:cSld></p:notes>"
        )
    parts["ppt/_rels/presentation.xml.rels"] = (
        f'{_XML}<Relationships xmlns="{_MAIN}/package/2006/relationships">{links}</Relationships>'
    )
    return zipped(parts)


def xlsx(rows: str | Iterable[str]) -> bytes:
    """A workbook of one sheet, whose rows are given in XML."""
    main = f"{_MAIN}/spreadsheetml/2006/main"
    relations = f"{_MAIN}/package/2006/relationships"
    kind = f"{_MAIN}/officeDocument/2006/relationships"
    parts: dict[str, str | Iterable[str]] = {**_package("xl/workbook.xml", "spreadsheetml.sheet")}
    parts["xl/workbook.xml"] = (
        f'{_XML}<workbook xmlns="{main}" xmlns:r="{kind}"><sheets>'
        '<sheet name="Sheet" sheetId="1" r:id="r1"/></sheets></workbook>'
    )
    parts["xl/_rels/workbook.xml.rels"] = (
        f'{_XML}<Relationships xmlns="{relations}"><Relationship Id="r1" Type="{kind}/worksheet" '
        'Target="worksheets/sheet1.xml"/></Relationships>'
    )
    begin, end = f'{_XML}<worksheet xmlns="{main}"><sheetData>', "</sheetData></worksheet>"
    parts["xl/worksheets/sheet1.xml"] = (
        f"{begin}{rows}{end}" if isinstance(rows, str) else [begin, *rows, end]
    )
    return zipped(parts)


def bomb_xlsx(rows: int) -> bytes:
    """A small workbook that unpacks to a very large one."""
    cell = '<c t="inlineStr"><is><t>aaaaaaaaaaaaaaaaaaaa</t></is></c>'
    return xlsx(f'<row r="{number}">{cell * 8}</row>' for number in range(1, rows + 1))


def _opened(kind: str, content: str, manifest: str = "") -> bytes:
    mime = f"application/vnd.oasis.opendocument.{kind}"
    return zipped({
        "mimetype": mime,
        "content.xml": f'{_XML}<office:document-content xmlns:office="{_ODF}:office:1.0" '
        f'xmlns:text="{_ODF}:text:1.0"><office:body><office:{kind}>{content}</office:{kind}>'
        "</office:body></office:document-content>",
        "META-INF/manifest.xml": f'{_XML}<manifest:manifest xmlns:manifest="{_ODF}:manifest:1.0">'
        f'<manifest:file-entry manifest:full-path="/" manifest:media-type="{mime}">{manifest}'
        "</manifest:file-entry></manifest:manifest>",
    })  # fmt: skip


def odt(content: str, manifest: str = "") -> bytes:
    """An OpenDocument text, of XML."""
    return _opened("text", content, manifest)


def deep_odt() -> bytes:
    """An OpenDocument text that is nested so deeply that its parser overflows its stack."""
    depth = 50_000
    return odt("<text:section>" * depth + "<text:p>x</text:p>" + "</text:section>" * depth)


def epub(chapters: list[str]) -> bytes:
    """A book, of the bodies of its chapters in HTML."""
    names = [f"c{number}" for number, _ in enumerate(chapters)]
    items = "".join(
        f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>'
        for name in names
    )
    spine = "".join(f'<itemref idref="{name}"/>' for name in names)
    return zipped({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": f"{_XML}"
        '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="c.opf" media-type="application/oebps-package+xml"/>'
        "</rootfiles></container>",
        "c.opf": f'{_XML}<package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>T</dc:title></metadata>'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        **{
            f"{name}.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
            for name, body in zip(names, chapters, strict=True)
        },
    })  # fmt: skip


def unclosed(tag: str, texts: list[str]) -> str:
    """Texts in elements of HTML that nobody closes."""
    return "".join(f"<{tag}>{text}\n" for text in texts)


def nested(tags: str, texts: list[str]) -> str:
    """Texts in elements of HTML or XML, each in that of the text before it."""
    names = tags.split()
    begin = "".join(f"<{name}>" for name in names)
    end = "".join(f"</{name}>" for name in reversed(names))
    return "".join(f"{begin}{text} " for text in texts) + end * len(texts)


def eml(body: bytes, kind: str = "text/plain; charset=utf-8") -> bytes:
    """A mail with this body."""
    head = (
        "From: a@x.example\r\nTo: b@y.example\r\nSubject: =?utf-8?q?Caf=C3=A9?=\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return head.encode() + body


def ole(*streams: str) -> bytes:
    """The beginning of a file of Office 97, with the directory of its streams."""
    header = bytearray(512)
    header[:8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    header[30:32] = (9).to_bytes(2, "little")
    directory = b""
    for name in ("Root Entry", *streams):
        encoded = name.encode("utf-16-le")
        size = (len(encoded) + 2).to_bytes(2, "little")
        directory += encoded.ljust(64, b"\0") + size + bytes(62)
    return bytes(header) + directory.ljust(1_024, b"\0")
