"""A branch that stands still is told from one that waits, calls, or is held up by the server."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from fanout.core.errors import BrokerError
from fanout.core.ids import BranchId
from fanout.system.threads import ReadyThreads
from workers.consumer.leases import LeaseRenewal, end_if_stuck, held_tags
from workers.context.branch_steps import ClaimReleases
from workers.context.progress import BranchTracker

BRANCH = BranchId("r1", 0, 0, 7)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    return BranchTracker(step_s=10, clock=clock)


@pytest.mark.parametrize(
    ("within_s", "after_s", "is_overdue"),
    [(None, 1e6, False), (10, 9, False), (10, 11, True), (70, 11, False), (70, 71, True)],
)
def test_what_explains_itself_is_not_overdue(progress, clock, within_s, after_s, is_overdue):
    branch = progress.begin(BRANCH)
    branch.moves("does something", within_s=within_s)
    clock.now += after_s
    progress.turns()
    assert (progress.overdue() == [branch]) is is_overdue


def test_it_takes_two_looks_while_the_server_answers(progress, clock):
    branch = progress.begin(BRANCH)
    branch.moves("is begun", within_s=10)
    assert progress.newly_stuck() == []
    clock.now += 60
    progress.forgive()  # the server was away
    assert progress.newly_stuck() == []
    progress.forgive()
    assert progress.newly_stuck() == []
    assert progress.newly_stuck() == [branch]
    assert progress.newly_stuck() == [], "it is told once"
    assert progress.stuck() == [branch]


@pytest.mark.parametrize("what", ["moves", "ends"])
def test_one_that_moves_after_all_is_not_stuck(progress, clock, what):
    branch = progress.begin(BRANCH)
    branch.moves("is begun", within_s=10)
    clock.now += 11
    progress.turns()
    assert progress.newly_stuck() == []
    if what == "moves":
        branch.moves("calls", within_s=60)
    else:
        progress.end(branch)
    assert progress.newly_stuck() == []
    assert progress.stuck() == []


def test_on_a_loop_that_is_blocked_nothing_explains_itself(progress, clock):
    branch = progress.begin(BRANCH)
    clock.now += 9
    progress.turns()
    clock.now += 9
    assert not progress.is_loop_still
    assert progress.newly_stuck() == progress.newly_stuck() == []
    clock.now += 2
    assert progress.is_loop_still
    assert progress.newly_stuck() == []
    assert progress.newly_stuck() == [branch]


class Request:
    acknowledged = False
    name = "fanout.branch"

    def __init__(self, task_id, tag):
        self.id = task_id
        self.message = SimpleNamespace(delivery_tag=tag)


def context_with(store, progress, **steps):
    """Return a context whose beats and watchers use ``store``."""
    releases = ClaimReleases(lambda *key, **_: None)
    return SimpleNamespace(
        holder="me",
        connections=SimpleNamespace(fail_fast_store=store),
        branches=SimpleNamespace(progress=progress, releases=releases, **steps),
        loop=SimpleNamespace(call_soon=lambda step: step()),
    )


def test_the_lease_and_the_claim_of_one_that_stands_still_end(progress, clock, monkeypatch):
    released = []
    both = {Request("r1/0/0/7", "stuck"), Request("r1/0/0/8", "fine")}
    requests = SimpleNamespace(reserved_requests=both, active_requests=set())
    monkeypatch.setattr("workers.consumer.leases.state", requests)
    beats = [BrokerError("refused"), *[None] * 4]
    refusals = [BrokerError("refused")]

    def beat(_holder, *, ttl_s):
        if error := beats.pop(0):
            raise error

    def release_stuck(branch):
        if refusals:
            raise refusals.pop()
        released.append((branch.branch_id, branch.token))

    context = context_with(SimpleNamespace(beat=beat), progress, release_stuck=release_stuck)
    renewed = []
    monkeypatch.setattr("workers.consumer.leases.renew", lambda *args: renewed.append(args[-1]))
    leases = object.__new__(LeaseRenewal)
    leases._worker = SimpleNamespace(consumer=None, app=SimpleNamespace(context=context))
    leases._redis, leases._every_s = None, 1
    branch = progress.begin(BRANCH)
    branch.token = "t"
    branch.moves("is written down", within_s=10)
    clock.now += 11
    with pytest.raises(BrokerError):
        leases._renew()
    # It takes two looks, and two more where the claim was not given up after the first two.
    for _ in range(3):
        leases._renew()
        assert released == []
    leases._renew()
    assert released == [(BRANCH, "t")]
    assert renewed[-1] == ["fine"]
    assert held_tags(leases._worker) == ["fine", "stuck"]


def test_a_child_whose_branch_stands_still_ends_while_the_server_takes_writes(progress, clock):
    ended, refused = [], [BrokerError("refused")] * 3

    def take_lock(_name, _holder, *, ttl_s):
        if refused:
            raise refused.pop()

    context = context_with(SimpleNamespace(take_lock=take_lock), progress)

    def look():
        end_if_stuck(context, lambda: ended.append(clock.now))

    progress.begin(BRANCH).moves("is begun", within_s=10)
    for _ in range(9):
        clock.now += 1
        look()
    clock.now += 2
    for _ in range(4):
        look()
        assert ended == []
    look()
    assert ended == [clock.now]


def test_threads_are_there_before_they_are_needed():
    with ReadyThreads(5, "ready") as threads:
        assert sum(thread.name.startswith("ready") for thread in threading.enumerate()) == 5
        assert threads.submit(sum, [1, 2]).result() == 3


def no_more_than(count, monkeypatch):
    """Let this process start so many threads, and no more."""
    start, left = threading.Thread.start, [count]

    def limited(self):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.parametrize("count", [1, 3])
def test_where_there_cannot_be_so_many_those_there_are_do_all_of_it_once(count, monkeypatch):
    no_more_than(count, monkeypatch)
    done = []
    with ReadyThreads(8, "test") as threads:
        for number in range(20):
            threads.submit(done.append, number)
    assert sorted(done) == list(range(20))


def test_where_there_can_be_none_it_says_so(monkeypatch):
    no_more_than(0, monkeypatch)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ReadyThreads(8, "test")


def test_a_function_is_called_once_where_there_are_fewer_threads(monkeypatch):
    from fanout.llm.base import LLMRequest
    from fanout.llm.callables import CallableLLM

    calls = []

    def answer(prompt):
        calls.append(prompt)
        return prompt

    async def main():
        llm = CallableLLM(answer, concurrency=8)
        no_more_than(1, monkeypatch)
        asked = [llm.complete(LLMRequest(prompt=str(number))) for number in range(9)]
        assert len(await asyncio.gather(*asked)) == 9
        await llm.aclose()

    asyncio.run(main())
    assert sorted(calls) == [str(number) for number in range(9)]
