"""Documents that are parsed: their text, pages and headings, and what hostile ones cost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from fanout.core.errors import InputError
from fanout.inputs.documents import FileSource, parsing
from fanout.inputs.documents.encodings import html_text
from fanout.inputs.documents.extraction import MEMORY, page_starts
from fanout.inputs.documents.files import InputFile, find_files
from fanout.inputs.documents.headings import headings_of
from fanout.inputs.documents.parsed import Parsed, Request
from fanout.inputs.documents.parsing import ParserPool
from fanout.inputs.splitters import make_splitter, split_documents
from tests.made_documents import (
    bomb_xlsx,
    deep_odt,
    docx,
    eml,
    encrypted_pdf,
    epub,
    odt,
    ole,
    pdf,
    pptx,
    scanned_pdf,
    xlsx,
    zipped,
)

MOST = 1_000_000
SHEET = '<row r="1"><c t="inlineStr"><is><t>total</t></is></c><c><v>7</v></c></row>'
TEXT = "<text:h text:outline-level='1'>Terms</text:h><text:p>caf\u00e9</text:p>"
PAGE = "<h1>Terms</h1><p>The <b>price</b></p><h2>Payment</h2><p>caf\u00e9</p>"
WORDS = "# Terms", "first", "---", "## Payment", "second caf\u00e9"
MAIL = "Subject: Caf\u00e9\nFrom: a@x.example\nTo: b@y.example\n\ncaf\u00e9"
# Each format, with its text and, where it has such, the text of its pages and its headings.
FORMATS = {
    "a.pdf": (pdf(["one\ntwo", "caf\u00e9", "three"]), "one\ntwo\n\ncaf\u00e9\n\nthree", 3, []),
    "b.docx": (docx(WORDS), "## Terms\n\nfirst\n\n### Payment\n\nsecond caf\u00e9", 2,
               ["Terms", "Terms > Payment"]),
    "c.pptx": (pptx([("One", "caf\u00e9"), ("Two", "b")]),
               "## One\n\ncaf\u00e9\n\n## Two\n\nb", 2, ["One", "Two"]),
    "d.odt": (odt(TEXT), "# Terms\n\ncaf\u00e9", 0, ["Terms"]),
    "e.rtf": (rb"{\rtf1\ansi caf\'e9 \b bold\b0\par}", "caf\u00e9 **bold**", 0, []),
    "f.html": (f"<html><head><title>T</title></head><script>x()</script>{PAGE}".encode(),
               "# Terms\n\nThe **price**\n\n## Payment\n\ncaf\u00e9", 0,
               ["Terms", "Terms > Payment"]),
    "g.epub": (epub([PAGE, "<h1>More</h1>"]),
               "# Terms\n\nThe **price**\n\n## Payment\n\ncaf\u00e9\n\n# More", 0,
               ["Terms", "Terms > Payment", "More"]),
    "h.eml": (eml("caf\u00e9".encode()), MAIL, 0, []),
    "h2.eml": (eml(b"<h1>Hi</h1><p>caf\xe9</p>", "text/html; charset=iso-8859-1"),
               MAIL.partition("\n\n")[0] + "\n\n# Hi\n\ncaf\u00e9", 0, []),
    "i.xlsx": (xlsx(SHEET), "## Sheet\n\n| total | 7 |\n| --- | --- |", 0, ["Sheet"]),
    "j.md": (b"# Terms\n\ntext\n", "# Terms\n\ntext\n", 0, ["Terms"]),
}  # fmt: skip
# Files that cost themselves, and why.
HOSTILE = {
    "zero.pdf": (b"", "the document is empty"),
    "secret.pdf": (encrypted_pdf(b"secret"), "it is encrypted, and needs a password"),
    "secret.docx": (ole("EncryptedPackage", "EncryptionInfo"), "it is encrypted"),
    "secret.odt": (odt("", "<manifest:encryption-data/>"), "it is encrypted"),
    "scan.pdf": (scanned_pdf(3), "its 3 pages hold images and no text"),
    "blank.pdf": (pdf([""]), "its only page holds"),
    "blank.docx": (docx([]), "it holds no text"),
    "cut.pdf": (pdf(["x"] * 9)[:900], "it cannot be read as a PDF: "),
    "cut.docx": (docx(["x"])[:300], "it is a damaged ZIP file"),
    "zip.docx": (zipped({"a.txt": "x"}), "it is a ZIP archive and no document"),
    "slides.odt": (zipped({"mimetype": "application/vnd.oasis.opendocument.presentation"}),
                   "of the type 'application/vnd.oasis.opendocument.presentation'"),
    "old.doc": (ole("Unknown"), "it cannot be read as a Word 97 document"),
    "image.pdf": (b"\x89PNG\r\n\x1a\n\0\0", "it is a PNG image, and not a PDF"),
    "junk.rtf": (bytes(range(256)), "it is not an RTF file, and its content is of no known kind"),
    "crash.odt": (deep_odt(), "the process that read it died (SIGSEGV)"),
    "charset.html": (b"<meta charset=utf-8><p>caf\xe9", "declares the charset 'utf-8', and is not"),
    "large.rtf": (b"{\\rtf1 " + b"x" * 2 * MOST + b"}", "2.0 MB is longer than the 1 MB"),
    "image.txt": (b"\x89PNG\r\n\x1a\n\xff", "it is a PNG image, and not text"),
}  # fmt: skip


# Processes that other tests have left idle.
OTHERS = set()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    OTHERS.clear()
    OTHERS.update(children())
    return tmp_path


def source(*inputs, **options):
    return FileSource(inputs, max_bytes=MOST, **options)


def children():
    every = psutil.Process().children()
    return [one for one in every if one not in OTHERS and "parser_process" in str(one.cmdline())]


def request(path, *, timeout_s=60.0):
    return Request(path=str(path), name=path.name, max_bytes=50 * MOST, timeout_s=timeout_s)


def test_a_folder_is_read_with_the_text_the_pages_and_the_headings_of_each_format(here):
    for name, (content, *_) in FORMATS.items():
        (here / name).write_bytes(content)
    found = {one.name: one for one in source(".").documents()}
    assert list(found) == list(FORMATS)
    for name, (_, text, pages, headings) in FORMATS.items():
        one = found[name]
        assert (one.error, one.text.strip()) == (None, text.strip()), name
        assert len(one.pages) == pages, name
        assert [path for _, path in one.headings] == headings, name
    assert children() == [], "they end with the reading"
    # A chunk knows its pages and the headings above it.
    chunks = list(split_documents(found.values(), make_splitter("lines", chunk_tokens=1)))
    seen = {(one.document, one.text): (one.pages, one.headings) for one in chunks}
    assert seen["a.pdf", "caf\u00e9"] == ([2], "")
    assert seen["b.docx", "second caf\u00e9"] == ([2], "Terms > Payment")
    assert seen["c.pptx", "## Two"] == ([2], "Two")


def test_a_hostile_file_costs_itself_with_its_reason(here):
    for name, (content, _) in HOSTILE.items():
        (here / name).write_bytes(content)
        (here / f"{name}.txt").write_text("fine")
        (here / f"{name}.rtf").write_text("{\\rtf1 fine}")
    found = {one.name: one for one in source(".").documents()}
    assert list(found) == sorted(found), "in order"
    for name, (_, words) in HOSTILE.items():
        assert words in str(found.pop(name).error), name
    assert {one.text.strip() for one in found.values()} == {"fine"}
    assert len(found) == 2 * len(HOSTILE)


LIARS = {
    "lie.txt": (pdf(["a PDF"]), "a PDF"),
    "lie.csv": (docx(["Word"]), "Word"),
    "lie.jsonl": (b"{\\rtf1 rich}", "rich"),
    "lie.docx": (pdf(["a PDF"]), "a PDF"),
    "lie.pdf": (b"plain text", "plain text"),
    "lie.doc": (b"<html><h1>page</h1></html>", "# page"),
    "silent": (docx(["Word"]), "Word"),
    "silent.bin": (epub(["<p>book</p>"]), "book"),
}


def test_the_content_decides_where_the_name_is_wrong_or_says_nothing(here):
    for name, (content, _) in LIARS.items():
        (here / name).write_bytes(content)
    for inputs in (list(LIARS), ["."], ["*"]):
        found = {one.name: one.text.strip() for one in source(*inputs).documents()}
        assert found == {name: text for name, (_, text) in LIARS.items()}
    stdin = source("-", stdin=io.BytesIO(LIARS["lie.txt"][0]))
    assert [(one.name, one.text) for one in stdin.documents()] == [("stdin", "a PDF")]


def test_text_whose_name_says_otherwise_is_read_with_a_warning_that_names_the_first_files(here):
    names = ("a.docx", "b.pdf", "c.rtf", "d.odt", "e.epub", "f.html", "g.eml", "h.pdf")
    for name in names[:-1]:
        (here / name).write_text("plain text")
    (here / names[-1]).write_bytes(pdf(["a PDF"]))
    told = []
    found = source(".", notify=told.append)
    for _ in range(2):
        assert all("plain text" in one.text for one in [*found.documents()][:5])
    assert all(one.is_warning for one in told)
    assert [one.text for one in told] == [
        "reading a.docx as text: it is not a Word document",
        "reading b.pdf as text: it is not a PDF",
        "reading c.rtf as text: it is not an RTF file",
        "reading more files as text, as they are not what their names say",
    ]


def test_no_archive_is_opened_in_the_client(here, monkeypatch):
    (here / "a").write_bytes(docx(["Word"]))
    (here / "b.bin").write_bytes(epub(["<p>book</p>"]))
    (here / "c.zip").write_bytes(zipped({"word/document.xml": "x"}))
    (here / "d.jar").write_bytes(zipped({"META-INF/MANIFEST.MF": "x"}))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert [one.text.strip() for one in source(".").documents()] == ["Word", "book"]


def test_a_document_that_takes_too_long_too_much_or_a_signal_costs_or_loses_nothing_else(
    here, monkeypatch
):
    monkeypatch.setattr(parsing, "_MEMORY_MB", 150)
    (here / "slow.pdf").write_bytes(pdf([f"page {number}" for number in range(6_000)]))
    (here / "bomb.xlsx").write_bytes(bomb_xlsx(200_000))
    (here / "fine.rtf").write_text("{\\rtf1 fine}")
    slow, bomb, fine = (here / name for name in ("slow.pdf", "bomb.xlsx", "fine.rtf"))
    with ParserPool(processes=1) as pool:
        late = pool.parse_all([request(slow, timeout_s=0.2), request(fine)])
        assert next(late).error == "reading it took longer than 0.2 s (parse_timeout_s)"
        assert next(late).text.strip() == "fine"
        assert pool.parse(request(bomb)).error == MEMORY
        # Who is killed by others is not at fault, and is read once more.
        done = pool.parse_all([request(fine), request(slow), request(fine)])
        assert next(done).text.strip() == "fine"
        [child] = children()
        child.kill()
        assert len(next(done).pages) == 6_000
        assert next(done).text.strip() == "fine"
        assert [one.pid for one in children()] != [child.pid]
    assert children() == []


class Clock:
    """The clock of the parsers, which may jump."""

    def __init__(self):
        self.jumped_s = 0.0

    def monotonic(self):
        return time.monotonic() + self.jumped_s


def test_a_pause_of_the_caller_is_no_time_of_a_document(here, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(parsing, "time", clock)
    (here / "large.rtf").write_bytes(b"{\\rtf1 " + b"fine " * 400_000 + b"}")

    def requests():
        for _ in range(4):
            yield request(here / "large.rtf")
            # As a store does that is slow to send the next.
            clock.jumped_s += 1_000

    with ParserPool(processes=2) as pool:
        for parsed in pool.parse_all(requests()):
            assert parsed.error is None
            # As a loop does over the documents, or a server that refuses writes.
            clock.jumped_s += 1_000


def test_a_process_that_is_silent_is_ended_and_costs_its_document(here, monkeypatch):
    clock, readable = Clock(), parsing._readable
    (here / "fine.rtf").write_text("{\\rtf1 fine}")

    def jumps(outputs, wait_s):
        ready = readable(outputs, wait_s and 0.01)
        clock.jumped_s += wait_s and 10
        return ready

    with ParserPool(processes=1) as pool:
        assert pool.parse(request(here / "fine.rtf")).error is None
        [child] = children()
        child.suspend()
        monkeypatch.setattr(parsing, "time", clock)
        monkeypatch.setattr(parsing, "_readable", jumps)
        late = pool.parse(request(here / "fine.rtf"))
        assert late.error == "reading it took longer than 60 s (parse_timeout_s)"


def test_results_are_in_order_and_only_a_few_documents_are_taken_in_advance(here):
    (here / "slow.pdf").write_bytes(pdf([f"page {number}" for number in range(1_500)]))
    (here / "fine.rtf").write_text("{\\rtf1 fine}")
    taken = []

    def requests():
        for number in range(50):
            taken.append(number)
            yield request(here / ("fine.rtf" if number else "slow.pdf"))

    with ParserPool(processes=2) as pool:
        results = pool.parse_all(requests())
        assert len(next(results).pages) == 1_500
        assert len(taken) <= 10
        assert {one.text.strip() for one in results} == {"fine"}
        assert len(children()) == 2


def test_a_process_that_parses_has_no_secrets_prints_nothing_and_ends_with_its_client(
    here, monkeypatch, capfd
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (here / "fine.rtf").write_text("{\\rtf1 fine}")
    pool = ParserPool(processes=1)
    assert pool.parse(request(here / "fine.rtf")).error is None
    [child] = children()
    assert "OPENAI_API_KEY" not in child.environ()
    # Ctrl-C is for the client.
    assert os.getsid(child.pid) != os.getsid(0)
    child.send_signal(signal.SIGINT)
    assert pool.parse(request(here / "fine.rtf")).error is None
    pool._children[0]._input.close()
    assert psutil.wait_procs([child], timeout=90)[1] == []
    pool.close()
    assert capfd.readouterr() == ("", "")


def test_no_process_starts_where_no_document_is_parsed(here, monkeypatch):
    monkeypatch.setattr(parsing, "_Child", None)
    (here / "a.txt").write_text("fine")
    (here / "b.md").write_text("# fine")
    assert [one.error for one in source(".").documents()] == [None, None]


def test_the_first_pdf_of_a_machine_is_read_and_no_part_of_the_library_stays(here, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    unpacked = here / "tmp/kreuzberg-pdfium"
    unpacked.mkdir(parents=True)
    for name, age_s in (("libpdfium.tmp.1", 0), ("libpdfium.tmp.2", 7_200)):
        (unpacked / name).write_bytes(b"x")
        os.utime(unpacked / name, (time.time() - age_s,) * 2)
    (here / "a.pdf").write_bytes(pdf(["one", "two"]))
    [one] = source("a.pdf").documents()
    assert (one.error, one.text, len(one.pages)) == (None, "one\n\ntwo", 2)
    found = {path.name: path.stat().st_size for path in unpacked.iterdir()}
    # One part may be of a process that is unpacking it.
    assert found.keys() == {"libpdfium.tmp.1", "libpdfium.so"}
    assert found["libpdfium.so"] > MOST, "it is larger than what a process may write later"


def test_a_pdf_library_that_cannot_be_unpacked_costs_pdfs_alone_and_says_what_to_do(
    here, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    (here / "tmp").mkdir()
    (here / "tmp/kreuzberg-pdfium").write_text("no folder")
    (here / "a.pdf").write_bytes(pdf(["one"]))
    (here / "b.rtf").write_text("{\\rtf1 fine}")
    first, second = source("a.pdf", "b.rtf").documents()
    assert f"cannot be unpacked to {here / 'tmp/kreuzberg-pdfium'}: " in first.error
    assert first.error.endswith("make room, or set TMPDIR to another folder")
    assert (second.error, second.text.strip()) == (None, "fine")


def test_a_missing_library_names_itself_once_with_the_line_that_installs_it(here, monkeypatch):
    monkeypatch.setattr(parsing, "find_spec", lambda _name: None)
    for name in ("a.pdf", "b.docx"):
        (here / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.pdf: .*pip install 'fanout-llm\[documents\]'"):
        source(".")


def test_a_process_that_does_not_start_says_why(here, monkeypatch):
    monkeypatch.setattr(parsing, "_MODULE", "fanout.no_such_module")
    (here / "a.pdf").write_bytes(pdf(["x"]))
    with pytest.raises(InputError, match=r"does not start: .*no_such_module"):
        list(source("a.pdf").documents())


def test_a_document_that_has_gone_ends_the_reading(here):
    (here / "a.rtf").write_text("{\\rtf1 fine}")
    read = source("a.rtf")
    (here / "a.rtf").unlink()
    with pytest.raises(InputError, match=r"a\.rtf: was there, and is gone now"):
        list(read.documents())


def test_a_reason_takes_the_place_of_a_request():
    gone = Parsed(error="gone")
    with ParserPool() as pool:
        assert list(pool.parse_all([gone, gone])) == [gone, gone]
    assert children() == []


# Encodings.

ROWS = 'text,who\n"na\u00efve \u65e5",Ann\n'


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "shift_jis", "utf-16-le"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv", "a.jsonl", "a.json", "a.html", "a.log"])
def test_text_is_read_in_the_encoding_that_it_says_or_that_is_given(here, name, encoding):
    word = "\u65e5\u672c" * 20
    content = {
        "a.csv": f"text,who\n{word},Ann\n",
        "a.jsonl": f'{{"text": "{word}"}}\n',
        "a.json": f'[{{"text": "{word}"}}]',
        "a.html": f"<html><body>{word}</body></html>",
    }.get(name, word)
    (here / name).write_bytes(content.encode(encoding))
    given = None if encoding in {"utf-8", "utf-8-sig", "utf-16", "utf-32"} else encoding
    [document] = source(name, encoding=given).documents()
    assert (document.error, document.text.strip()) == (None, word)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_bytes_that_are_not_of_the_encoding_cost_their_row(here, name):
    rows = {"a.csv": ["text", "fine", "bad", "fine"], "a.jsonl": ['"fine"', '"bad"', '"fine"']}
    data = "\n".join(rows[name]).encode().replace(b"bad", b"b\x81\xff")
    (here / name).write_bytes(data)
    first, bad, last = source(name, encoding="shift_jis").documents()
    assert (first.text, last.text) == ("fine", "fine")
    assert bad.error.endswith("not valid shift_jis")


@pytest.mark.parametrize(
    ("data", "encoding", "made"),
    [
        (b"<p>caf\xc3\xa9", None, "caf\u00e9"),
        (b"<meta charset=iso-8859-1><p>caf\xe9", None, "caf\u00e9"),
        (b"<meta charset=iso-8859-1><p>\x93caf\xe9\x94", None, "\u201ccaf\u00e9\u201d"),
        (b"<meta http-equiv=x content='text/html; charset=windows-1251'>\xe9", None, "\u0439"),
        (b"<meta charset=iso-8859-1><p>caf\xc3\xa9", None, "caf\u00e9"),
        (b"<meta charset=iso-2022-jp>\x1b$BF|\x1b(B", None, "\u65e5"),
        (b"<?xml version='1.0' encoding='latin-1'?><html>\xe9", None, "\u00e9"),
        (b"<meta charset=utf-8><p>caf\xe9", "latin-1", "caf\u00e9"),
        ("\ufeff<p>caf\u00e9".encode("utf-16-le"), None, "caf\u00e9"),
    ],
)
def test_a_page_is_read_in_its_charset(data, encoding, made):
    assert made in html_text(data, encoding)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<p>caf\xe9", "it declares no charset: give its encoding"),
        (b"<meta charset=utf-8><p>caf\xe9", "declares the charset 'utf-8', and is not valid UTF-8"),
        (b"<meta charset=klingon><p>caf\xe9", "'klingon', which is unknown"),
        (b"<meta charset=base64><p>caf\xe9", "'base64', which is unknown"),
        (b"<meta charset=shift_jis><p>\x81\xff", "not valid shift_jis"),
    ],
)
def test_a_page_in_another_charset_than_it_declares_is_an_error(data, words):
    with pytest.raises(ValueError, match="give its encoding") as caught:
        html_text(data)
    assert words in str(caught.value)


# Headings and pages.


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("", []),
        ("# A\ntext\n## B\n# C", [(0, "A"), (9, "A > B"), (14, "C")]),
        ("### Deep\n# A", [(0, "Deep"), (9, "A")]),
        ("A\n===\nx\n\nB\n---\n", [(0, "A"), (9, "A > B")]),
        ("```\n# no\n```\n# yes", [(13, "yes")]),
        ("~~~\n# no\n```\n# no\n~~~\n# yes ##", [(22, "yes")]),
        ("#no\n#\n####### no\n    # code", []),
        ("# **Bold** [link](http://x) \\# end", [(0, "Bold link # end")]),
        ("text\n\n---\n\n- item\n---", []),
    ],
)
def test_the_headings_of_markdown(text, headings):
    assert headings_of(text) == headings


@pytest.mark.parametrize(
    ("text", "pieces", "starts"),
    [
        ("a b\n\nc", ["a b", "c"], [0, 5]),
        ("# a\n\n## b c", ["# a", "## b c"], [0, 5]),
        ("| a | b |\n| --- | --- |\nc", ["| a   | b   |\n|-----|-----|", "c"], [0, 24]),
        ("a b c", ["a", "b c"], [0, 0]),
        ("a b", ["a"], []),
        ("a b", ["a", "c d"], []),
    ],
)
def test_where_pages_begin_in_a_text(text, pieces, starts):
    assert page_starts(text, pieces) == starts


def test_a_file_that_cannot_be_opened_costs_itself(here, monkeypatch):
    (here / "a.rtf").write_text("{\\rtf1 fine}")
    (here / "folder.pdf").mkdir()
    request_ = request(Path(here / "folder.pdf"))
    with ParserPool() as pool:
        assert "cannot be read: Is a directory" in pool.parse(request_).error
        assert pool.parse(request(here / "a.rtf")).text.strip() == "fine"


# The search for files.


def test_many_files_are_kept_in_order_in_little_memory(here):
    for number in range(2_500):
        folder = here / f"d{number % 3}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.{'md' if number % 2 else 'txt'}").touch()
    (here / "d1.txt").touch()
    (here / "d1" / "a\nb.txt.gz").write_bytes(b"\x1f\x8b")
    found = find_files(["."], here, lambda _notice: None)
    expected = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert [one.name for one in found] == list(map(str, expected))
    assert len(found) == 2_502
    assert {one.packing for one in found} == {None, ".gz"}
    changed = InputFile(name="other", kind="json")
    found[1_500] = changed
    assert found[1_500] == changed
    assert [one.name for one in found][1_499] == str(expected[1_499])
    # Not an object for each: only their names.
    assert sum(len(names) for _, names, _ in found._groups) < 2_502 * 12


def test_folders_may_be_nested_deeper_than_python_s_stack(here):
    try:
        top = os.open(here, os.O_RDONLY)
        for _ in range(1_500):
            os.mkdir("d", dir_fd=top)
            below = os.open("d", os.O_RDONLY, dir_fd=top)
            os.close(top)
            top = below
        os.close(os.open("a.txt", os.O_CREAT | os.O_WRONLY, dir_fd=top))
        os.close(top)
        [found] = find_files(["."], here, lambda _notice: None)
        assert found.name == "d/" * 1_500 + "a.txt"
    finally:
        # Python's own removal of folders is recursive.
        subprocess.run(["rm", "-r", here / "d"], check=True)
