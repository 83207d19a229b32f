"""What the table of a run has: its columns, their names, their types, and its rows."""

from __future__ import annotations

import pytest

from fanout.core.errors import RunError
from fanout.core.passage_uses import PassageUse
from fanout.core.records import ErrorKind, Usage
from fanout.runs.branch_output import Output
from fanout.runs.rows import RowLayout, error_row, output_row, stream_row
from fanout.runs.tables import table as tables
from fanout.runs.tables.arrow import arrow_batches, arrow_table
from fanout.runs.tables.own_columns import OWN_COLUMNS
from fanout.runs.tables.spool import FileSpool, MemorySpool
from fanout.runs.tables.table import gather

OWN = ["output", "error_kind", "error", "document", "pages", "headings", "chunk", "attempts",
       "input_tokens", "output_tokens", "cost_usd", "cached", "saved_usd"]  # fmt: skip


def branch(index, output="yes", columns=None, **fields):
    usage = Usage(calls=1, input_tokens=7, output_tokens=3)
    given = {
        "index": index, "document": f"a.csv:{index + 2}", "document_index": index, "chunk": index,
        "position": 0, "start": 0, "end": 5, "aspect": None, "sample": 0, "output": output,
        "kind": None if output else ErrorKind.TIMEOUT, "message": None if output else "too slow",
        "attempts": 1, "usage": usage, "elapsed_s": 0.5, "columns": columns or {},
    }  # fmt: skip
    return Output(**{**given, **fields})


def read(outputs, layout=None, **options):
    """The columns of a table with their types, and its rows as dicts."""
    table = gather(outputs, layout or RowLayout(), MemorySpool(), **options)
    types = {column.name: column.type.value for column in table.columns}
    rows = [dict(zip(types, row, strict=True)) for row in table.typed_rows()]
    assert table.count == len(rows)
    return types, rows


def test_a_row_has_the_columns_of_the_input_with_the_text_at_its_place_and_then_our_own():
    outputs = [
        branch(0, columns={"id": "007", "stars": 4}, text_at=1, text_column="review", text="good",
               pages=[3, 4], headings="A > B"),
        branch(1, None, columns={"id": "x", "stars": None}, text_at=1, text_column="review", text=None,
               pages=[3]),
    ]  # fmt: skip
    types, [good, bad] = read(outputs)
    assert list(types) == ["id", "review", "stars", *OWN]
    assert list(good.values()) == ["007", "good", 4, "yes", None, None, "a.csv:2", "3-4", "A > B",
                                   0, 1, 7, 3, None, False, 0.0]  # fmt: skip
    assert (bad["review"], bad["stars"], bad["output"], bad["pages"]) == (None, None, None, "3")
    assert bad["headings"] is None
    assert (bad["error_kind"], bad["error"]) == ("timeout", "too slow")
    assert types["stars"] == "integer"
    assert types["cost_usd"] == "float"


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        (RowLayout(), []),
        (RowLayout(aspects=("only",)), []),
        (RowLayout(aspects=("a", "b")), ["aspect"]),
        (RowLayout(samples=2), ["sample"]),
        (RowLayout(aspects=("a", "b"), samples=2), ["aspect", "sample"]),
        (RowLayout(has_titles=True), ["title"]),
        (RowLayout(has_titles=True, has_subtasks=True), ["title", "subtask"]),
        (RowLayout(has_passages=True), ["passages"]),
        (RowLayout(has_best=True), ["is_best"]),
        (RowLayout(has_rank=True), ["rank"]),
    ],
)
def test_a_table_without_rows_has_its_columns_too(layout, more):
    parts = [name for name in more if name in ("title", "subtask", "passages")]
    at = OWN.index("chunk") + 1
    marks = [name for name in more if name in ("is_best", "rank")]
    last = [name for name in more if name not in {*parts, *marks}]
    assert list(read([], layout)[0]) == [OWN[0], *marks, *OWN[1:at], *parts, *OWN[at:], *last]


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("name", ["rank", "is_best", "rejected", "lane", "finish_reason"])
def test_a_mark_beside_answers_keeps_its_name(name, is_wide):
    layout = RowLayout(
        has_fields=True, fields=(name,), has_rank=True, has_best=True, has_judge=True, has_lane=True,
        keeps_cut=True, samples=2 if is_wide else 1,
    )  # fmt: skip
    answer = branch(
        0, f'{{"{name}": "of the answer"}}', has_rank=True, rank=2, is_best=True, is_rejected=True,
        lane="flex", finish_reason="stop",
    )  # fmt: skip
    _, [row] = read([answer], layout, is_wide=is_wide)
    prefix = "output.0." if is_wide else ""
    assert row[f"{prefix}output.{name}"] == "of the answer"
    marks = {"rank": 2, "is_best": True, "rejected": True, "lane": "flex", "finish_reason": "stop"}
    assert row[prefix + name] == marks[name]
    assert {"rank": 2}.items() <= output_row(answer).items()


