from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanout.core.errors import InputError, PromptError, SpecError
from fanout.core.records import Document
from fanout.core.spec import make_spec
from fanout.inputs import sampling
from fanout.inputs.intake import checked_documents
from fanout.inputs.sampling import sampled

JOB = {"model": "fake", "prompt": "{input}"}


def documents(count, text="x"):
    return [Document(name=str(at), index=at, text=text) for at in range(count)]


def names_of(spec_fields, items=None, notices=None):
    notify = (lambda _notice: None) if notices is None else lambda one: notices.append(one.text)
    found = checked_documents(make_spec(**{**JOB, **spec_fields}), items, notify=notify)
    return [document.name for document in found]


# A sample.


def positions(count, size, seed, *, is_lasting=True):
    items = documents(count)
    again = (lambda: items) if is_lasting else None
    return [one.index for one in sampled(iter(items), size, seed=seed, again=again)]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_sample_is_in_order_without_repetition_and_the_same_each_time(size):
    first = positions(60, size, 3)
    assert first == sorted(set(first))
    assert len(first) == size
    assert first == positions(60, size, 3) == positions(60, size, 3, is_lasting=False)
    assert set(first) <= set(positions(60, min(60, size + 5), 3)), "a larger one has all of it"
    assert size == 60 or first != positions(60, size, 4)


def test_a_sample_of_more_than_there_is_takes_everything():
    assert positions(5, 9, 0) == [0, 1, 2, 3, 4]
    assert positions(0, 9, 0) == []


def test_every_document_is_in_a_sample_as_often_as_any_other():
    counts = Counter(at for seed in range(3_000) for at in positions(10, 3, seed))
    # The expected count is 900, and its standard deviation 25.
    assert all(800 < counts[at] < 1_000 for at in range(10)), counts


def test_a_large_sample_keeps_positions_only_and_reads_its_documents_again(monkeypatch):
    monkeypatch.setattr(sampling, "_KEPT_CHARS", 2_000)
    items = documents(300, text="x" * 50)
    passes = []

    def again():
        passes.append(1)
        return items

    kept = list(sampled(iter(items), 100, seed=1, again=again))
    assert [one.index for one in kept] == positions(300, 100, 1)
    assert passes == [1]
    # What can be read only once is kept.
    assert list(sampled(iter(items), 100, seed=1, again=None)) == kept


# Where, sample and limit together.

ROWS = [{"text": f"t{n}", "n": n, "s": str(n), "k": "ab"[n % 2]} for n in range(40)]


@pytest.mark.parametrize("is_lasting", [True, False])
@pytest.mark.parametrize(
    ("fields", "count", "notice"),
    [
        ({"where": "n < 10"}, 10, "taken: 10 of 40 documents"),
        ({"where": "s < 10 and k = a"}, 5, "taken: 5 of 40 documents"),
        ({"limit": 7}, 7, "taken: the first 7 documents"),
        ({"limit": 99}, 40, "taken: 40 of 40 documents"),
        ({"where": "n >= 20", "limit": 3}, 3,
         "taken: the first 3 documents of those that meet where (23 read)"),
        ({"sample": 6}, 6, "taken: 6 of 40 documents"),
        ({"sample": 6, "where": "k = b"}, 6, "taken: 6 of 40 documents (20 meet where)"),
        ({"sample": 6, "where": "k = b", "limit": 2}, 2,
         "taken: 2 of 40 documents (20 meet where)"),
        ({"where": "text contains 3"}, 13, "taken: 13 of 40 documents"),
        ({"where": "input = t3"}, 1, "taken: 1 of 40 documents"),
        ({"where": "document = 'item 4'"}, 1, "taken: 1 of 40 documents"),
        ({"where": "index < 4"}, 4, "taken: 4 of 40 documents"),
        ({"where": "column.k = a and fanout.index < 5"}, 3, "taken: 3 of 40 documents"),
    ],
)  # fmt: skip
def test_what_is_taken_of_an_input_and_what_is_said_of_it(fields, count, notice, is_lasting):
    notices: list[str] = []
    names = names_of(fields, ROWS if is_lasting else iter(ROWS), notices)
    assert (len(names), notices) == (count, [notice])
    places = [int(name.removeprefix("item ")) for name in names]
    assert places == sorted(places)
    assert names == names_of(fields, iter(ROWS)), "again the same, as a run that is resumed needs"


def test_the_sample_follows_the_seed():
    assert names_of({"sample": 9, "seed": 1}, ROWS) != names_of({"sample": 9, "seed": 2}, ROWS)
    assert names_of({"sample": 9}, ROWS) == names_of({"sample": 9, "seed": 0}, ROWS)
    of_the_sample = names_of({"sample": 9}, ROWS)[:4]
    assert names_of({"sample": 9, "limit": 4}, ROWS) == of_the_sample


