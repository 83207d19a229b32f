"""The order of tests on several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.order import dealt, turned

# Modules as pytest-randomly leaves them; those with a capital letter are slow.
NAMES = ["a", "B", "c", "D", "e", "F", "g", "h", "I"]
COUNTS = [9, 3, 5, 1, 40, 2, 7, 11, 6]
LONG = {("D", 0), ("F", 1)}
TESTS = [(name, at) for name, count in zip(NAMES, COUNTS, strict=True) for at in range(count)]


def order(tests, processes):
    return dealt(
        tests,
        processes=processes,
        module=lambda test: test[0],
        is_slow=lambda test: test[0].isupper(),
        is_long=lambda test: test in LONG,
    )


def slices(tests, processes):
    """What each process begins with, as pytest-xdist deals it."""
    left = list(tests)
    for number in range(processes):
        size = len(left) // (processes - number)
        yield left[:size]
        del left[:size]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_each_process_begins_with_slow_modules_but_the_last(processes):
    made = order(TESTS, processes)
    assert sorted(made) == sorted(TESTS)
    *first, last = [[name.isupper() for name, _ in part] for part in slices(made, processes)]
    for flags in first:
        assert flags[0]
        assert flags == sorted(flags, reverse=True)
    assert processes == 1 or not any(last)


@pytest.mark.parametrize("processes", [1, 2, 5, 20])
@pytest.mark.parametrize("case", ["B", "a", "aBc", "BDF", ""])
def test_no_test_is_lost_and_a_slow_module_stays_together(processes, case):
    tests = [test for test in TESTS if test[0] in case]
    made = order(tests, processes)
    assert sorted(made) == sorted(tests)
    for name in filter(str.isupper, case):
        first = made.index((name, 0))
        own = [test for test in tests if test[0] == name]
        assert made[first : first + len(own)] == own


@pytest.mark.parametrize(("processes", "begun"), [(2, "DF"), (3, "DF"), (5, "DFIB")])
def test_the_modules_with_a_long_test_come_first_each_in_another_process(processes, begun):
    first = list(slices(order(TESTS, processes), processes))[:-1]
    heads = [list(dict.fromkeys(name for name, _ in part if name.isupper())) for part in first]
    if processes == 2:
        assert set(heads[0][:2]) == set(begun)
    else:
        assert {head[0] for head in heads} == set(begun)


@pytest.mark.parametrize(
    ("seconds", "hands"),
    [
        ({"B": 10, "D": 1, "F": 1, "I": 7}, ["DB", "FI"]),
        ({"B": 2, "D": 9, "F": 1, "I": 3}, ["D", "FIB"]),
        ({"B": 5, "D": 5, "F": 5, "I": 5}, ["DB", "FI"]),
    ],
)
def test_slow_modules_are_shared_out_by_their_seconds(seconds, hands):
    made = dealt(
        TESTS,
        processes=3,
        module=lambda test: test[0],
        is_slow=lambda test: test[0].isupper(),
        is_long=lambda test: test in LONG,
        seconds=lambda tests: seconds[tests[0][0]],
    )
    found = ["".join(dict.fromkeys(name for name, _ in part)) for part in slices(made, 3)]
    assert ["".join(filter(str.isupper, part)) for part in found] == [*hands, ""]


def test_the_modules_whose_seconds_are_written_down_exist():
    tests = Path(__file__).parents[2]
    seconds = json.loads((tests / "seconds.json").read_text())
    assert [name for name in seconds if not (tests / name).is_file()] == []


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_process_begins_to_collect_elsewhere_and_collects_everything(processes):
    folders, sizes = ["a", "b", "c", "d", "e"], [30, 5, 35, 10, 20]
    orders = [
        turned(folders, sizes=sizes, number=number, processes=processes)
        for number in range(processes)
    ]
    assert [order[0] for order in orders] == ["a", "b", "c", "d"][:: 4 // processes]
    for order in orders:
        begin = folders.index(order[0])
        assert order == folders[begin:] + folders[:begin]