@pytest.mark.parametrize("is_wide", [False, True])
def test_what_a_model_called_a_part_and_the_passages_of_a_prompt_are_columns(is_wide):
    layout = RowLayout(
        aspects=("title", "b"), has_titles=True, has_subtasks=True, has_passages=True, has_fields=True,
        fields=("title",),
    )  # fmt: skip
    use = PassageUse(id="p1", source="a.md", title="Leave", score=2.5)
    found = [
        branch(n, '{"title": "of the answer"}', chunk=0, aspect=aspect, title="Part", subtask="Do it.",
               passages=(use,) if n else (), columns={"title": "of the input"})
        for n, aspect in enumerate(layout.aspects)
    ]  # fmt: skip
    types, rows = read(found, layout, is_wide=is_wide)
    shown = '[{"id": "p1", "source": "a.md", "title": "Leave", "score": 2.5}]'
    assert types["title"] == "text"
    for row in rows:
        assert (row["title"], row["subtask"], row["column.title"]) == (
            "Part", "Do it.", "of the input",
        )  # fmt: skip
    if is_wide:
        assert [rows[0][name] for name in ("output.title.passages", "b.passages")] == ["[]", shown]
        assert rows[0]["b.output.title"] == "of the answer"
        assert "passages" not in types
    else:
        assert [row["passages"] for row in rows] == ["[]", shown]
        assert [row["output.title"] for row in rows] == ["of the answer"] * 2


@pytest.mark.parametrize("confidence", [None, 0.75])
@pytest.mark.parametrize("is_wide", [False, True])
def test_confidences_have_a_column_if_there_is_one(confidence, is_wide):
    layout = RowLayout(samples=2 if is_wide else 1, has_confidence=True)
    given = [branch(0, chunk=0), branch(1, chunk=0, confidence=confidence)]
    types, rows = read(given, layout, is_wide=is_wide)
    found = {name: [row[name] for row in rows] for name in types if "confidence" in name}
    if confidence is None:
        assert found == {}
    elif is_wide:
        assert found == {"output.1.confidence": [0.75]}
    else:
        assert found == {"confidence": [None, 0.75]}
        assert list(types)[:2] == ["output", "confidence"]


def test_columns_that_only_some_rows_have_follow_the_others_of_the_input():
    types, rows = read([branch(0, columns={"a": 1}), branch(1, columns={"b": "x", "a": 2})])
    assert list(types)[:3] == ["a", "b", "output"]
    assert [(row["a"], row["b"]) for row in rows] == [(1, None), (2, "x")]


@pytest.mark.parametrize(
    ("cells", "type_", "made"),
    [
        ([1, None, -3], "integer", [1, None, -3]),
        ([1, 2.5], "float", [1.0, 2.5]),
        ([2**53 + 1, 0], "integer", [2**53 + 1, 0]),
        ([2**53 + 1, 0.5], "text", ["9007199254740993", "0.5"]),
        ([True, None], "boolean", [True, None]),
        ([True, 1], "text", ["true", "1"]),
        (["1", 1], "text", ["1", "1"]),
        ([[1, "é"], {"a": None}], "text", ['[1, "é"]', '{"a": null}']),
        ([None, None], "text", [None, None]),
        (["", None], "text", ["", None]),
    ],
)
def test_a_column_has_the_type_that_all_its_cells_fit(cells, type_, made):
    types, rows = read([branch(n, columns={"c": cell}) for n, cell in enumerate(cells)])
    assert types["c"] == type_
    assert [row["c"] for row in rows] == made
    assert [type(row["c"]) for row in rows] == list(map(type, made))
    # Beside the values as they came, for JSON.
    table = gather([branch(0, columns={"c": cell}) for cell in cells], RowLayout(), MemorySpool())
    assert [row[0] for row in table.rows()] == cells


def test_the_fields_of_json_answers_are_columns_beside_those_of_the_input():
    outputs = [
        branch(0, '{"score": 3, "why": "x"}', {"score": 9}),
        branch(1, None, {"score": 8}),
        branch(2, '{"why": [1], "error": "e", "big": 123456789012345678901234567890}', {}),
    ]
    types, rows = read(outputs, RowLayout(has_fields=True))
    own = [name for name in OWN if name != "output"]
    assert list(types) == ["column.score", "score", "why", "output.error", "big", *own]
    assert [row["column.score"] for row in rows] == [9, 8, None]
    assert [row["score"] for row in rows] == [3, None, None]
    assert [row["why"] for row in rows] == ["x", None, "[1]"]
    assert [row["big"] for row in rows] == [None, None, "123456789012345678901234567890"]
    assert [row["error"] for row in rows] == [None, "too slow", None]


@pytest.mark.parametrize("answers", [["[1]", '{"a": 1}'], [None], ["not JSON"]])
def test_an_answer_that_is_no_object_is_an_output(answers):
    types, rows = read([branch(0, one) for one in answers], RowLayout(has_fields=True))
    assert next(iter(types)) == "output"
    assert rows[0]["output"] == answers[0]


