"""A pool that stops lets the branches end that go back to their queue."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from fanout.system.threads import ReadyThreads
from workers.branch.delivery_ends import BranchHandedBack
from workers.consumer.pool import AsyncioPool
from workers.consumer.task_requests import BranchRequest
from workers.context.event_loop import LoopThread
from workers.context.progress import BranchTracker


@pytest.fixture
def pool(monkeypatch):
    async def process_branch(*_args, **_options):
        raise BranchHandedBack

    monkeypatch.setattr("workers.consumer.pool.process_branch", process_branch)
    threads = ReadyThreads(1, "test")
    branches = SimpleNamespace(
        threads=threads, linger_s=lambda: 0.0, progress=BranchTracker(step_s=60)
    )
    context = SimpleNamespace(
        loop=LoopThread(), branches=branches, admission=SimpleNamespace(places=None)
    )
    pool = AsyncioPool(1, app=SimpleNamespace(context=context, owns_process=False))
    pool.on_start()
    pool.register_with_event_loop(SimpleNamespace(call_soon=lambda step, *args: step(*args)))
    yield pool
    threads.shutdown()
    context.loop.close()


def branch_request():
    request = object.__new__(BranchRequest)
    request._request_dict = {"properties": {"delivery_tag": "a"}}
    request._kwargs = {"run_id": "r1", "stage": 0, "shard": 0, "position": 1}
    request.on_accepted = None
    return request


def test_a_branch_that_is_handed_back_is_settled_although_the_pool_stops(pool):
    """Its place in the queue of threads comes after a task that takes long."""
    free, settled = threading.Event(), []
    pool.on_apply(lambda: free.wait(90), (), {}, callback=lambda _: None)
    request = branch_request()
    pool.on_apply(
        lambda: settled.append(request.request_dict["ended"]),
        (),
        {},
        callback=lambda _: None,
        accept_callback=BranchRequest.abandon.__get__(request),
    )
    until = time.monotonic() + 90
    while not pool._handed_back and time.monotonic() < until:
        time.sleep(0.01)
    stopping = threading.Thread(target=pool.on_stop)
    stopping.start()
    stopping.join(0.2)
    free.set()
    stopping.join(90)
    assert [type(fault) for fault in settled] == [BranchHandedBack]
