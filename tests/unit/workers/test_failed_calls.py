"""The failed calls of a reduce, of which there may be as many as groups."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest

from fanout.core.records import ErrorKind, Outcome
from fanout.runs.status import ReduceError
from workers.reduce import made
from workers.reduce.made import FailedCalls, FirstFailedCalls


def failed(number):
    return ReduceError(
        group=f"group {number}", kind=ErrorKind.TIMEOUT, message=f"no reply\né {'x' * 200}",
        attempts=number % 4,
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2_000])
def test_failed_calls_are_given_back_in_order_as_often_as_asked(count):
    calls = FailedCalls()
    errors = list(map(failed, range(count)))
    for error in errors:
        calls.add(error)
    assert list(calls) == errors
    assert list(calls) == errors
    assert calls.last == (errors[-1] if errors else None)


def test_very_many_failed_calls_take_little_memory():
    tracemalloc.start()
    try:
        calls = FailedCalls()
        for number in range(20_000):
            calls.add(failed(number))
        count = sum(1 for _ in calls)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    # As objects, they would take ten megabytes.
    assert peak_bytes < 2_000_000


def test_of_failed_comparisons_the_first_are_shown_and_one_of_each_kind():
    calls = FirstFailedCalls("best")
    kinds = [ErrorKind.TIMEOUT] * 150 + [ErrorKind.CANCELLED] * 2 + [ErrorKind.BUDGET] * 5
    for number, kind in enumerate(kinds):
        calls.add(Outcome(index=number, kind=kind, message="no", attempts=2), f"g{number}")
    assert [error.group for error in calls.errors] == [
        *(f"g{n}" for n in range(100)), "g150", "g152",
    ]  # fmt: skip
    assert calls.over_budget == 5
    calls.add(Outcome(index=9, kind=ErrorKind.INTERNAL, message="oh", attempts=1), "last")
    assert calls.why == f"{ErrorKind.BUDGET.value}: no (after 2 calls)"


def test_each_byte_of_very_many_failed_calls_is_looked_at_a_few_times_only(monkeypatch):
    calls, digits = FailedCalls(), random.Random(1)
    for number in range(5_000):
        message = f"{digits.getrandbits(800):x}"
        calls.add(ReduceError(group="", kind=ErrorKind.TIMEOUT, message=message, attempts=number))
    given = []

    class Reader:
        def __init__(self):
            self._reader = zlib.decompressobj()

        def __getattr__(self, name):
            return getattr(self._reader, name)

        def decompress(self, data, most):
            given.append(len(data))
            return self._reader.decompress(data, most)

    monkeypatch.setattr(made, "zlib", SimpleNamespace(decompressobj=Reader))
    assert [one.attempts for one in calls] == list(range(5_000))
    assert sum(given) < 4 * len(calls._data)
