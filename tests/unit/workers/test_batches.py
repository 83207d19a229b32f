"""Steps that coroutines share, and what is loaded once for all of them."""

from __future__ import annotations

import asyncio
import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fanout.core.errors import BrokerError
from fanout.core.ids import BranchId
from fanout.core.state import BeginRequest
from workers.context.batches import Batches, LoadingCache, until_ended
from workers.context.branch_steps import BranchSteps, ClaimReleases


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Step:
    """Carries out steps, and notes which came together; waits for ``go`` in each."""

    def __init__(self):
        self.batches = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self, asked):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.batches.append(asked)
        self.begun.release()
        assert self.go.acquire(timeout=60)
        self.at_once -= 1
        return [number * 10 for number in asked]


async def begun(step):
    assert await asyncio.to_thread(step.begun.acquire, timeout=60)


@pytest.mark.parametrize("fault", [None, ValueError("no answer")])
def test_what_may_have_been_done_for_one_who_was_cancelled_is_told(threads, fault):
    """A begin that is done behind what was to undo it would be nobody's, and bar all others."""

    async def main():
        step, abandoned = Step(), []

        def carry_out(asked):
            given = step(asked)
            if fault is not None:
                raise fault
            return given

        batches = Batches(carry_out, threads, abandoned=abandoned.append)
        gone, stays = (asyncio.ensure_future(batches(number)) for number in (1, 2))
        await begun(step)
        gone.cancel()
        await asyncio.sleep(0)
        assert abandoned == [], "it is under way"
        step.go.release(3)
        answers: list[object] = list(await asyncio.gather(stays, return_exceptions=True))
        expected = 20 if fault is None else fault
        assert answers == [expected]
        assert abandoned == [1]

    asyncio.run(main())


@pytest.mark.parametrize("refusals", [[], [BrokerError("refused")]])
def test_a_begin_that_nobody_waits_for_is_taken_back(threads, refusals):
    taken_back = threading.Event()

    def release_claim(branch_id, *, token, counts):
        assert (branch_id, token, counts) == (BranchId("r1", 0, 3, 59), "t1", False)
        if refusals:
            raise refusals.pop()
        taken_back.set()

    steps = object.__new__(BranchSteps)
    steps.releases, steps.threads = ClaimReleases(release_claim), threads
    start = BeginRequest(BranchId("r1", 0, 3, 59), token="t1", holder="me", lasts_s=60)
    steps._release_abandoned(start)
    # What is refused is done with a later beat of the worker.
    while not taken_back.wait(0.01):
        steps.releases.again()


def test_what_is_asked_for_while_a_step_is_under_way_goes_with_the_next(threads):
    async def main():
        step = Step()
        batches = Batches(step, threads)
        first = [asyncio.ensure_future(batches(number)) for number in (1, 2)]
        await begun(step)
        second = [asyncio.ensure_future(batches(number)) for number in (3, 4, 5)]
        await asyncio.sleep(0)
        step.go.release(2)
        assert await asyncio.gather(*first, *second) == [10, 20, 30, 40, 50]
        assert step.batches == [[1, 2], [3, 4, 5]]
        assert step.most_at_once == 1

    asyncio.run(main())


def test_what_one_step_raises_is_raised_for_no_other_that_shared_the_round_trip(threads):
    def carry_out(asked):
        if "bad" in asked:
            raise ValueError(asked)
        return asked

    async def main():
        batches = Batches(carry_out, threads)
        ended = await asyncio.gather(batches("a"), batches("bad"), return_exceptions=True)
        assert ended[0] == "a"
        assert isinstance(ended[1], ValueError)
        assert await batches("b") == "b"

    asyncio.run(main())


def test_a_server_that_is_away_is_not_asked_for_each_by_itself(threads):
    asked_for = []

    def carry_out(asked):
        asked_for.append(asked)
        raise BrokerError("no broker answers", is_passing=True)

    async def main():
        batches = Batches(carry_out, threads)
        ended = await asyncio.gather(batches(1), batches(2), return_exceptions=True)
        assert [type(error) for error in ended] == [BrokerError, BrokerError]
        assert asked_for == [[1, 2]]

    asyncio.run(main())


class Refusing:
    """An executor that cannot take work, for a while or for good."""

    def __init__(self, threads, error, *, times):
        self._threads, self._error, self._times = threads, error, times

    def submit(self, *args):
        if self._times:
            self._times -= 1
            raise self._error
        return self._threads.submit(*args)


EXHAUSTED = [
    RuntimeError("can't start new thread"),
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=repr)
@pytest.mark.parametrize("where", ["submit", "step"])
def test_a_step_for_which_nothing_is_left_is_tried_again(threads, monkeypatch, error, where):
    monkeypatch.setattr("workers.context.batches._AGAIN_S", 0.01)
    failures = [] if where == "submit" else [error] * 2

    def carry_out(asked):
        if failures:
            raise failures.pop()
        return asked

    async def main():
        pool = Refusing(threads, error, times=2 if where == "submit" else 0)
        batches = Batches(carry_out, pool)
        assert list(await asyncio.gather(batches(1), batches(2))) == [1, 2]
        assert await batches(3) == 3

    asyncio.run(main())


