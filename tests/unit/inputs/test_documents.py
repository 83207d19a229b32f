from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import math
import os
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.core import cells
from fanout.core.cells import cell_of
from fanout.core.errors import InputError, PromptError, SpecError
from fanout.core.records import Document
from fanout.core.spec import make_spec
from fanout.inputs.documents import FileSource, from_strings
from fanout.inputs.intake import checked_documents
from tests.memory import peak_bytes

MAX = 1000
DEEP = functools.reduce(lambda made, _: [made], range(2000), [])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*inputs, max_bytes=MAX, **options):
    return list(FileSource(inputs, max_bytes=max_bytes, **options).documents())


def texts(documents):
    return [document.text for document in documents]


def errors(documents):
    return [document.error for document in documents]


def test_strings_become_documents_in_order():
    documents = list(from_strings(["a", "b"], max_bytes=MAX))
    assert documents == [
        Document(name="item 1", index=0, text="a"),
        Document(name="item 2", index=1, text="b"),
    ]


def test_rows_keep_their_other_columns_with_their_types():
    row = {"text": "a", "n": 1, "who": "Ann", "none": None, "tags": ["x"]}
    [document] = from_strings([row], max_bytes=MAX)
    assert document.text == "a"
    assert document.columns == {"n": 1, "who": "Ann", "none": None, "tags": ["x"]}


def test_documents_pass_through_and_are_counted():
    given = Document(name="mine", index=7, text="a")
    assert list(from_strings(["x", given], max_bytes=MAX))[1] == Document(
        name="mine", index=1, text="a"
    )


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ("one", "not one string: put it in a list"),
        (b"one", "not bytes: decode"),
        ({"text": ["a", "b"]}, "not one dict"),
        (Path("a.txt"), r"give files as inputs=\['a.txt'\]"),
        ({"id": 1, "text": "a"}, "put it in a list"),
        ({"a": ["x", "y"]}, "whose 'a' is a list: a mapping has a name and its text"),
        (7, "a list of strings or rows, not int"),
        (Document(name="d", index=0, text="a"), "not one Document"),
    ],
)
def test_what_is_no_list_of_strings_is_refused(items, words):
    with pytest.raises(InputError, match=words):
        from_strings(items, max_bytes=MAX)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (1, "must be a string or a mapping, not int"),
        (b"x", "not bytes"),
        (None, "it is missing"),
        (math.nan, "it is missing (nan)"),
        (Path("a.txt"), "give files as inputs"),
        ({"text": math.nan}, "the column 'text' is missing (nan)"),
        ({"text": 3}, "must be a string, not int"),
        (
            {"text": "x", "deep": functools.reduce(lambda made, _: [made], range(2000), [])},
            "a column cannot",
        ),
    ],
)
def test_an_item_that_cannot_be_used_costs_itself(item, words):
    before, bad, after = from_strings(["before", item, "after"], max_bytes=MAX)
    assert (before.text, after.text, bad.text) == ("before", "after", "")
    assert words in bad.error


def test_strings_are_read_lazily():
    taken = []

    def source():
        for i in range(100):
            taken.append(i)
            yield "x"

    next(from_strings(source(), max_bytes=MAX))
    assert taken == [0]


def test_a_text_file_is_one_document(here):
    (here / "a.txt").write_text("\ufeffhä\nllo")
    assert read("a.txt") == [Document(name="a.txt", index=0, text="hä\nllo")]