@pytest.mark.parametrize("name", [*OWN_COLUMNS])
def test_a_name_of_ours_is_always_ours(name):
    given = {name: "theirs", f"column.{name}": "2", f"column.column.{name}": "3", "column.x": "4"}
    types, [row] = read([branch(0, columns=given)])
    names = [f"column.{name}", f"column.column.{name}", f"column.column.column.{name}", "column.x"]
    assert list(types)[:4] == names
    assert [row[one] for one in names] == ["theirs", "2", "3", "4"]


def test_a_wide_table_has_a_row_for_each_chunk_and_columns_for_aspects_and_samples():
    layout = RowLayout(aspects=("tone", "error"), samples=2)
    outputs = [
        branch(n, None if n == 5 else f"o{n}", {"id": n // 4}, chunk=n // 4,
               aspect=layout.aspects[n // 2 % 2], sample=n % 2)
        for n in range(8)
        if n != 2
    ]  # fmt: skip
    types, [first, second] = read(outputs, layout, is_wide=True)
    labels = ["tone.0", "tone.1", "output.error.0", "output.error.1"]
    own = [f"{label}{more}" for label in labels for more in ("", ".error_kind", ".error")]
    assert list(types) == ["id", *own, "document", "pages", "headings", "chunk", *OWN[7:]]
    assert [first[label] for label in labels] == ["o0", "o1", None, "o3"]
    assert [second[label] for label in labels] == ["o4", None, "o6", "o7"]
    assert (second["tone.1.error_kind"], second["tone.1.error"]) == ("timeout", "too slow")
    # Of all branches of the row; one of the first row has not ended.
    assert [(row["attempts"], row["input_tokens"], row["cost_usd"]) for row in (first, second)] == [
        (3, 21, None), (4, 28, None),
    ]  # fmt: skip


def test_the_columns_of_a_wide_table_have_different_names():
    layout = RowLayout(aspects=("a", "a.error"), has_fields=True)
    outputs = [
        branch(0, '{"error": 1, "b": 2}', {"a.b": 0}, chunk=0, aspect="a"),
        branch(1, "plain", {"a.b": 0}, chunk=0, aspect="a.error"),
    ]
    types, [row] = read(outputs, layout, is_wide=True)
    assert list(types)[:7] == [
        "column.a.b", "a.output.error", "a.b", "a.error_kind", "a.error", "a.error_",
        "a.error.error_kind",
    ]  # fmt: skip
    assert (row["a.output.error"], row["a.error_"], row["a.error"]) == (1, "plain", None)


def test_too_many_columns_are_refused_and_not_collected(monkeypatch):
    monkeypatch.setattr(tables, "MOST_COLUMNS", 30)
    with pytest.raises(RunError, match="more than 30 columns"):
        read(branch(n, columns={f"c{n}": n}) for n in range(10**9))


def test_rows_wait_in_a_file_without_a_name(tmp_path):
    outputs = [branch(n, columns={"id": n, "z": {"a": [None, 1.5]}}) for n in range(1_234)]
    with FileSpool(tmp_path) as spool:
        table = gather(outputs, RowLayout(), spool)
        assert list(tmp_path.iterdir()) == []
        for _ in range(2):
            assert [row[:2] for row in table.rows()] == [
                [n, {"a": [None, 1.5]}] for n in range(1_234)
            ]


def test_a_table_is_arrow_data_in_batches(monkeypatch):
    monkeypatch.setattr("fanout.runs.tables.arrow._BATCH_ROWS", 100)
    outputs = [branch(n, columns={"id": n, "x": n / 2, "late": True} if n > 200 else {"id": n})
               for n in range(250)]  # fmt: skip
    table = gather(outputs, RowLayout(), MemorySpool())
    assert [batch.num_rows for batch in arrow_batches(table)] == [100, 100, 50]
    made = arrow_table(table)
    assert [str(field.type) for field in made.schema][:4] == ["int64", "double", "bool", "string"]
    assert made.column("id").to_pylist() == list(range(250))
    assert made.column("late").to_pylist()[200:202] == [None, True]


def test_lines_of_json_have_the_columns_of_the_input_too():
    columns = {"id": "007", "usage": "theirs", "n": [1]}
    given = {"columns": columns, "text_at": 0, "text_column": "kind", "text": "good"}
    good = output_row(branch(0, pages=[2], headings="A > B", **given))
    bad = branch(0, None, **given)
    source = ["column.kind", "id", "column.usage", "n"]
    place = ["index", "document", "chunk", "position", "start", "end", "aspect", "model", "sample"]
    assert list(good) == [*source, *place, "pages", "headings", "output", "finish_reason",
                          "attempts", "elapsed_s", "usage", "cached", "saved_usd"]  # fmt: skip
    assert list(good.values())[:4] == ["good", "007", "theirs", [1]]
    assert list(error_row(bad)) == [*source, *place, "kind", "message", "attempts",
                                    "finish_reason"]  # fmt: skip
    assert list(stream_row(bad)) == [*source, *place, "output", "error_kind", "error",
                                     "finish_reason", "attempts", "elapsed_s", "usage", "cached",
                                     "saved_usd"]  # fmt: skip
    assert stream_row(bad)["error_kind"] == "timeout"
