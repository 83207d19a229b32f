"""The failed calls of a reduce, of which there may be as many as groups."""

from __future__ import annotations

import tracemalloc

import pytest

from fanout.core.records import ErrorKind
from fanout.runs.status import ReduceError
from workers.reduce.made import FailedCalls


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
