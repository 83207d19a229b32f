"""Writes a content in each format; runs in the environment of ``benchmarks/peers-documents.in``.

Formats that several programs write in practice are made by two: a library, and pandoc.
"""

from __future__ import annotations

import html
from email.message import EmailMessage
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from corpus.prose import Content, Section

__all__ = ["LANGUAGES", "WRITERS"]

_EUROPEAN = ("french", "german", "greek", "polish", "russian", "spanish")
# The languages beside English that a format's writer can set; the others can set all.
LANGUAGES: dict[str, tuple[str, ...]] = {"pdf": (*_EUROPEAN, "chinese", "japanese")}
_SLIDE_LINES = 6
_CID_FONTS = {"chinese": "STSong-Light", "japanese": "HeiseiMin-W3"}


def _markdown(content: Content) -> str:
    parts = [f"# {content.title}"]
    for section in content.sections:
        parts += [f"## {section.heading}", *section.paragraphs]
        parts += ["\n".join(f"- {item}" for item in section.items)] if section.items else []
        if section.table:
            rows = [section.table[0], ["---"] * len(section.table[0]), *section.table[1:]]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _html(content: Content, charset: str = "") -> str:
    meta = f'<meta charset="{charset}">' if charset else ""
    title = html.escape(content.title)
    parts = [f"<!DOCTYPE html>\n<html><head>{meta}<title>{title}</title>"]
    parts.append("<style>p { margin: 1em }</style><script>var shown = false</script></head>")
    parts.append(f"<body><h1>{title}</h1>")
    for section in content.sections:
        parts += [f"<h2>{html.escape(section.heading)}</h2>"]
        parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
        parts += ["<ul>", *(f"<li>{html.escape(item)}</li>" for item in section.items), "</ul>"]
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in section.table)
        parts += ["<table>", *(f"<tr>{row}</tr>" for row in cells), "</table>"]
    return "\n".join([*parts, "</body></html>\n"])


def _plain(content: Content) -> str:
    parts = [content.title]
    for section in content.sections:
        parts += [section.heading, *section.paragraphs, *(f"* {item}" for item in section.items)]
        parts += ["\n".join("\t".join(row) for row in section.table)] if section.table else []
    return "\n\n".join(parts) + "\n"


def _write_markdown(content: Content, path: Path, _number: int) -> None:
    path.write_text(_markdown(content), encoding="utf-8")


def _write_text(content: Content, path: Path, number: int) -> None:
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le")
    encoding = encodings[number % len(encodings)]
    # Windows writes a byte order mark in front.
    text = "\ufeff" + _plain(content) if encoding == "utf-16-le" else _plain(content)
    path.write_text(text, encoding=encoding, newline="\r\n" if number % 2 else "\n")


def _write_html(content: Content, path: Path, number: int) -> None:
    if number % 3 == 0:
        path.write_text(_pandoc(content, "html"), encoding="utf-8")
        return
    charset = _legacy_charset(content) if number % 3 == 1 else "utf-8"
    path.write_bytes(_html(content, charset).encode(charset))


def _legacy_charset(content: Content) -> str:
    text = _html(content)
    for charset in ("windows-1252", "windows-1251", "shift_jis", "gb2312", "euc-kr"):
        try:
            text.encode(charset)
        except UnicodeEncodeError:
            continue
        return charset
    return "utf-8"


def _pandoc(content: Content, to: str, path: Path | None = None) -> str:
    import pypandoc

    args = ["--standalone", f"--metadata=title:{content.title}"]
    if path is None:
        return str(pypandoc.convert_text(_markdown(content), to, "markdown", extra_args=args))
    pypandoc.convert_text(_markdown(content), to, "markdown", outputfile=str(path), extra_args=args)
    return ""


def _write_rtf(content: Content, path: Path, _number: int) -> None:
    path.write_text(_pandoc(content, "rtf"), encoding="ascii")


def _write_docx(content: Content, path: Path, number: int) -> None:
    if number % 2:
        _pandoc(content, "docx", path)
        return
    import docx

    file = docx.Document()
    file.add_heading(content.title, 0)
    for section in content.sections:
        file.add_heading(section.heading, 1)
        for text in section.paragraphs:
            file.add_paragraph(text)
        for item in section.items:
            file.add_paragraph(item, style="List Bullet")
        if section.table:
            table = file.add_table(rows=0, cols=len(section.table[0]))
            for row in section.table:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
    file.save(str(path))


def _write_odt(content: Content, path: Path, number: int) -> None:
    if number % 2:
        _pandoc(content, "odt", path)
        return
    from odf import table as tables
    from odf import text as texts
    from odf.opendocument import OpenDocumentText

    file = OpenDocumentText()
    file.text.addElement(texts.H(outlinelevel=1, text=content.title))
    for section in content.sections:
        file.text.addElement(texts.H(outlinelevel=2, text=section.heading))
        for text in [*section.paragraphs, *section.items]:
            file.text.addElement(texts.P(text=text))
        if section.table:
            table = tables.Table()
            for row in section.table:
                line = tables.TableRow()
                for cell in row:
                    box = tables.TableCell()
                    box.addElement(texts.P(text=cell))
                    line.addElement(box)
                table.addElement(line)
            file.text.addElement(table)
    file.save(str(path))


