"""Results that are larger than memory: written in pieces, and read whole or a part at a time."""

from __future__ import annotations

import errno
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.aggregators import (
    Aggregate,
    Fields,
    GroupedAggregates,
    Item,
    Streamed,
    Tally,
    aggregate_groups,
)
from fanout.core.errors import RunError, UnknownRunError
from fanout.core.records import ErrorKind, RunStatus
from fanout.runs import result_writer
from fanout.runs.answer_text import answer_text
from fanout.runs.output_files import OutputFolder
from fanout.runs.result_values import stored_values
from fanout.runs.result_writer import ResultTooLargeError, write_result
from fanout.runs.spaced_json import array_json, indented_json, object_json, spaced_json
from fanout.runs.status import ReduceError, StoredResult, coverage_value
from fanout.runs.stored_aggregate import StoredAggregate
from tests.fakes import fake_store

RUN = "abcdefgh"
KINDS = {
    "concat": Fields(), "merge": Fields(), "rank": Fields(), "vote": Fields(), "table": Fields(by=("a",)),
}  # fmt: skip
PLAIN = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def store():
    made = fake_store()
    made.create_run(RUN, spec="{}", created_at=1.0)
    return made


@pytest.fixture
def small(monkeypatch):
    """All values and aggregates are in pieces, and each piece is small."""
    monkeypatch.setattr(result_writer, "_SMALL_BYTES", -1)
    monkeypatch.setattr(result_writer, "_LISTED_BYTES", -1)
    monkeypatch.setattr(result_writer, "PIECE_BYTES", 7)


def items_of(*groups):
    return [
        Item(index=at, document=f"d{at}", output=output, group=group)
        for at, (group, output) in enumerate(
            (group, output) for group, outputs in groups for output in outputs
        )
    ]


ANSWERS = [
    '{"a": 1.0, "b": "é\\n\\"\\u0001"}',
    '{"a": [2, {}], "b": 1e-7}',
    "8 ☃ of 10",
    "[]",
    "x\r\ny",
]
GROUPS = [("g", ANSWERS), ("", [*ANSWERS[1:], "x"]), ("empty", [None])]


def write(store, name, groups, fields):
    with GroupedAggregates(name, fields) as made:
        for item in items_of(*groups):
            made.add(item)
        return write_result(store, RUN, made.results())


def keys(store):
    return sorted(key.decode() for key in store._redis.keys("*:result:*"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_result_in_pieces_is_read_as_one_in_memory(store, name, is_grouped, tmp_path):
    groups = GROUPS if is_grouped else [("", ANSWERS)]
    assert write(store, name, groups, KINDS[name])
    whole = {
        group: one.value
        for group, one in aggregate_groups(name, items_of(*groups), KINDS[name]).items()
    }
    expected = whole if is_grouped else whole[""]
    values = stored_values(store, RUN)
    record = msgspec.json.decode(store.result(RUN), type=StoredResult)
    assert record.aggregates == {}
    assert record.entries is not None
    # Only what has no byte is with the aggregates.
    assert all(one.held or not one.value for _, one in values.aggregates())
    assert values.listed().stored.aggregates == dict(values.aggregates())
    read = StoredAggregate(values, name, is_grouped=is_grouped)
    assert read.value() == expected
    assert "".join(read.json()) == json.dumps(expected, ensure_ascii=False)
    assert "".join(read.json(is_indented=True)) == json.dumps(
        expected, ensure_ascii=False, indent=2
    )
    assert "".join(read.texts()) == answer_text(expected, name)
    for folder, aggregated in (("parts", read), ("whole", expected)):
        with OutputFolder(tmp_path / folder) as out:
            out.write([], aggregated, {})
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("parts", "whole")
    ]
    assert written[0] == written[1]


def test_small_values_are_in_the_record_until_they_are_many(store, monkeypatch):
    monkeypatch.setattr(result_writer, "_SMALL_BYTES_IN_ALL", 10)
    made = [(str(at), Aggregate(value="x" * 4)) for at in range(5)]
    assert write_result(store, RUN, [*made, ("json", Aggregate(value={"a": 1}))])
    values = stored_values(store, RUN)
    aggregates = dict(values.aggregates())
    assert [one.held is None for one in aggregates.values()] == [True] * 2 + [False] * 4
    assert [values.value(one) for one in aggregates.values()] == ["xxxx"] * 5 + [{"a": 1}]
    # Small values share a piece.
    assert len(keys(store)) == 2


@pytest.mark.usefixtures("small")
def test_a_page_shows_the_beginning_of_what_is_large(store):
    write(store, "rank", [("", [str(at) for at in range(50)])], Fields())
    values = stored_values(store, RUN)
    [(_, one)] = values.aggregates()
    shown = values.preview(one, most_bytes=10, most_rows=3)
    assert [row["score"] for row in shown] == [49, 48, 47]
    assert one.held.rows == 50


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "shown"), [("concat", "ééé"), ("merge", '["éé')])
def test_a_text_that_is_large_is_cut_between_its_characters(store, name, shown):
    write(store, name, [("", ['"éééééé"', '"x"'] if name == "merge" else ["éééééé"])], Fields())
    values = stored_values(store, RUN)
    [(_, one)] = values.aggregates()
    assert values.preview(one, most_bytes=7, most_rows=3) == shown