def test_a_folder_is_searched_in_order_and_hidden_files_are_not(here):
    for name in ("b/2.md", "b/1.txt", "a.csv", ".hidden/x.txt", "b/.x.txt", "b/image.png"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("text\nrow" if name.endswith(".csv") else name)
    assert [document.name for document in read(".")] == ["a.csv:2", "b/1.txt", "b/2.md"]


def test_a_glob_may_cross_folders(here):
    (here / "x" / "y").mkdir(parents=True)
    (here / "x" / "y" / "1.txt").write_text("1")
    (here / "x" / "2.txt").write_text("2")
    assert texts(read("**/*.txt")) == ["2", "1"]
    assert texts(read(str(here / "x" / "*.txt"))) == ["2"]


def test_standard_input_is_one_document():
    assert read("-", stdin=io.BytesIO(b"a\nb")) == [Document(name="stdin", index=0, text="a\nb")]


def test_several_inputs_are_counted_through(here):
    (here / "a.txt").write_text("a")
    (here / "b.jsonl").write_text('"b"\n"c"')
    assert [(d.index, d.text) for d in read("a.txt", "b.jsonl", "a.txt")] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "a"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.txt", r"none\.txt: there is no such file"),
        ("*.txt", r"\*\.txt: no file matches"),
        (
            "empty",
            r"empty: no file of a known kind in this folder; known are text \(\.txt, \.md\), tab",
        ),
    ],
)
def test_an_input_that_is_not_there_is_found_before_anything_is_read(here, name, words):
    (here / "empty").mkdir()
    (here / "ok.md").write_text("fine")
    with pytest.raises(InputError, match=words):
        FileSource(["ok.md", name], max_bytes=MAX)


def test_jsonl_rows_are_named_by_line(here):
    (here / "r.jsonl").write_text('{"text": "a", "n": 1}\n\n"plain"\n')
    assert read("r.jsonl") == [
        Document(name="r.jsonl:1", index=0, text="a", columns={"n": 1}, text_at=0),
        Document(name="r.jsonl:3", index=1, text="plain"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": ', "not valid JSON"),
        (b'{"body": "x"}', "no column 'text' (it has: body)"),
        (b'{"text": 3}', "'text' must be a string, not int"),
        (b"[1]", "must be a JSON object or string, not list"),
        (
            b'{"text": "caf\xe9"}',
            "not valid UTF-8 (byte 0xe9 at offset 13); give its encoding (--encoding)",
        ),
        (b'{"text": " "}', "the document is empty"),
        (b'"' + b"x" * MAX + b'"', "1 kB is longer than the 0.001 MB a document may have"),
        (b"[" * 900, "not "),
    ],
)
def test_a_bad_jsonl_line_costs_that_line(here, line, words):
    (here / "r.jsonl").write_bytes(b'"before"\n' + line + b'\n"after"\n')
    before, bad, after = read("r.jsonl")
    assert (before.text, after.text, after.name) == ("before", "after", "r.jsonl:3")
    assert words in bad.error
    assert bad.name == "r.jsonl:2"
    # White space comes out as it went in.
    assert not bad.text.strip()


def test_no_error_quotes_a_document(here):
    (here / "r.jsonl").write_text('{"text": "SECRET" SECRET}\n{"text": ["SECRET"]}\n')
    assert "SECRET" not in str(errors(read("r.jsonl")))


def test_csv_rows_are_named_by_the_line_they_start_at(here):
    (here / "r.csv").write_text('text,who\n"two\nlines",Ann\nplain,Bob\n')
    assert read("r.csv") == [
        Document(name="r.csv:2", index=0, text="two\nlines", columns={"who": "Ann"}, text_at=0),
        Document(name="r.csv:4", index=1, text="plain", columns={"who": "Bob"}, text_at=0),
    ]


def test_the_only_column_of_a_csv_is_its_text(here):
    (here / "r.csv").write_text("review\ngood\n")
    assert texts(read("r.csv")) == ["good"]


def test_the_text_column_can_be_named(here):
    (here / "r.csv").write_text("id,review\n1,good\n")
    [document] = read("r.csv", text_column="review")
    assert (document.text, document.columns) == ("good", {"id": "1"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n", "line 1: there is no column 'text' (it has: a, b)"),
        (b"text,n,n\n1,2,3\n", "the column 'n' more than once"),
        (b"b;c, d\n1;2,3\n2;3,4\n", "the delimiter between its cells may be ',' or ';'"),
    ],
)
def test_a_csv_without_the_column_is_the_whole_input_s_fault(here, content, words):
    (here / "r.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read("r.csv")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"a,b,c", "3 cells, but the header has 2"),
        (
            b"caf\xe9,x",
            "not valid UTF-8 (byte 0xe9 at offset 3); give its encoding (--encoding)",
        ),
        (b",x", "the document is empty"),
        (b'"a"b,x', "not valid CSV"),
        (b"x" * (MAX + 10) + b",y", "is longer than"),
    ],
)
def test_a_bad_csv_row_costs_that_row(here, row, words):
    (here / "r.csv").write_bytes(b"text,who\nbefore,x\n" + row + b"\nafter,x\n")
    documents = read("r.csv")
    assert [d.text for d in documents if d.error is None] == ["before", "after"]
    [bad] = [d for d in documents if d.error is not None]
    assert words in bad.error
    assert bad.name == "r.csv:3"


