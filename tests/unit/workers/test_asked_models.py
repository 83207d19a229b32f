"""What the models that a branch asked in turn have consumed together."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec import structs

from fanout.core.errors import ModelError
from fanout.core.records import NO_CALL, QUANTITIES, ErrorKind, Usage
from fanout.llm.calls import CallResult
from workers.branch.asked_models import ended_model, joined, result_of, without_call
from workers.branch.shared_failures import failed_as, shared_failure
from workers.context.broken_models import unusable

KNOWN = Usage(
    calls=2, input_tokens=10, cached_input_tokens=4, cache_write_tokens=0, output_tokens=3,
    reasoning_tokens=1, cost_usd=0.5,
)  # fmt: skip
PARTLY = Usage(calls=3, input_tokens=7, at_least={"cost_usd": 0.25, "output_tokens": 2})


def result(usage, **fields):
    fields = {"kind": ErrorKind.TIMEOUT, "message": "no", "output": None, **fields}
    return CallResult(attempts=usage.calls, usage=usage, elapsed_s=1.0, **fields)


PARTS = {
    "not asked": without_call(ErrorKind.AUTH, "no"),
    "unusable": unusable(ModelError("no")),
    "shared": failed_as(
        shared_failure(result(KNOWN, kind=ErrorKind.TRUNCATED), terms="", attempt=""), None
    ),
    "cached": result(NO_CALL, output="a", kind=None, message=None, saved=KNOWN),
    "known": result(KNOWN),
    "batch": result(structs.replace(KNOWN, cost_usd=0.25), lane="batch"),
    "partly known": result(PARTLY),
    "unknown": result(Usage(calls=1)),
}


@pytest.mark.parametrize("names", [*product(PARTS, PARTS)], ids=" and ".join)
def test_the_sum_of_models_asked_in_turn_has_what_is_known_of_each(names):
    parts = [PARTS[name] for name in names]
    # As it is, and as a checkpoint keeps the first.
    for first in (parts[0], result_of(ended_model("a", parts[0]))):
        both = joined([("a", first), ("b", parts[1])])
        assert both.usage.calls == both.attempts == sum(one.usage.calls for one in parts)
        for name in QUANTITIES:
            values = [getattr(one.usage, name) for one in parts]
            known = sum(one.usage.known(name) for one in parts)
            assert getattr(both.usage, name) == (None if None in values else known)
            assert both.usage.known(name) == known
        # The totals by model add up to it.
        by_model = both.usage_of or {"a": both.usage}
        for name in QUANTITIES:
            assert sum(one.known(name) for one in by_model.values()) == both.usage.known(name)


@pytest.mark.parametrize("name", ["not asked", "unusable", "shared", "cached"])
def test_what_made_no_call_has_consumed_nothing(name):
    assert PARTS[name].usage == joined([("a", PARTS[name])]).usage == NO_CALL