def _write_pptx(content: Content, path: Path, _number: int) -> None:
    import pptx
    from pptx.util import Inches

    file = pptx.Presentation()
    first = file.slides.add_slide(file.slide_layouts[0])
    first.shapes.title.text = content.title
    for section in content.sections:
        lines = [*section.paragraphs, *section.items]
        for start in range(0, len(lines), _SLIDE_LINES):
            slide = file.slides.add_slide(file.slide_layouts[1])
            if start == 0:
                slide.shapes.title.text = section.heading
            slide.placeholders[1].text = "\n".join(lines[start : start + _SLIDE_LINES])
        if section.table:
            slide = file.slides.add_slide(file.slide_layouts[6])
            size = (Inches(1), Inches(1), Inches(8), Inches(4))
            shape = slide.shapes.add_table(len(section.table), len(section.table[0]), *size)
            for at, row in enumerate(section.table):
                for column, cell in enumerate(row):
                    shape.table.cell(at, column).text = cell
    file.save(str(path))


def _write_xlsx(content: Content, path: Path, _number: int) -> None:
    import openpyxl

    file = openpyxl.Workbook(write_only=True)
    sheet = file.create_sheet("Texts")
    sheet.append([content.title])
    for section in content.sections:
        for text in [*section.paragraphs, *section.items]:
            sheet.append([section.heading, text])
    for at, section in enumerate(content.sections):
        if section.table:
            more = file.create_sheet(f"Table {at}")
            for row in section.table:
                more.append(row)
    file.save(str(path))


def _write_epub(content: Content, path: Path, number: int) -> None:
    if number % 2:
        _pandoc(content, "epub", path)
        return
    from ebooklib import epub

    book = epub.EpubBook()
    book.set_identifier(f"corpus-{number}")
    book.set_title(content.title)
    book.set_language("en")
    pages = []
    for at, section in enumerate(content.sections):
        page = epub.EpubHtml(title=section.heading, file_name=f"part{at}.xhtml")
        title = content.title if at == 0 else section.heading
        page.content = _html(_part(content, section, title=title))
        book.add_item(page)
        pages.append(page)
    book.toc, book.spine = pages, pages
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    epub.write_epub(str(path), book)


def _part(content: Content, section: Section, *, title: str) -> Content:
    return type(content)(title=title, sections=[section], languages=content.languages)


def _write_eml(content: Content, path: Path, number: int) -> None:
    message = EmailMessage()
    message["Subject"] = content.title
    message["From"], message["To"] = "clerk@example.com", "archive@example.com"
    message["Date"] = "Mon, 02 Mar 2026 10:00:00 +0000"
    if number % 3 == 0:
        message.set_content(_html(content), subtype="html")
    else:
        message.set_content(_plain(content))
    if number % 3 == 1:
        message.add_alternative(_html(content), subtype="html")
    path.write_bytes(message.as_bytes())


def _write_pdf(content: Content, path: Path, number: int) -> None:
    from reportlab.lib import pagesizes
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate

    file = BaseDocTemplate(str(path), pagesize=pagesizes.A4 if number % 2 else pagesizes.letter,
                           title=content.title)  # fmt: skip
    left, bottom, width, height = file.leftMargin, file.bottomMargin, file.width, file.height
    # One in four has two columns, as journals do.
    columns = 2 if number % 4 == 0 else 1
    frames = [Frame(left + at * width / columns, bottom, width / columns, height)
              for at in range(columns)]  # fmt: skip
    file.addPageTemplates(PageTemplate(frames=frames, onPage=_numbered))
    file.build(_flowables(content))


def _numbered(canvas: Any, _file: Any) -> None:
    canvas.drawRightString(550, 30, str(canvas.getPageNumber()))


def _flowables(content: Content) -> list[Any]:
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import Paragraph, Spacer, Table

    styles = getSampleStyleSheet()
    story = [_paragraph(content.title, styles["Title"])]
    for section in content.sections:
        story.append(_paragraph(section.heading, styles["Heading2"]))
        story += [_paragraph(text, styles["BodyText"]) for text in section.paragraphs]
        story += [
            Paragraph(html.escape(item), styles["BodyText"], bulletText="\u2022")
            for item in section.items
        ]
        story += [Table(section.table), Spacer(1, 12)] if section.table else []
    return story


def _paragraph(text: str, style: Any) -> Any:
    from reportlab.platypus import Paragraph

    font = _font(text)
    if font is None:
        return Paragraph(html.escape(text), style)
    # Chinese and Japanese lines break between any two characters.
    wrap = "CJK" if font in _CID_FONTS.values() else None
    style = style.clone(f"{style.name}-{font}", fontName=font, wordWrap=wrap)
    return Paragraph(html.escape(text), style)


def _font(text: str) -> str | None:
    """Return the registered font that has the letters of a text; None is the style's own."""
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        pass
    else:
        return None
    _register_fonts()
    if any("\u3040" <= letter <= "\u30ff" for letter in text):
        return _CID_FONTS["japanese"]
    if any("\u4e00" <= letter <= "\u9fff" for letter in text):
        return _CID_FONTS["chinese"]
    return "DejaVuSans"


@cache
def _register_fonts() -> None:
    import matplotlib as mpl
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfbase.ttfonts import TTFont

    fonts = Path(mpl.get_data_path()) / "fonts/ttf"
    pdfmetrics.registerFont(TTFont("DejaVuSans", str(fonts / "DejaVuSans.ttf")))
    for name in _CID_FONTS.values():
        pdfmetrics.registerFont(UnicodeCIDFont(name))


WRITERS: dict[str, Callable[[Content, Path, int], None]] = {
    "pdf": _write_pdf,
    "docx": _write_docx,
    "pptx": _write_pptx,
    "xlsx": _write_xlsx,
    "odt": _write_odt,
    "rtf": _write_rtf,
    "html": _write_html,
    "epub": _write_epub,
    "eml": _write_eml,
    "md": _write_markdown,
    "txt": _write_text,
}