def test_a_limit_reads_no_further():
    read = []

    def rows():
        for row in ROWS:
            read.append(row)
            yield row

    assert len(names_of({"limit": 30}, rows())) == 30
    assert len(read) == 30


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"where": "starz < 3"},
         "where: at character 1: there is no column 'starz'; did you mean stars? known: document,"),
        ({"where": "stars = 1 and column.b = 2"}, "where: at character 15: there is no column"),
        ({"where": "fanout.stars = 2"}, "where: at character 1: there is no column 'fanout.stars'"),
        ({"id_column": "sters"}, "id_column: there is no column 'sters'; did you mean stars? known:"),
        ({"id_column": "text"}, "id_column: 'text' is the column of the text; name another"),
    ],
)  # fmt: skip
def test_an_unknown_column_is_named_with_the_known_ones(fields, words):
    with pytest.raises(SpecError) as caught:
        names_of(fields, [{"text": "a", "stars": 2}])
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["document", "index", "input"])
def test_a_name_that_is_a_column_and_fanouts_own_is_refused(name):
    rows = [{"text": "a", name: 1}, {"text": "b", name: 2}]
    prompt = {"prompt": "{fanout.input}"}
    with pytest.raises(SpecError, match=f"is not clear: .*column.{name} .*fanout.{name} for"):
        names_of({"where": f"{name} = 2", **prompt}, rows)
    assert names_of({"where": f"column.{name} = 2", **prompt}, rows) == ["item 2"]
    own = {"document": "'item 1'", "index": "0", "input": "a"}[name]
    assert names_of({"where": f"fanout.{name} = {own}", **prompt}, rows) == ["item 1"]


def test_a_condition_on_names_needs_no_rows():
    texts = {"where": "document = 'item 2'"}
    assert names_of(texts, ["a", "b"]) == ["item 2"]
    with pytest.raises(SpecError, match=r"where: has no effect: no input has rows"):
        names_of({"where": "stars = 2"}, ["a", "b"])


def test_a_condition_that_nothing_meets_is_an_error():
    with pytest.raises(InputError, match="where: no document meets `n > 99`"):
        names_of({"where": "n > 99"}, ROWS)