def test_a_text_file_that_is_too_large_says_its_size(here):
    (here / "a.txt").write_bytes(b"x" * 3_500_000)
    [document] = read("a.txt", max_bytes=1_000_000)
    assert document.error == "3.5 MB is longer than the 1 MB a document may have"


def test_reading_holds_neither_a_huge_line_nor_many_rows_in_memory(here):
    row = json.dumps({"text": "x" * 100}) + "\n"
    with (here / "r.jsonl").open("w") as file:
        file.write('{"text": "' + "x" * 60_000_000 + '"}\n')
        for _ in range(100_000):
            file.write(row)

    def read_all():
        count = sum(1 for _ in FileSource(["r.jsonl"], max_bytes=1_000_000).documents())
        assert count == 100_001

    assert peak_bytes(read_all) < 8_000_000


def test_half_a_character_costs_the_document_that_holds_it():
    spec = make_spec(model="fake", prompt="{input}")
    half = "caf\ud800"
    wrong = [half, ["a", half], [1, [2.5, half]], {"k": {half: 1}}, {"k": [{"l": half}]}]
    rows = [
        {"text": "fine", "who": ["a", [1.5, {"k": "v"}]]},
        {"text": half},
        {"text": "x", half: "y"},
        *({"text": "x", "who": cell} for cell in wrong),
    ]
    fine, *faulty = checked_documents(spec, rows)
    assert fine.error is None
    assert {one.error for one in faulty} == {
        "it has a lone surrogate (half a character) at offset 3"
    }
    assert [one.index for one in faulty] == list(range(1, len(rows)))


def test_an_embedding_is_not_looked_at_number_by_number(monkeypatch):
    looked = []
    monkeypatch.setattr(cells, "_number", looked.append)
    spec = make_spec(model="fake", prompt="{input}")
    vector = [0.5] * 1536
    (document,) = checked_documents(spec, [{"text": "x", "vector": vector}])
    assert document.columns == {"vector": vector}
    assert not looked
    cell_of([0.5, math.nan])
    assert looked == [0.5]


# Faults in tables cost the rows that have them.


def csv_of(rows):
    return "\n".join(["id,text", *rows]) + "\n"


PLAIN = [f"{i},review {i}" for i in range(1, 101)]


