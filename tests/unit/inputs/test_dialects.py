"""How tables are written is found out, told if it is unusual, and costs no row."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.errors import InputError
from fanout.inputs.documents import FileSource

MAX = 100_000


def read(folder, content, name="a.csv", **options):
    """What a table gives, as texts with the other cells, and what a user is told of it."""
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    notices: list[str] = []
    source = FileSource(
        [name], base=folder, max_bytes=MAX, notify=lambda one: notices.append(one.text), **options
    )
    rows = [one.error or (*one.columns.values(), one.text) for one in source.documents()]
    return rows, [text.removeprefix(f"reading {name} with ") for text in notices]


@pytest.mark.parametrize(
    ("content", "rows", "told"),
    [
        # Quotes with a backslash before them.
        ('id,text\n1,"a \\"b, c\\" d"\n2,e\n', [("1", 'a "b, c" d'), ("2", "e")],
         ["',', backslashes before quotes"]),
        ('id;text\n1;"a \\"b\\" \\\\ \\n"\n', [("1", 'a "b" \\ \\n')],
         ["';', backslashes before quotes"]),
        # A backslash that stands for itself.
        ('id,text\n1,"C:\\"\n2,"a\\b"\n', [("1", "C:\\"), ("2", "a\\b")], []),
        ('id,text\n1,"{""a"": ""\\""x\\""""}"\n', [("1", '{"a": "\\"x\\""}')], []),
        # Single quotes.
        ("id,text\n1,'a, b'\n2,'it''s'\n3,c\n", [("1", "a, b"), ("2", "it's"), ("3", "c")],
         ["',', cells in single quotes"]),
        ("'id'|'text'\n'1'|'a'\n", [("1", "a")], ["'|', cells in single quotes"]),
        ("id,text\n1,'a'\n2,'b'\n", [("1", "a"), ("2", "b")], ["',', cells in single quotes"]),
        ("id,text\n1,'it\\'s, so'\n2,'b'\n", [("1", "it's, so"), ("2", "b")],
         ["',', cells in single quotes, backslashes before quotes"]),
        # Apostrophes.
        ("id,text\n1,'tis\n2,it's\n3,'so'\n", [("1", "'tis"), ("2", "it's"), ("3", "'so'")], []),
        # Spaces before cells.
        ('id, text\n1, "a, b"\n2, c\n', [("1", "a, b"), ("2", "c")], ["',', spaces before cells"]),
        ("id, text\n1, a\n", [("1", " a")], []),
        # Ends of lines.
        ("id,text\r\n1,a\r\n2,b\r\n", [("1", "a"), ("2", "b")], []),
        ("id,text\r1,a\r2,b", [("1", "a"), ("2", "b")], []),
        ("id,text\n1,a\r\n2,b\n3,c\r4,d\r\n\r\n5,e", [(n, t) for n, t in zip("12345", "abcde", strict=True)],
         []),
        ('id,text\r1,"a\rb"\r2,c\r', [("1", "a\nb"), ("2", "c")], []),
        ("id,text\n1,a\rb\n2,c\n",
         ["not valid CSV: there is a carriage return in the middle of a line", ("2", "c")], []),
        # The first line of Excel, and a byte order mark.
        ("sep=;\nid;text\n1;a\n", [("1", "a")], ["';'"]),
        ("\ufeffsep=,\r\nid,text\r\n1,a\r\n", [("1", "a")], []),
        ('\ufeff"id",text\n1,a\n', [("1", "a")], []),
        # Columns without a name.
        (",id,text,\n0,1,a,b\n", [("0", "1", "b", "a")], []),
        # One column is the text under any name.
        ("text\na\n", [("a",)], []),
        ("review\na\n", [("a",)], ["its only column, 'review', as the text"]),
        # Rows that are too short or too long, and NULs.
        ("id,text\n1\n2,a,b\n3,a\0b\n4,c\n",
         ["1 cell, but the header has 2", "3 cells, but the header has 2",
          "it holds NUL bytes, so it is not text", ("4", "c")], []),
    ],
)  # fmt: skip
def test_a_table_is_read_as_it_is_written(tmp_path, content, rows, told):
    assert read(tmp_path, content) == (rows, told)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "text", ["good\nphone", "a\n\nb\n", "Hello, dear\nfriend", 'a ""b""\nc', "one\ntwo\nthree"]
)
@pytest.mark.parametrize("columns", ["text,stars", "stars,text", "a,text,stars"])
def test_a_text_of_several_lines_in_any_column_is_one_row(tmp_path, columns, text, delimiter):
    names = columns.split(",")
    values = {"text": f'"{text}"', "stars": "5", "a": "x"}
    lines = [names, *([values[name] for name in names] for _ in range(3))]
    content = "\n".join(map(delimiter.join, lines))
    rows, _ = read(tmp_path, content, text_column="text")
    others = tuple(values[name] for name in names if name != "text")
    assert rows == [(*others, text.replace('""', '"'))] * 3