def test_a_row_that_cannot_be_read_stays_an_error_and_one_that_can_is_compared(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\nfine,1\ntoo,many,cells\n,1\n,2\nlast,1\n")
    spec = make_spec(**JOB, inputs=str(tmp_path / "a.csv"), where="n = 1")
    found = [(one.text, one.error) for one in checked_documents(spec, None)]
    assert found == [
        ("fine", None),
        ("", "3 cells, but the header has 2"),
        ("", "the document is empty"),
        ("last", None),
    ]


def test_strict_looks_at_what_is_taken_only():
    rows = [{"text": "a", "n": 1}, {"text": "", "n": 2}]
    assert names_of({"strict": True, "where": "n = 1"}, rows) == ["item 1"]
    with pytest.raises(InputError, match="strict: 1 of 2 documents cannot be used"):
        names_of({"strict": True}, rows)


# Names by a column.


def write_rows(tmp_path, kind, rows):
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        lines = ["id,text", *(f"{row['id']},{row['text']}" for row in rows)]
        path.write_text("\n".join(lines))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_documents_are_called_by_their_id(tmp_path, kind):
    rows = [{"id": f"r{at}", "text": f"t{at}"} for at in range(3)]
    fields = {"inputs": write_rows(tmp_path, kind, rows), "id_column": "id"}
    assert names_of(fields) == ["r0", "r1", "r2"]
    assert names_of({**fields, "where": "document = r1"}) == ["r1"]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_the_rows_of_a_frame_are_called_and_chosen_as_any(make):
    frame = make({"id": ["a", "b", "c", "d"], "n": [1, 2, 1, 1], "text": ["w", "x", "y", "z"]})
    fields = {"id_column": "id", "where": "n = 1", "sample": 3, "limit": 2}
    assert names_of(fields, frame) == ["a", "c"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [({}, "text"), ({}, "column.text"), ({"text_column": "review"}, "review")],
)
def test_a_prompt_that_names_the_column_of_the_text_learns_its_name(fields, name):
    rows = [{fields.get("text_column", "text"): "a", "n": 1}]
    with pytest.raises(PromptError, match=f"{name}}} is the column of the text: write {{input}}"):
        names_of({**fields, "prompt": f"{{input}} {{{name}}}"}, rows)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_column_of_the_text_in_a_file_is_no_other_column(tmp_path, kind):
    row, path = {"id": 1, "review": "a"}, tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text("id,review\n1,a\n" if kind == "csv" else json.dumps(row))
    fields = {"inputs": str(path), "text_column": "review"}
    with pytest.raises(PromptError, match=r"\{review\} is the column of the text: write \{input\}"):
        names_of({**fields, "prompt": "{review}: {input}"})
    for by in ("review", "column.review"):
        with pytest.raises(SpecError, match=f"group_by: '{by}' is the column of the text; name"):
            names_of({**fields, "reduce": "vote", "group_by": by})
    notices: list[str] = []
    names_of({**fields, "reduce": "top", "by": "review"}, None, notices)
    (notice,) = notices
    assert notice.startswith(
        "by: 'review' is the column of the text, which is no value here. It counts"
    )


def test_ids_that_are_no_text_missing_or_repeated():
    rows = [
        {"text": "a", "id": 7},
        {"text": "b", "id": None},
        {"text": "c", "id": " "},
        {"text": "d", "id": 7},
        {"text": "e", "id": True},
        {"text": "f"},
        {"text": "", "id": 8},
        {"text": "g", "id": 7},
    ]
    notices: list[str] = []
    names = names_of({"id_column": "id"}, rows, notices)
    assert names == ["7", "item 2", "item 3", "7", "true", "item 6", "8", "7"]
    missing = "item 2 has no 'id': it, and any other like it, is called by its place in the input"
    assert notices[0] == missing
    assert notices[1].startswith("the id '7' is there again (item 4)")
    # The others are about a document that cannot be used.
    assert [text for text in notices[2:] if "cannot be used" not in text] == []
    (empty,) = [
        one for one in checked_documents(make_spec(**JOB, id_column="id"), rows) if one.name == "8"
    ]
    assert empty.error == "the document is empty (item 7)", "its place is named too"


# Files that are one document each.


@pytest.fixture
def folder(tmp_path):
    for at in range(30):
        (tmp_path / f"{at:02}{'-invoice' if at % 3 == 0 else ''}.txt").write_text(f"t{at}")
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "count", "notice"),
    [
        ({"sample": 4}, 4, "taken: 4 of 30 documents"),
        ({"where": "document contains invoice"}, 10, "taken: 10 of 30 documents"),
        ({"where": "document contains invoice and index > 5", "sample": 3}, 3,
         "taken: 3 of 30 documents (8 meet where)"),
        ({"limit": 2}, 2, "taken: the first 2 documents"),
    ],
)  # fmt: skip
def test_of_files_that_their_names_choose_no_other_is_read(folder, fields, count, notice):
    notices: list[str] = []
    names = names_of({"inputs": str(folder), **fields}, notices=notices)
    assert (len(names), notices) == (count, [notice])
    # As they would be chosen if all were read.
    again = names_of({"inputs": str(folder), **fields, "where": fields.get("where", "index >= 0")
                      + " and input contains t"})  # fmt: skip
    assert again == names
    for path in folder.iterdir():
        if not any(name.endswith(path.name) for name in names):
            path.write_bytes(b"\xff\xff")
    spec = make_spec(**JOB, inputs=str(folder), strict=True, **fields)
    found = list(checked_documents(spec, None))
    assert [one.name for one in found] == names
    assert [one.text for one in found] == [f"t{one.index}" for one in found], (
        "and keep their places"
    )


def test_of_files_that_no_name_chooses_there_is_an_error(folder):
    with pytest.raises(InputError, match="where: no document meets `document = x`"):
        names_of({"inputs": str(folder), "where": "document = x"})


def test_a_column_that_is_not_there_is_refused_with_those_that_are_and_without_a_notice():
    rows = [{"id": 1, "score": 2, "text": "a"}]
    notices = []
    with pytest.raises(SpecError, match="id_column: there is no column 'nope'; known: id, score"):
        names_of({"id_column": "nope"}, rows, notices)
    assert notices == []
    with pytest.raises(SpecError, match=r"where: .*'nope'; known: .*id, .*score, text"):
        names_of({"where": "nope = 1"}, rows)
    rows.append({"id": None, "text": "b"})
    assert names_of({"id_column": "id"}, rows, notices) == ["1", "item 2"]
    assert "item 2 has no 'id'" in notices[0]


def test_a_column_of_the_text_in_other_letters_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("id,Text\n1,a\n")
    with pytest.raises(
        InputError, match=r"no column 'text' .*; did you mean 'Text'.; name one with"
    ):
        names_of({"inputs": str(tmp_path / "a.csv")})