def changed(**rows):
    return csv_of([rows.get(f"r{i}", row) for i, row in enumerate(PLAIN, 1)])


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        (changed(r2='2,"a 5 inch pipe, I liked it'), 99, ["t.csv:3"]),
        (changed(r2='2,"a 5 inch pipe, I', r50='50,"no end', r99='99,"none'), 97,
         ["t.csv:3", "t.csv:51", "t.csv:100"]),
        (changed(r2='2,"a 5 inch pipe, I', r9='9,pipe of 6"', r20='20,"fine, it is"'), 99,
         ["t.csv:3"]),
        (changed(r2='2,"a 5 inch pipe, I', r20='20,"two\nlines, and ""more"""'), 99, ["t.csv:3"]),
        (changed(r2='2,"a 5 inch pipe', r3="no row at all", r4="nor this"), 97, ["t.csv:3"]),
        (changed(r2='"2,review', r3='3,""', r4='4,",",'), 97, ["t.csv:3", "t.csv:4", "t.csv:5"]),
        (changed(r100='100,"the last one'), 99, ["t.csv:101"]),
        (changed(r1='1,"the first one'), 99, ["t.csv:2"]),
        (changed(r2="2,a\0b", r3="3,\ud83d"), 98, ["t.csv:3", "t.csv:4"]),
        (changed(r2="2,a,b", r3="3"), 98, ["t.csv:3", "t.csv:4"]),
    ],
)  # fmt: skip
def test_a_fault_in_a_table_costs_its_row_and_says_which_lines(here, text, good, bad):
    (here / "t.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    documents = read("t.csv", max_bytes=10_000)
    assert [d.name for d in documents if d.error] == bad
    assert len([d for d in documents if not d.error]) == good


def test_the_lines_of_a_row_that_is_lost_are_named(here):
    (here / "t.csv").write_text(changed(r2='2,"a 5 inch pipe', r3="no row at all", r4="nor this"))
    [bad] = [d for d in read("t.csv") if d.error]
    assert bad.error == (
        "not valid CSV: a quote that opens here is not closed within the size that a document may "
        "have (lines 3 to 5)"
    )


def test_text_in_quotes_that_looks_like_rows_stays_text(here):
    text = "Hello, dear\nI am, well\nBye, all"
    (here / "t.csv").write_text(f'name,text\nAnn,"{text}"\nBob,fine\n')
    assert texts(read("t.csv")) == [text, "fine"]


@pytest.mark.parametrize(
    ("name", "content", "first", "told"),
    [
        ("t.csv", "id;text\n1;a, b\n2;c", "a, b", "reading t.csv with ';'"),
        ("t.csv", "id\ttext\n1\ta, b\n2\tc", "a, b", "reading t.csv with tabs"),
        ("t.csv", "id|text\n1|a, b\n2|c", "a, b", "reading t.csv with '|'"),
        ("t.csv", "id;text, raw;text\n1;2,5;a\n2;3,5;b", "a", "reading t.csv with ';'"),
        ("t.csv", "sep=;\nid;text\n1;a", "a", "reading t.csv with ';'"),
        ("t.csv", "id,q (a|b),text\n1,2,a;b|c\n", "a;b|c", None),
        ("t.csv", "\ufeffid,text\r\n1,a\r\n", "a", None),
        ("t.tsv", "id\ttext\n1\ta, b", "a, b", None),
        ("t.tsv", 'id\ttext\n1\t"Great" film, "5 inch\n2\tc', '"Great" film, "5 inch', None),
        ("t.tsv", 'id\ttext\n1\t"Great film\n2\t"Bad film\n', '"Great film', None),
        ("t.tsv", 'id\ttext\n1\t"two\nlines"\n', "two\nlines", None),
    ],
)
def test_the_delimiter_is_detected_and_reported(here, name, content, first, told):
    (here / name).write_text(content)
    notices = []
    documents = read(name, notify=notices.append)
    assert errors(documents) == [None] * len(documents)
    assert documents[0].text == first
    assert [notice.text for notice in notices] == ([told] if told else [])


def test_the_delimiter_can_be_given(here):
    (here / "t.csv").write_text("b;text, d\n1;2,3\n2;3,4\n")
    [first, _] = read("t.csv", delimiter=";", text_column="b")
    assert (first.text, first.columns) == ("1", {"text, d": "2,3"})
    spec = make_spec(model="fake", prompt="{input}", delimiter="tab")
    assert spec.delimiter == "\t"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty; a header row is needed"),
        (b'"id,text\n1,a\n', "the header: not valid CSV"),
    ],
)
def test_a_table_without_a_usable_header_costs_that_table(here, content, words):
    (here / "a.csv").write_bytes(content)
    (here / "b.csv").write_text("text\nfine\n")
    bad, fine = read("a.csv", "b.csv")
    assert words in bad.error
    assert (bad.name, fine.text) == ("a.csv", "fine")


# JSON.


def test_the_objects_of_a_json_file_are_documents(here):
    (here / "a.json").write_text('\ufeff [ {"text": "a", "n": 1},\n"b]\\"",{"text": NaN}, 5]')
    (here / "b.json").write_text('{"text": "one"}')
    (here / "c.json").write_text('{"text": "two"}\n{"text": "three"}\n')
    (here / "d.ndjson").write_text('{"text": "four"}\n')
    documents = read("a.json", "b.json", "c.json", "d.ndjson")
    assert [d.name for d in documents] == [
        "a.json#1", "a.json#2", "a.json#3", "a.json#4", "b.json#1", "c.json#1", "c.json#2",
        "d.ndjson:1",
    ]  # fmt: skip
    assert texts(documents) == ["a", 'b]"', "", "", "one", "two", "three", "four"]
    assert documents[0].columns == {"n": 1}


def test_a_json_file_that_was_cut_says_so(here):
    (here / "a.json").write_text('[{"text": "a"}, {"text": "b')
    first, *rest = read("a.json")
    assert first.text == "a"
    assert "it may have been cut" in rest[-1].error