@pytest.mark.usefixtures("small")
def test_a_writer_that_fails_leaves_nothing(store):
    def chunks():
        yield b"x" * 100
        raise ValueError("no")

    made = Streamed(form="text", chunks=chunks(), end=lambda: Aggregate(value=None))
    with pytest.raises(ValueError, match="no"):
        write_result(store, RUN, [("", made)])
    assert keys(store) == []
    assert store.result(RUN) is None


@pytest.mark.usefixtures("small")
def test_of_two_writers_the_first_to_end_stands_and_the_other_leaves_nothing(store):
    def chunks():
        yield b"mine " * 10
        assert write(store, "concat", [("", ["theirs"])], Fields())
        # Its pieces are gone, and it can write no more.
        yield b"mine " * 10

    made = Streamed(form="text", chunks=chunks(), end=lambda: Aggregate(value=None))
    assert not write_result(store, RUN, [("", made)])
    values = stored_values(store, RUN)
    assert StoredAggregate(values, "concat", is_grouped=False).value() == "theirs"
    names = {key.rpartition(":")[0] for key in keys(store)}
    assert len(names) == 2, "the pieces of one, and the writers"


@pytest.mark.usefixtures("small")
def test_a_killed_writer_leaves_pieces_that_the_next_one_deletes(store):
    assert store.put_result_piece(RUN, b"left", writer="dead", number=0)
    assert write(store, "concat", [("", ["x"])], Fields())
    assert not any(":dead" in key for key in keys(store))
    assert not store.put_result_piece(RUN, b"late", writer="dead", number=1)


@pytest.mark.usefixtures("small")
def test_a_reopened_run_has_no_pieces_and_takes_no_record_of_before(store):
    write(store, "concat", [("", ["x" * 50])], Fields())
    writer = stored_values(store, RUN).stored.writer
    record = store.result(RUN)
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=2.0)
    assert not store.put_result_piece(RUN, b"late", writer="late", number=0)
    assert store.reopen_run(RUN, retry=frozenset())
    assert keys(store) == []
    assert not store.put_result(RUN, record, writer=writer)
    assert stored_values(store, RUN) is None


@pytest.mark.usefixtures("small")
def test_pieces_are_deleted_with_their_run(store):
    write(store, "concat", [("", ["x" * 50])], Fields())
    assert len(keys(store)) > 5
    values = stored_values(store, RUN)
    [(_, one)] = values.aggregates()
    store.delete_run(RUN)
    assert keys(store) == []
    with pytest.raises(UnknownRunError):
        values.value(one)


