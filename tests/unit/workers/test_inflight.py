"""Which calls end as their run is stopped."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fanout.core.records import RunStatus
from tests.fakes import RUN, FakeContext
from workers.context import inflight
from workers.context.inflight import CallStoppedError, InFlight, StopReason

_WITHIN_S = 60


class SlowStore:
    """Gives a run as it was when it was asked for, but only once it is let go."""

    def __init__(self, store):
        self._store = store
        self.is_read = threading.Event()
        self.goes_on = threading.Event()

    def run(self, run_id):
        run = self._store.run(run_id)
        self.is_read.set()
        assert self.goes_on.wait(_WITHIN_S)
        return run


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(inflight, "_LOOK_S", 0.0)
    return FakeContext()


def test_a_call_that_begins_while_its_run_is_read_is_not_stopped_by_what_was_read(run):
    async def whole():
        run.store.halt(RUN, RunStatus.CANCELLED)
        slow = SlowStore(run.store)
        calls = InFlight(slow)
        answer = asyncio.get_running_loop().create_future()

        async def answered():
            return await answer

        before = asyncio.create_task(calls.call(RUN, asyncio.Event().wait(), has_deadline=True))
        assert await asyncio.to_thread(slow.is_read.wait, _WITHIN_S)
        # The run ends, and is retried.
        run.store.end_run(RUN, RunStatus.CANCELLED, ended_at=1.0)
        assert run.store.reopen_run(RUN, retry=frozenset())
        after = asyncio.create_task(calls.call(RUN, answered(), has_deadline=True))
        await asyncio.sleep(0)
        slow.goes_on.set()
        with pytest.raises(CallStoppedError) as stopped:
            await asyncio.wait_for(before, _WITHIN_S)
        assert stopped.value.reason is StopReason.HALTED
        # Also not by what is read later.
        slow.is_read.clear()
        assert await asyncio.to_thread(slow.is_read.wait, _WITHIN_S)
        assert not after.done()
        answer.set_result("fine")
        assert await after == "fine"
        await calls.aclose()

    asyncio.run(whole())


def test_a_call_that_begins_while_its_run_is_read_is_stopped_by_the_next_look(run):
    async def whole():
        slow = SlowStore(run.store)
        calls = InFlight(slow)
        before = asyncio.create_task(calls.call(RUN, asyncio.Event().wait(), has_deadline=True))
        assert await asyncio.to_thread(slow.is_read.wait, _WITHIN_S)
        run.store.halt(RUN, RunStatus.CANCELLED)
        after = asyncio.create_task(calls.call(RUN, asyncio.Event().wait(), has_deadline=True))
        slow.goes_on.set()
        for call in (before, after):
            with pytest.raises(CallStoppedError):
                await asyncio.wait_for(call, _WITHIN_S)
        await calls.aclose()

    asyncio.run(whole())