def test_a_json_file_larger_than_memory_is_read(here):
    rows = ",\n".join(json.dumps({"text": f"{i} [" + "x" * 80}) for i in range(8_000))
    huge = json.dumps({"text": "x" * 5_000_000})
    (here / "a.json").write_text(f"[{rows}, {huge}, {huge}]")

    def read_all():
        documents = FileSource(["a.json"], max_bytes=1_000_000).documents()
        assert sum(document.error is not None for document in documents) == 2

    assert peak_bytes(read_all) < 6_000_000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "a number of more than 4,300 digits"),
        ('{"text": "a", "n": NaN}', "NaN is not JSON"),
        ('{"text": "a", "n": -Infinity}', "-Infinity is not JSON"),
        ('{"text": "a", "text": "b"}', "the key 'text' more than once"),
        ('{"text": "a", "n": ' + "[" * 9000 + "]" * 9000 + "}", "nested too deeply"),
        ('{"text": "a\0b"}', "not valid JSON"),
        ("9" * 5000, "digits"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_odd_json_costs_its_document(here, kind, line, words):
    lines = ['{"text": "x"}', line, '{"text": "y"}']
    text = "\n".join(lines) if kind == "jsonl" else "[" + ",".join(lines) + "]"
    (here / f"r.{kind}").write_text(text)
    before, bad, after = read(f"r.{kind}", max_bytes=50_000)
    assert (before.text, after.text) == ("x", "y")
    assert words in bad.error


# Files of other kinds, and files with which something is wrong.


def test_what_a_folder_leaves_out_is_listed_by_kind(here):
    for name in ("a.txt", "b.mp3", "c.mp3", "x.jsonl.zst", "README", ".hidden", "sub/d.png"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("x")
    (here / "gone.txt").symlink_to(here / "nowhere")
    (here / "other").symlink_to(here / "sub")
    os.mkfifo(here / "pipe.txt")
    notices = []
    assert texts(read(".", notify=notices.append)) == ["x"]
    [notice] = notices
    assert notice.is_warning
    assert notice.text.startswith(
        "left out: 2 .mp3, 1 .jsonl.zst, 1 .png, 1 broken link, 1 link to a folder, "
        "1 special file, 1 without an extension (not of a kind that is read"
    )


def test_a_pattern_takes_text_of_any_name_and_lists_the_rest(here):
    (here / "a.log").write_text("log")
    (here / "b.mp3").write_bytes(b"ID3")
    (here / "folder.log").mkdir()
    notices = []
    assert texts(read("*", notify=notices.append)) == ["log"]
    assert notices[0].text.startswith("left out: 1 .mp3, 1 folder ")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "uncompress it first"),
        ("a.tar.gz", b"\x1f\x8b\x08", "uncompress it first"),
        ("a.mp3", b"ID3 text", r"a.mp3: is not UTF-8 text, and .mp3 files are not supported"),
        ("data", b"a\0b", "is not UTF-8 text"),
    ],
)
def test_a_named_file_that_is_no_text_is_refused_with_what_is_read(here, name, content, words):
    (here / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read(name)
    # Where others can be used, it costs only its document.
    (here / "fine.txt").write_text("fine")
    document, fine = read(name, "fine.txt")
    assert document.error.startswith("it is not UTF-8 text, and ")
    assert words.removeprefix("a.mp3: ") in document.error
    assert (document.name, document.text, fine.text, fine.index) == (name, "", "fine", 1)
    with pytest.raises(InputError, match=words):
        read(name, name)


def test_tables_that_are_alike_share_what_their_check_found(here):
    for number in range(300):
        (here / f"{number:03}.csv").write_text(f"text,n\nx,{number}\n")
    (here / "other.csv").write_text("a;b;text\n1;2;y\n")
    found = FileSource(["."], max_bytes=MAX)
    assert len({id(table) for table in found._checked.values()}) == 2
    assert len(texts(found.documents())) == 301


def test_a_named_file_of_another_kind_is_read_where_it_is_text(here):
    (here / "notes.log").write_text("caf\u00e9 " * 2000)
    assert len(read("notes.log", max_bytes=100_000)[0].text) == 10_000


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a\0b", "NUL bytes"), (b"\xff\xfea", "not valid utf-16"), (b"caf\xe9", "not valid UTF-8")],
)
def test_a_text_file_that_is_none_costs_its_document(here, content, words):
    (here / "a.txt").write_bytes(content)
    (here / "b.txt").write_text("fine")
    bad, fine = read(".")
    assert words in bad.error
    assert fine.text == "fine"