@pytest.mark.usefixtures("small")
def test_very_many_errors_are_in_pieces(store):
    errors = [
        ReduceError(group=f"g{at}", kind=ErrorKind.TIMEOUT, message="é", attempts=3)
        for at in range(20)
    ]
    assert write_result(store, RUN, [("g", Aggregate(value=1))], errors)
    values = stored_values(store, RUN)
    assert values.stored.errors == []
    assert list(values.errors()) == errors
    assert values.listed().stored.all_errors == errors


NOTES = st.one_of(st.text(max_size=5), st.integers(), st.lists(st.text(max_size=3), max_size=2))
NAMED = st.lists(st.tuples(st.sampled_from(["a", "", 'b"\n', "é"]), NOTES), max_size=3)


@PLAIN
@given(pairs=NAMED, is_indented=st.booleans())
def test_objects_and_lists_in_parts_are_as_in_whole(pairs, is_indented):
    indent = 2 if is_indented else None

    def dumped(value):
        return json.dumps(value, ensure_ascii=False, indent=indent)

    named = dict(pairs)
    parts = object_json(
        ((name, list(dumped(value))) for name, value in named.items()), is_indented=is_indented
    )
    assert "".join(parts) == dumped(named)
    assert "".join(array_json(named.values(), is_indented=is_indented)) == dumped([*named.values()])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("is_indented", [False, True])
def test_what_is_behind_very_many_groups_is_printed_as_that_of_a_few(store, is_indented):
    behind = Tally.of(document=0, chunk=0, kind=None).coverage()
    made = [(name, Aggregate(value="x", coverage=behind, notes=[f"of {name}"])) for name in "abc"]
    assert write_result(store, RUN, made)
    read = StoredAggregate(stored_values(store, RUN), "llm", is_grouped=True)
    indent = 2 if is_indented else None
    for parts, value in (
        (read.coverage_json(is_indented=is_indented), coverage_value(read.coverage())),
        (read.sources_json(is_indented=is_indented), read.sources()),
    ):
        assert "".join(parts) == json.dumps(value, indent=indent)
    assert read.notes() == ["a: of a", "b: of b", "c: of c"]
    assert "".join(read.texts()) == "## a\n\nx\n\n## b\n\nx\n\n## c\n\nx"


def test_a_note_has_the_beginning_of_a_very_long_name(store):
    name = "x" * 100_000
    assert write_result(store, RUN, [(name, Aggregate(value="x", notes=["of it"]))])
    read = StoredAggregate(stored_values(store, RUN), "llm", is_grouped=True)
    assert read.notes() == [f"{name[:200]}...: of it"]


def test_too_many_groups_are_an_error(store, monkeypatch):
    monkeypatch.setattr(result_writer, "_MAX_RECORD_BYTES", 10)
    with pytest.raises(ResultTooLargeError):
        write_result(store, RUN, [("", Aggregate(value=1))])
    assert store.result(RUN) is None


def test_records_of_before_are_read(store):
    store.put_result(
        RUN, b'{"aggregates":{"":{"value":"x","succeeded":1,"failed":0,"notes":[]}},"errors":[]}'
    )
    values = stored_values(store, RUN)
    assert values.stored == StoredResult(aggregates={"": Aggregate(value="x", succeeded=1)})


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["\\", '"', '\\"', "e1", "\n"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@PLAIN
@given(value=VALUES, size=st.integers(1, 20))
def test_json_in_parts_has_the_spaces_of_json_in_whole(value, size):
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts = [compact[at : at + size] for at in range(0, len(compact), size)]
    assert "".join(spaced_json(parts)) == json.dumps(value, ensure_ascii=False)
    assert "".join(indented_json(parts)) == json.dumps(value, ensure_ascii=False, indent=2)


def test_without_room_for_a_file_of_very_many_groups_the_error_says_so(store, monkeypatch):
    def full(**_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    made = ((f"group {at}", Aggregate(value="x" * 50)) for at in range(20_000))
    with pytest.raises(RunError, match=r"No space left on device.*set TMPDIR"):
        write_result(store, RUN, made)
    assert store.result(RUN) is None
