"""Documents as they are written, unclosed and deeply nested: all their text is read."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from fanout.inputs.documents.headings import headings_of
from fanout.inputs.documents.parsed import Parsed, Request
from fanout.inputs.documents.parsing import ParserPool
from fanout.inputs.documents.web_pages import lost_share, repaired, scan
from tests.made_documents import damaged, eml, epub, nested, odt, pptx, unclosed

NAMES = [f"word{number}" for number in range(100)]
# The bodies of pages; each holds all the names, and what is closed holds "end" after them.
BODIES = {
    **{tag: unclosed(tag, NAMES) for tag in ("p", "div", "section", "font", "b", "h2", "option")},
    "headings": "".join(f"<h2>{name}</h2><p>text" for name in NAMES),
    "list": f"<ul>{unclosed('li', NAMES)}</ul>end",
    "terms": f"<dl>{unclosed('dt', NAMES)}<dd>x</dl>end",
    "rows": f"<table>{''.join(f'<tr><td>{name}<td>x' for name in NAMES)}</table>end",
    **{f"nested {tag}": nested(tag, NAMES) + "end" for tag in ("div", "blockquote", "font", "b")},
    "nested tables": nested("table tr td", NAMES) + "end",
    "nested lists": nested("ul li", NAMES) + "end",
    "below": f"{'<div>' * 70}{''.join(f'<p>{name}</p>' for name in NAMES)}{'</div>' * 70}end",
    "one form": f"<form action=x><div>{'</div><div>'.join(NAMES)}</div></form>end",
    "open nav": f"<nav>{' '.join(NAMES)}",
    "open form in a nav": f"<p>{'</p><p>'.join(NAMES)}</p>end<nav><form>menu</form></nav>",
    "rubbish": f"</td></p></b><p><!-- > --><a title='<p>'>{'</a></i><p>'.join(NAMES)}<!-- rest",
}


def _odf(*paragraphs: str) -> bytes:
    return odt("".join(f"<text:p>a {one} z</text:p>" for one in paragraphs))


ODF = {
    "spans": _odf(nested("text:span", ["b", "c", "d"])),
    "links": _odf("<text:a><text:span>b</text:span></text:a> c <text:span>d<text:a/></text:span>"),
    "white space": _odf("<text:span>b<text:s text:c='2'/>c<text:tab/>d</text:span>"),
    "ruby": _odf("<text:ruby><text:ruby-base>b</text:ruby-base></text:ruby> c d"),
    "header": odt("<text:list><text:list-header><text:p>a b c d z</text:p></text:list-header>"
                  "</text:list>"),
    "index": odt("<text:table-of-content><text:index-body><text:p>a b c d z</text:p>"
                 "</text:index-body></text:table-of-content>"),
    "cell": odt('<table:table xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0">'
                "<table:table-row><table:table-cell><text:p>a</text:p><text:p>b</text:p><text:list>"
                "<text:list-item><text:p>c d</text:p></text:list-item></text:list><text:p>z</text:p>"
                "</table:table-cell></table:table-row></table:table>"),
}  # fmt: skip


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    with ParserPool(processes=1) as pool:

        def parse(name: str, data: bytes) -> Parsed:
            path = folder / name
            path.write_bytes(data)
            request = Request(path=str(path), name=name, max_bytes=10**7, timeout_s=30.0)
            return pool.parse(request)

        yield parse


@pytest.fixture(scope="module")
def read(parsed):
    def text(name: str, data: bytes) -> str:
        made = parsed(name, data)
        assert made.error is None
        return str(made.text)

    return text


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.odt", ODF["spans"], "Thumbnails/thumbnail.png"),
        ("a.pptx", pptx([("a", "b c d z")], notes=["e"]), "ppt/media/image1.jpeg"),
        ("a.epub", epub([BODIES["nested blockquote"]]), "cover.jpg"),
    ],
)
def test_a_damaged_picture_costs_no_text(read, name, data, part):
    assert read(name, damaged(data, part)) == read(name, data)


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("mimetype", "it is a damaged ZIP file: "),
        ("META-INF/manifest.xml", "it is a damaged ZIP file: "),
        ("content.xml", "it cannot be read as an OpenDocument text: Failed to read content.xml"),
    ],
)
def test_a_damaged_part_with_text_is_named(parsed, part, error):
    assert parsed("a.odt", damaged(ODF["spans"], part)).error.startswith(error)


@pytest.mark.parametrize("kind", BODIES)
def test_no_word_of_a_page_is_lost(read, kind):
    body = BODIES[kind]
    page = f"<html><head><title>x</title></head><body>{body}</body></html>"
    wanted = [*NAMES, "end"] if "end" in body else NAMES
    for name, data in (
        ("a.html", page.encode()),
        ("a.eml", eml(page.encode(), "text/html; charset=utf-8")),
        ("a.epub", epub([body])),
    ):
        assert re.findall(r"word\d+|end", read(name, data)) == wanted, name


def test_a_page_that_is_well_made_keeps_its_markup(read):
    page = "<div>" * 60 + "<h1>A</h1><table><tr><td>b<td>c</table><ul><li>d<li><b>e</b></ul>"
    text = read("a.html", page.encode())
    assert text.split("\n\n") == ["# A", "| b | c |\n| --- | --- |", "- d\n- **e**\n"]


@pytest.mark.parametrize("kind", ODF)
def test_no_word_of_an_opendocument_text_is_lost(read, kind):
    assert re.findall("[a-z]", read("a.odt", ODF[kind])) == ["a", "b", "c", "d", "z"]


def test_slides_have_their_pages_and_their_notes(parsed):
    slides = [("One", "a"), ("Two", "b"), ("Three", "c")]
    made = parsed("a.pptx", pptx(slides, notes=["first", "second"]))
    pages = [made.text[at:end].strip() for at, end in pairwise([*made.pages, None])]
    assert pages == [
        "## One\n\na\n\nNotes:\n\nfirst",
        "## Two\n\nb\n\nNotes:\n\nsecond",
        "## Three\n\nc",
    ]
    assert [name for _, name in made.headings] == ["One", "Two", "Three"]


def test_workers_read_text_as_the_client_does(parsed):
    """In files whose names do not say a format that is parsed."""
    assert parsed("a.md", b"# A\n\ntext").headings == [(0, "A")]
    for name in ("a.txt", "notes"):
        assert parsed(name, b"# A").headings == []
        error = (
            "not valid UTF-8 (byte 0xe9 at offset 3); if it is text, give its encoding (--encoding)"
        )
        assert parsed(name, b"caf\xe9").error == error
        assert parsed(name, b"\x89PNG\r").error == "it is a PNG image, and not text"


def test_the_share_that_is_lost_counts_no_addresses():
    assert lost_share("one two", "**one** two!") == 0
    assert lost_share("one two", "[one](http://two.example)") == pytest.approx(0.5)
    assert lost_share("", "x") == 0


@pytest.mark.parametrize("piece", ['<a "', "<", "<a", "<!--", "<script>", "<nav>", "<p>", "<b><i>"])
def test_hostile_pages_take_linear_time(piece):
    page = piece * 20_000
    assert scan(page).depth <= 40_000
    assert repaired(page) is not None


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("# a" + " " * 100_000 + "b", "a"),
        ("# a" + "\t#" * 50_000 + "b", None),
        ("#" + " " * 100_000 + "#", ""),
        ("a" * 100_000 + "\n" + "=" * 100_000, "a" * 120),
        ("a\n" + "-" * 100_000 + "b", ""),
        ("~~" * 50_000 + "\n# a\n" + "~" * 100_000, ""),
        ("# " + "[" * 100_000, "[" * 120),
        ("# a ## ", "a"),
        ("# a#", "a#"),
        ("# #", ""),
        ("#", ""),
    ],
)
def test_no_line_keeps_the_search_for_headings_busy(line, path):
    found = headings_of(f"{line}\n\n# last\n")
    names = [name for _, name in found]
    assert names[-1] == "last"
    assert path is None or names[:-1] == ([path] if path else [])