def test_a_file_that_cannot_be_opened_costs_its_documents(here, monkeypatch):
    for name in ("a.txt", "b.csv", "c.jsonl", "d.txt"):
        (here / name).write_text("text\nx" if name == "b.csv" else '"x"')
    opened = Path.open

    def refusing(path, *args, **options):
        if path.name in {"a.txt", "b.csv", "c.jsonl"}:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refusing)
    for inputs in (["."], ["a.txt", "b.csv", "c.jsonl", "d.txt"]):
        documents = read(*inputs)
        assert errors(documents) == ["cannot be read: Permission denied"] * 3 + [None]


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.json", "r.txt"])
@pytest.mark.parametrize("how", ["shrinks", "vanishes"])
def test_a_file_that_is_changed_while_it_is_read_ends_the_run(here, name, how):
    rows = [json.dumps({"text": "x" * 900, "n": i}) for i in range(300)]
    text = "n,text\n" + "\n".join(f"{i}," + "x" * 900 for i in range(300))
    (here / "first.txt").write_text("first")
    (here / name).write_text(
        {"r.csv": text, "r.json": f"[{','.join(rows)}]"}.get(name, "\n".join(rows))
    )
    documents = FileSource(["first.txt", name], max_bytes=1_000_000).documents()
    next(documents)
    if how == "vanishes":
        (here / name).unlink()
        words = f"{name}: was there, and is gone now"
    elif name == "r.txt":
        with pytest.raises(InputError, match="shrank"):
            _read_while_it_shrinks(here / name)
        return
    else:
        next(documents)
        os.truncate(here / name, 50_000)
        words = f"{name}: shrank while it was read: it had .* bytes, and 50,000 were left"
    with pytest.raises(InputError, match=words):
        list(documents)


def _read_while_it_shrinks(path):
    """As the reader does, but the file shrinks when it was read."""
    from fanout.inputs.documents.reading import _require_whole

    size = path.stat().st_size
    with path.open("rb") as file:
        file.read()
        os.truncate(path, 10)
        _require_whole(path.name, file, size)


@pytest.mark.parametrize("name", ["f.txt", "f.csv", "f.tsv", "f.jsonl", "f.json", "f.log"])
@given(data=st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([
        b"text", b"id,text\n", b"id\ttext\n", b'"', b'""', b",", b";", b"\t", b"\n", b"\r\n",
        b"\r", b"\0", b"\xff", b"{", b"}", b"[", b"]", b'{"text":"a"}', b"\\", b"1", b"NaN",
        b"\xef\xbb\xbf", b"\\ud800", b"9" * 5000,
    ]), max_size=60).map(b"".join),
))  # fmt: skip
@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
def test_any_content_of_a_file_is_read_or_reported(here, name, data):
    (here / name).write_bytes(data)
    try:
        documents = read(name, max_bytes=2_000)
    except InputError:
        return
    # The blank text of a row is kept beside its error.
    assert all(bool(document.text.strip()) != bool(document.error) for document in documents)
    assert [document.index for document in documents] == list(range(len(documents)))


# What is said at the end, and strict.


def notices_of(spec, documents):
    notices = []
    read = list(checked_documents(spec, documents, notify=notices.append))
    return read, notices


def test_many_documents_that_cannot_be_used_are_a_warning_and_few_are_none():
    spec = make_spec(model="fake", prompt="{input}")
    _, notices = notices_of(spec, ["x"] * 90 + [""] * 10)
    [notice] = notices
    assert notice.is_warning
    assert notice.text.startswith(
        "10 of 100 documents (10.0%) cannot be used; the first is item 91"
    )
    assert notices_of(spec, ["x"] * 98 + [""] * 2)[1] == []


