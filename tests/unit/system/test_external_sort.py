from __future__ import annotations

import errno
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.errors import RunError
from fanout.system.external_sort import ExternalSorter, Pile, Scratch, grouped

KEYS = st.tuples(st.integers(0, 3), st.one_of(st.integers(), st.floats(allow_nan=False)))
DATA = st.one_of(st.text(max_size=20), st.binary(max_size=20), st.integers(), st.none())


@settings(deadline=None)
@given(
    records=st.lists(st.tuples(KEYS, DATA), max_size=200),
    memory_bytes=st.sampled_from([1, 600, 3_000, 1_000_000]),
)
def test_records_come_back_in_order_as_often_as_asked(records, memory_bytes):
    expected = sorted(((key, (data,)) for key, data in records), key=lambda record: record[0])
    with ExternalSorter(Scratch(memory_bytes=memory_bytes)) as sorter:
        for key, data in records:
            sorter.add(key, data)
        # repr, as 1 and 1.0 are equal.
        assert repr(list(sorter)) == repr(expected)
        assert repr(list(sorter)) == repr(expected)


def test_records_that_come_in_order_make_one_file(tmp_path, monkeypatch):
    made = []
    scratch = Scratch(memory_bytes=1)
    make = scratch.file
    monkeypatch.setattr(scratch, "file", lambda: made.append(make()) or made[-1])
    with ExternalSorter(scratch) as sorter:
        for number in range(100):
            sorter.add((number,))
        assert len(made) == 1
        for number in reversed(range(600)):
            sorter.add((number,))
        assert sum(not file.closed for file in made) < 50, "files are merged"
        assert [key for key, _ in sorter] == sorted(
            [(n,) for n in range(100)] + [(n,) for n in range(600)]
        )
    assert all(file.closed for file in made)


def test_what_fits_into_memory_makes_no_file(tmp_path):
    with ExternalSorter(Scratch(folder=str(tmp_path / "missing"))) as sorter:
        sorter.add((2,), "b")
        sorter.add((1,), "a")
        assert list(sorter) == [((1,), ("a",)), ((2,), ("b",))]


def test_the_error_names_the_folder_without_room(tmp_path, monkeypatch):
    missing = tmp_path / "missing"
    with (
        ExternalSorter(Scratch(memory_bytes=1, folder=str(missing))) as sorter,
        pytest.raises(RunError, match=r"cannot write temporary files to .*missing \(No such file"),
    ):
        sorter.add((1,))

    def full(**_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(RunError, match=r"No space left on device.*set TMPDIR"):
        Scratch().file()


@pytest.mark.parametrize(
    "record",
    [
        lambda text: ((text,), ()),
        lambda text: ((0, (1, text)), ()),
        lambda text: ((text[:8],), (text,)),
        lambda text: ((text[:8],), ((text.encode(), 1), 2)),
        lambda text: ((text[:8],), (1, (((text,),),))),
    ],
)
def test_all_that_a_record_has_counts_as_memory(record):
    with ExternalSorter(Scratch(memory_bytes=300_000)) as sorter:
        tracemalloc.start()
        try:
            for number in range(1_000):
                key, data = record(f"{number:08}" + "x" * 10_000)
                sorter.add(key, *data)
            assert sum(1 for _ in sorter) == 1_000
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # 10 MB of records; their blocks are encoded before they are written.
    assert peak_bytes < 3_000_000


def test_sorters_inside_each_other_share_one_memory():
    whole = Scratch(memory_bytes=10_000_000)
    with whole.sorter() as outer:
        for number in range(400):
            outer.add((number,), b"x" * 10_000)
        inner = whole.beside(outer)
        assert 5_000_000 < inner.memory_bytes < 7_000_000
        for number in range(400):
            outer.add((number,), b"x" * 10_000)
        inner = whole.beside(outer)
        assert inner.memory_bytes > 9_900_000, "more than half of it goes into a file"
        assert len(list(outer)) == 800
    assert Scratch(memory_bytes=1).beside(outer).memory_bytes == 1


def test_records_are_grouped_by_a_part_of_their_key():
    records = [((1, "a"), ()), ((1, "b"), ()), ((2, "b"), ())]
    assert [(part, len(list(some))) for part, some in grouped(records)] == [(1, 2), (2, 1)]
    assert [(part, len(list(some))) for part, some in grouped(records, at=1)] == [
        ("a", 1),
        ("b", 2),
    ]


@settings(deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=50)),
    ends=st.tuples(st.integers(0, 900), st.integers(0, 900)),
)
def test_a_pile_gives_any_part_of_it_back(pieces, ends):
    whole = b"".join(pieces)
    start, end = sorted(min(one, len(whole)) for one in ends)
    with Pile(Scratch()) as pile:
        for piece in pieces:
            pile.add(piece)
        assert pile.size == len(whole)
        assert b"".join(pile.read(start, end)) == whole[start:end]
        pile.add(b"more")
        assert b"".join(pile.read(len(whole), pile.size)) == b"more"
