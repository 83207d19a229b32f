from __future__ import annotations

import io
import json
import tracemalloc

import pytest

from fanout.documents import from_paths, from_strings
from fanout.enqueue import checked_documents
from fanout.errors import InputError
from fanout.runs import Document
from fanout.spec import make_spec

MAX = 1000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*inputs, max_bytes=MAX, **options):
    return list(from_paths(inputs, max_bytes=max_bytes, **options))


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


def test_rows_keep_their_other_columns_as_strings():
    row = {"text": "a", "n": 1, "who": "Ann", "none": None, "tags": ["x"]}
    [document] = from_strings([row], max_bytes=MAX)
    assert document.text == "a"
    assert document.columns == {"n": "1", "who": "Ann", "none": "", "tags": '["x"]'}


def test_documents_pass_through_and_are_counted():
    given = Document(name="mine", index=7, text="a")
    assert list(from_strings(["x", given], max_bytes=MAX))[1] == Document(
        name="mine", index=1, text="a"
    )


@pytest.mark.parametrize(
    ("items", "words"), [([1], "item 1.*not int"), ("one", "put it in a list")]
)
def test_what_is_no_list_of_strings_is_refused(items, words):
    with pytest.raises(InputError, match=words):
        list(from_strings(items, max_bytes=MAX))


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
        ("empty", r"empty: no \.txt, \.md, \.jsonl, \.csv file"),
    ],
)
def test_an_input_that_is_not_there_is_found_before_anything_is_read(here, name, words):
    (here / "empty").mkdir()
    (here / "ok.md").write_text("fine")
    with pytest.raises(InputError, match=words):
        from_paths(["ok.md", name], max_bytes=MAX)


def test_jsonl_rows_are_named_by_line(here):
    (here / "r.jsonl").write_text('{"text": "a", "n": 1}\n\n"plain"\n')
    assert read("r.jsonl") == [
        Document(name="r.jsonl:1", index=0, text="a", columns={"n": "1"}),
        Document(name="r.jsonl:3", index=1, text="plain"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": ', "not valid JSON"),
        (b'{"body": "x"}', "no column 'text' (it has: body)"),
        (b'{"text": 3}', "'text' must be a string, not int"),
        (b"[1]", "must be a JSON object or string, not list"),
        (b'{"text": "caf\xe9"}', "not valid UTF-8 (byte 0xe9 at offset 13)"),
        (b'{"text": " "}', "the document is empty"),
        (b'"' + b"x" * MAX + b'"', "0.0 MB is longer than the 0.001 MB a document may have"),
        (b"[" * 900, "not "),
    ],
)
def test_a_bad_jsonl_line_costs_that_line(here, line, words):
    (here / "r.jsonl").write_bytes(b'"before"\n' + line + b'\n"after"\n')
    before, bad, after = read("r.jsonl")
    assert (before.text, after.text, after.name) == ("before", "after", "r.jsonl:3")
    assert words in bad.error
    assert bad.name == "r.jsonl:2"
    assert bad.text == ""


def test_no_error_quotes_a_document(here):
    (here / "r.jsonl").write_text('{"text": "SECRET" SECRET}\n{"text": ["SECRET"]}\n')
    assert "SECRET" not in str(errors(read("r.jsonl")))


def test_csv_rows_are_named_by_the_line_they_start_at(here):
    (here / "r.csv").write_text('text,who\n"two\nlines",Ann\nplain,Bob\n')
    assert read("r.csv") == [
        Document(name="r.csv:2", index=0, text="two\nlines", columns={"who": "Ann"}),
        Document(name="r.csv:4", index=1, text="plain", columns={"who": "Bob"}),
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
        (b"", "the file is empty; a header row is needed"),
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
        (b"caf\xe9,x", "not valid UTF-8"),
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
    tracemalloc.start()
    count = sum(1 for _ in from_paths(["r.jsonl"], max_bytes=1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100_001
    assert peak < 8_000_000


def test_half_a_character_costs_the_document_that_holds_it():
    spec = make_spec(model="fake", prompt="{input}")
    rows = [{"text": "fine"}, {"text": "caf\ud800"}, {"text": "x", "who": "\udc80"}]
    fine, text, column = checked_documents(spec, rows)
    assert fine.error is None
    assert text.error == "it holds half of a character (a lone surrogate, at offset 3)"
    assert "half of a character" in column.error
    assert (text.index, column.index) == (1, 2)