def test_a_library_user_is_told_by_a_log(here, caplog):
    (here / "a.txt").write_text("x")
    (here / "b.mp3").write_text("x")
    spec = make_spec(model="fake", prompt="{input}", inputs=["."])
    with caplog.at_level(logging.WARNING, "fanout.inputs.documents"):
        list(checked_documents(spec, None))
    assert "left out: 1 .mp3" in caplog.text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', "JSON lines"),
        ("id,text\n1,a\n2,b\n", "CSV"),
        ("id;text;x\r\n1;a;b\r\n", "CSV"),
        ('id\ttext\n1\t"two\nlines"\n2\tb\n', "CSV"),
        ('{"text": "a"}', None),
        ("Dear Ann,\nhow are you?\nBob", None),
        ("Hello, world.\nGood, day.\n", None),
        ("one\ntwo\nthree\n", None),
        ("", None),
    ],
)
def test_standard_input_is_one_text_and_says_so_where_it_looks_like_rows(text, kind):
    notices = []
    [document] = read("-", stdin=io.BytesIO(text.encode()), notify=notices.append)
    assert document.text == text
    words = f"standard input looks like {kind}, and is read as one text: for rows, give a file"
    assert [notice.text for notice in notices] == ([words] if kind else [])


@pytest.mark.parametrize("found", [".", "*", "**/*"])
def test_what_another_command_is_about_to_write_is_not_an_input(here, found):
    (here / "a.txt").write_text("a")
    (here / "out.csv.unfinished").write_text("half")
    notices = []
    assert texts(read(found, notify=notices.append)) == ["a"]
    assert notices == []


def _to_sqlite(frame, path):
    with contextlib.closing(sqlite3.connect(path)) as base:
        frame.to_sql("t", base, index=False)


TABLES_WITHOUT_TEXT = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "feather": lambda frame, path: frame.to_feather(path),
    "sqlite": _to_sqlite,
}


@pytest.mark.parametrize("kind", TABLES_WITHOUT_TEXT)
def test_a_table_without_the_text_costs_itself_where_nobody_named_it(here, kind):
    name = f"answers.{kind}"
    TABLES_WITHOUT_TEXT[kind](pd.DataFrame({"id": [1], "output": ["x"]}), here / name)
    (here / "letter.txt").write_text("fine")
    for found in (".", "*"):
        bad, fine = read(found)
        assert (bad.name, fine.text) == (name, "fine")
        assert bad.error.startswith("there is no column 'text' (it has: id, output")
    with pytest.raises(InputError, match=f"{name}.*: there is no column 'text'"):
        read(name)
    # A column that the job names, and no table has, is a slip.
    with pytest.raises(InputError, match=f"{name}.*: there is no column 'review'"):
        read(".", text_column="review")
    (here / "z.csv").write_text("review,id\ngood,1\n")
    assert [one.text for one in read(".", text_column="review") if not one.error] == [
        "fine",
        "good",
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jsonl": '"x"\n' * 50 + '"'}, "strict: 1 of 51 documents cannot be used: a.jsonl:51: "),
        ({"a.txt": "x", "b.mp3": "x"}, "strict: left out: 1 .mp3"),
        ({"a.txt": "x", "b.txt": ""}, "strict: 1 of 2 documents cannot be used: b.txt: the docu"),
    ],
)
def test_strict_refuses_an_input_of_which_something_would_be_left_out(here, files, words):
    for name, content in files.items():
        (here / name).write_text(content)
    spec = make_spec(model="fake", prompt="{input}", inputs=["."], strict=True)
    with pytest.raises(InputError) as caught:
        checked_documents(spec, None)
    assert words in str(caught.value)


def test_strict_ends_what_can_be_read_once_at_the_first_fault():
    spec = make_spec(model="fake", prompt="{input}", strict=True)
    documents = checked_documents(spec, iter(["x", "", "y"]))
    with pytest.raises(InputError, match="strict: item 2 cannot be used"):
        list(documents)
    with pytest.raises(InputError, match="strict: 1 of 2 documents"):
        checked_documents(spec, ["x", ""])


