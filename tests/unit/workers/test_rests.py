from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.base import LLMRequest
from workers.branch.claimed_gate import ClaimedGate
from workers.branch.claims import Claim


@pytest.mark.parametrize(
    ("kind", "seconds", "leaves"),
    [
        (ErrorKind.RATE_LIMITED, 2.0, True),
        (ErrorKind.RATE_LIMITED, 0.1, False),
        # Others in its place would fail, too.
        (ErrorKind.SERVER_ERROR, 2.0, False),
        (ErrorKind.CONNECTION, 2.0, False),
        (ErrorKind.TIMEOUT, 2.0, False),
    ],
)
def test_only_a_refused_call_leaves_its_place_until_the_next_one(kind, seconds, leaves):
    left, waited = [], []

    async def wait(seconds):
        waited.append(seconds)

    async def leave(*_arguments):
        return None

    claim = SimpleNamespace(
        is_refused=False,
        lead=None,
        waits=lambda: None,
        leaves_place=lambda: left.append(True),
        _context=SimpleNamespace(models=SimpleNamespace(in_flight=SimpleNamespace(wait=wait))),
    )
    gate = ClaimedGate(claim, SimpleNamespace(leave=leave), 1.0, compares=False)

    async def fail_and_rest():
        await gate.leave(LLMRequest(prompt="p"), None, LLMError(kind, "no"))
        await Claim.rests(claim, seconds)

    asyncio.run(fail_and_rest())
    assert bool(left) == leaves
    assert waited == [seconds]