@pytest.mark.parametrize(
    ("content", "given", "rows", "told"),
    [
        ("id\ttext\n1\ta\n", None, [("1", "a")], []),
        ("id,text\n1,a\n", None, [("1", "a")], ["','"]),
        ("id;text\n1;a\n", None, [("1", "a")], ["';'"]),
        ("id;text\n1;a\n", ";", [("1", "a")], []),
        ("text\na, b\n", None, [("a, b",)], []),
    ],
)
def test_a_tsv_is_checked_too(tmp_path, content, given, rows, told):
    assert read(tmp_path, content, name="a.tsv", delimiter=given) == (rows, told)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,text,x,id\n1,a,2,3\n", "'id' more than once, at the positions 1 and 4: rename"),
        ("text,x,x,x\na,1,2,3\n", "'x' more than once, at the positions 2, 3 and 4: rename"),
        ("1,great thing\n2,bad thing\n", "its first row looks like data"),
        ("2024,2025\n1,2\n", "its first row looks like data"),
        ("id,review\n1,a\n", "there is no column 'text' (it has: id, review)"),
    ],
)
def test_a_header_that_is_none_is_an_error(tmp_path, content, words):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert words in str(caught.value)


@pytest.mark.parametrize("fault", ['"open', 'a,"open', '"a"b', "a,b,c", "one", "a\0b,c"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_fault_costs_no_other_row_in_any_dialect(tmp_path, delimiter, fault):
    lines = ["id,text", *(f'{at},"a, b {at}"' for at in range(4)), fault,
             *(f'{at},"c, d {at}"' for at in range(4, 8))]  # fmt: skip
    content = "\n".join(lines).replace(",", delimiter).replace(f"{delimiter} ", ", ")
    rows, _ = read(tmp_path, content)
    found = [row for row in rows if isinstance(row, tuple)]
    expected = [(str(at), f"{'a, b' if at < 4 else 'c, d'} {at}") for at in range(8)]
    assert [row for row in expected if row not in found] == []


# Of tabs in a text next to tabs between cells, nobody can tell which are which if a quote is missing.
_CELL = st.text(st.sampled_from("ab1 ,;|'\"\\\n\u00e9."), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(_CELL, _CELL), min_size=3, max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_python_writes_is_read_as_it_was(tmp_path_factory, rows, delimiter, quoting, end):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    written = [(f"r{at} {cell}", f"t {text}") for at, (cell, text) in enumerate(rows)]
    writer.writerows([("id", "text"), *written])
    found, _ = read(tmp_path_factory.mktemp("t"), file.getvalue(), delimiter=delimiter)
    assert found == written


def test_a_header_that_is_too_long_is_said_to_be(tmp_path):
    header = "text," + ",".join(f"c{n}" for n in range(20_000))
    assert read(tmp_path, f"{header}\nx\n") == (["the header is longer than 64 kB"], [])