def test_one_for_which_nothing_is_ever_left_keeps_the_others_only_while_it_waits(
    threads, monkeypatch
):
    monkeypatch.setattr("workers.context.batches._AGAIN_S", 0.01)
    tried = threading.Event()

    def carry_out(asked):
        if "huge" in asked:
            tried.set()
            raise MemoryError
        return asked

    async def main():
        batches = Batches(carry_out, threads)
        huge = asyncio.ensure_future(batches("huge"))
        assert await asyncio.to_thread(tried.wait, 10)
        other = asyncio.ensure_future(batches("small"))
        await asyncio.sleep(0)
        huge.cancel()
        assert await asyncio.wait_for(other, 60) == "small"

    asyncio.run(main())


@pytest.mark.parametrize("carry_out", [lambda _: [], lambda _: None, lambda _: [1, 2, 3]])
def test_all_waiting_callers_get_an_error_if_a_step_answers_wrongly(threads, carry_out):
    async def main():
        batches = Batches(carry_out, threads)
        ended = await asyncio.gather(batches(1), batches(2), return_exceptions=True)
        assert all(isinstance(error, (RuntimeError, TypeError)) for error in ended)

    asyncio.run(main())


def test_all_waiting_callers_get_an_error_if_the_pool_has_ended():
    async def main():
        with ThreadPoolExecutor(1) as threads:
            batches = Batches(list, threads)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await batches(1)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await batches(2)

    asyncio.run(main())


def test_one_that_does_not_wait_any_more_keeps_nothing_from_the_others(threads):
    async def main():
        step = Step()
        batches = Batches(step, threads)
        gone, stays = (asyncio.ensure_future(batches(number)) for number in (1, 2))
        await begun(step)
        gone.cancel()
        waits, waits_on = (asyncio.create_task(until_ended(stays)) for _ in range(2))
        await asyncio.sleep(0)
        waits.cancel()
        step.go.release()
        assert await waits_on is None
        assert await stays == 20
        assert gone.cancelled()

    asyncio.run(main())


def test_a_value_is_loaded_once_for_all_that_ask_meanwhile(threads):
    async def main():
        step = Step()
        kept = LoadingCache(lambda key: step([key])[0], threads, size=2)
        asked = [asyncio.ensure_future(kept(7)) for _ in range(3)]
        await begun(step)
        asked[0].cancel()
        step.go.release()
        assert await asyncio.gather(*asked[1:]) == [70, 70]
        assert await kept(7) == 70
        assert step.batches == [[7]]

    asyncio.run(main())


def test_what_could_not_be_loaded_is_loaded_again(threads):
    tried = []

    def load(key):
        tried.append(key)
        if len(tried) == 1:
            raise ValueError(key)
        return key

    async def main():
        kept = LoadingCache(load, threads, size=2)
        with pytest.raises(ValueError, match="a"):
            await kept("a")
        assert await kept("a") == "a"

    asyncio.run(main())


def test_what_was_not_asked_for_longest_is_forgotten(threads):
    loaded = []

    async def main():
        kept = LoadingCache(lambda key: loaded.append(key) or key, threads, size=2)
        for key in ("a", "b", "a", "c", "a", "b"):
            assert await kept(key) == key

    asyncio.run(main())
    assert loaded == ["a", "b", "c", "b"]


def test_few_heavy_values_are_kept_and_many_light_ones(threads):
    weights = dict.fromkeys("abcdef", 40) | dict.fromkeys("uvwxyz", 1)
    kept = LoadingCache(str, threads, size=8, weigh=weights.__getitem__, most_weight=100)

    def known():
        return "".join(name for name in weights if kept.known(name))

    for name in "abcdef":
        kept.get(name)
    assert known() == "cdef", "four, although they are too heavy"
    for name in "uvwxyz":
        kept.get(name)
    assert known() == "efuvwxyz", "those that were asked for last, and are light enough"


def test_threads_and_coroutines_share_what_is_loaded(threads):
    loaded = []

    def load(key):
        if key == "bad":
            raise ValueError(key)
        loaded.append((key, threading.get_ident()))
        return [key]

    kept = LoadingCache(load, threads, size=2)
    here = threading.get_ident()
    value = kept.get("a")
    assert kept.get("a") is asyncio.run(kept("a")) is value
    other = asyncio.run(kept("b"))
    assert kept.get("b") is other
    with pytest.raises(ValueError, match="bad"):
        kept.get("bad")
    kept.get("a")
    assert kept.get("c") == ["c"]
    assert kept.get("a") is value
    assert kept.get("b") == ["b"], "the least recently used one was dropped"
    assert [key for key, _ in loaded] == ["a", "b", "c", "b"]
    assert [thread == here for _, thread in loaded] == [True, False, True, True]


def test_a_first_one_lingers_for_others_to_come_along(threads):
    batches_seen = []

    async def main():
        shared = Batches(lambda asked: batches_seen.append(asked) or asked, threads, lambda: 0.05)
        first = asyncio.ensure_future(shared(1))
        await asyncio.sleep(0.001)
        assert list(await asyncio.gather(first, shared(2))) == [1, 2]

    asyncio.run(main())
    assert batches_seen == [[1, 2]]