@pytest.mark.parametrize(
    ("documents", "files", "words"),
    [
        ([], {}, "chunks is empty: there is nothing to do"),
        (iter([]), {}, "chunks is empty"),
        (None, {"a.csv": "id,text\n"}, "a.csv has a header and no row below it"),
        (None, {"a.jsonl": "\n"}, "a.jsonl holds no document"),
        (
            [1, 2],
            {},
            "no document can be used: item 1: it must be a string or a mapping, not int; ",
        ),
    ],
)
def test_an_input_without_a_document_says_why(here, documents, files, words):
    for name, content in files.items():
        (here / name).write_text(content)
    spec = make_spec(model="fake", prompt="{input}", inputs=list(files))
    with pytest.raises(InputError) as caught:
        checked_documents(spec, documents)
    assert words in str(caught.value)


# Columns: those of prompts, those of groups, and those that are called like fanout's own.

ROWS = [{"text": "a"}] * 30 + [{"text": "b", "who": "Ann", "document": "x"}]


def checked_rows(rows, **fields):
    spec = make_spec(model="fake", **{"prompt": "{input}", **fields})
    return list(checked_documents(spec, rows))


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1]])
def test_a_column_that_any_row_has_is_known(here, rows):
    assert len(checked_rows(rows, prompt="{input} {who}")) == 31
    assert len(checked_rows(iter(rows), prompt="{input} {who}")) == 31
    assert len(checked_rows(rows, reduce="vote", group_by="who")) == 31
    (here / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = make_spec(model="fake", prompt="{input} {who}", inputs=["r.jsonl"])
    assert len(list(checked_documents(spec, None))) == 31


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "{input} {wo}"}, "prompt: there is no {wo}; did you mean {who}?"),
        ({"aspects": {"a": "{input} {wo}"}, "prompt": None}, "aspects.a: there is no {wo}"),
        (
            {"reduce": "vote", "group_by": "whoo"},
            "group_by: there is no column 'whoo'; did you mean who?",
        ),
        ({"reduce": "vote", "group_by": "documnt"}, "did you mean document?"),
        ({"reduce": "vote", "group_by": "aspect"}, "group_by: 'aspect' needs aspects"),
        ({"prompt": "{input} {column:wo}"}, "there is no {column.wo}"),
        ({"prompt": "{input} {fanout:who}"}, "there is no {fanout.who}"),
    ],
)
@pytest.mark.parametrize("make", [list, iter])
def test_a_name_that_no_row_has_is_refused_with_what_is_nearly_called_so(fields, words, make):
    with pytest.raises(SpecError) as caught:
        checked_rows(make(ROWS[::-1]), **fields)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name", ["document", "index", "sample", "aspect", "input", "pages", "headings"]
)
def test_a_column_called_like_a_name_of_fanouts_must_be_said_to_be_meant(name):
    rows = [{"text": "a", name: "x"}]
    for prompt in (f"{{input}} {{{name}}}", f"{{input}}{{column:{name}}} {{{name}}}"):
        with pytest.raises(PromptError, match=f"{{{name}}} is not clear: .*{{column.{name}}}"):
            checked_rows(rows, prompt=prompt)
    own = "{fanout:input}" if name == "input" else "{input}"
    assert checked_rows(rows, prompt=f"{own} {{column:{name}}} {{fanout:{name}}}")
    if name != "input":
        assert checked_rows(rows, prompt="{input}")


@pytest.mark.parametrize("name", ["group", "count", "failed"])
def test_a_column_called_like_a_name_of_aggregates_alone_is_a_column(name):
    assert checked_rows([{"text": "a", name: "x"}], prompt=f"{{input}} {{{name}}}")


@pytest.mark.parametrize("name", ["document", "aspect"])
def test_a_group_called_like_a_column_must_be_said_to_be_meant(name):
    rows = [{"text": "a", name: "x"}]
    job = {"prompt": None, "aspects": {"a": "{input}"}, "reduce": "vote"}
    with pytest.raises(SpecError, match=f"group_by: '{name}' is not clear.*column.{name}"):
        checked_rows(rows, **job, group_by=name)
    for by in (f"column:{name}", f"fanout:{name}", f"column.{name}", f"fanout.{name}"):
        assert checked_rows(rows, **job, group_by=by)


def test_a_text_column_called_like_a_name_of_fanouts_is_not_clear():
    with pytest.raises(PromptError, match=r"it is the text column, whose text is \{input\}"):
        checked_rows([{"document": "a"}], text_column="document", prompt="{input} {document}")
