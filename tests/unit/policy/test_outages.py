"""Outages of a provider: whose fault a failed call is, and when a model is left alone."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import math
import random
import selectors
from functools import partial
from itertools import pairwise

import pytest

from fanout.core.errors import BrokerError, LLMError
from fanout.core.rate_limits import Rates
from fanout.core.records import ErrorKind
from fanout.core.spec_fields import RetrySpec
from fanout.llm import LLMReply, LLMRequest
from fanout.llm.calls import complete_with_retries
from fanout.policy.outages import (
    CLOSED,
    FORGET_S,
    MAX_PROBE_S,
    Failure,
    NeighbourCalls,
    TimeSlot,
    ask,
    close,
    cost_alone,
    cost_of_own,
    is_outage,
    judge_alone,
    neighbour_calls,
    reaches_s,
    spent,
    trip,
)
from fanout.stores import RedisStore
from tests.fakes import fake_redis, fake_store, set_server_clock
from workers.context.limiter import Limiter
from workers.context.model_state import PROBES


def error(kind=ErrorKind.SERVER_ERROR, **options):
    return LLMError(kind, f"it is {kind.value}", **options)


@pytest.mark.parametrize(
    ("lacking", "cost"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 0),
        (RuntimeError("can't start new thread"), 0),
        # This document may be too large, and stay so.
        (MemoryError(), 1),
    ],
    ids=repr,
)
def test_what_this_process_lacks_for_a_call_is_no_fault_of_the_branch(lacking, cost):
    told = error(ErrorKind.CONNECTION, is_own=True)
    told.__cause__ = lacking
    assert cost_of_own(told) == judge_alone(told).cost == cost


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        (error(), None),
        (error(ErrorKind.TIMEOUT), None),
        (error(ErrorKind.CONNECTION), None),
        (error(ErrorKind.RATE_LIMITED, status=429), None),
        (error(ErrorKind.INVALID_OUTPUT), 1),
        # The model itself says that it is the prompt.
        (error(ErrorKind.RATE_LIMITED, retry_after_s=1, is_own=True), 1),
    ],
)
def test_which_failures_others_may_share(told, cost):
    assert cost_of_own(told) == cost


WELL = {"chance_of_success": 0.9, "has_recovered": False, "is_chance": False}
UP, DOWN = TimeSlot(succeeded=3), TimeSlot(failed=3)


@pytest.mark.parametrize(
    ("slots", "cost"),
    [
        # Only this document fails: each failure is its own.
        ([UP] * 9, 1),
        ([TimeSlot(succeeded=9)], 1),
        # One call that succeeded shows little, and one that failed nothing.
        ([TimeSlot(succeeded=1)], 0.301),
        ([DOWN], 0),
        ([DOWN] * 9, 0),
        # As much as it was unlikely: the time counts, and not how often was called meanwhile.
        ([TimeSlot(succeeded=1, failed=9)] * 9, 0.045),
        ([UP] * 4 + [DOWN] * 5, 0.234),
        ([TimeSlot(succeeded=99)] * 4 + [TimeSlot(failed=1)] * 5, 0.201),
        ([TimeSlot(succeeded=99)] * 4 + [TimeSlot(failed=1), None, None, None, None], 0.109),
        # Nobody else has called since: an outage may have begun.
        ([UP] * 4 + [None] * 5, 1 / 3),
        # Who fails again tells something where no first call does.
        ([TimeSlot(succeeded=9, failed_again=90)], 1),
        ([TimeSlot(failed_again=2)] * 8, 0),
        # Who fails late may be at fault itself, and nobody else called.
        ([TimeSlot(failed_late=2)] * 8, 1 / 3),
        ([None] * 8, 1 / 3),
    ],
)
def test_a_failure_costs_as_much_as_it_was_unlikely(slots, cost):
    others = [neighbour_calls(slots, has_recovered=False)]
    found = spent([Failure(began=0.0, alone=1 / 3)], others, **WELL)
    assert found == pytest.approx(cost, abs=0.001)


def test_alone_a_failure_is_no_more_than_it_is_unlikely_where_it_is_chance():
    flaky = {**WELL, "chance_of_success": 0.1, "is_chance": True}
    found = spent([Failure(began=0.0, alone=1 / 3)], [NeighbourCalls()], **flaky)
    assert found == pytest.approx(0.046, abs=0.001)


def test_who_fails_late_tells_something_where_such_calls_do_succeed():
    slots = [TimeSlot(succeeded_again=1, failed_late=9)] * 9
    assert neighbour_calls(slots, has_recovered=True).share == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("late", "chance", "has_recovered", "cost"),
    [(1, 0.5, False, 0), (10, 0.5, False, 1), (10, 0.5, True, 0), (10, 0.1, False, 0),
     (70, 0.1, False, 1)],
)  # fmt: skip
def test_what_stays_failed_where_first_calls_succeed_is_no_chance(
    late, chance, has_recovered, cost
):
    failures = [Failure(began=0.0), Failure(began=1.0, counted="failed_late")]
    others = [NeighbourCalls(calls=9), NeighbourCalls(calls=9, late=late)]
    known = {"chance_of_success": chance, "has_recovered": has_recovered}
    found = spent(failures, others, **{**WELL, **known})
    assert found == cost


def test_what_the_provider_asks_to_wait_for_costs_nothing():
    others = [neighbour_calls([UP] * 9, has_recovered=False)]
    failures = [Failure(began=0.0, is_asked=True)]
    assert spent(failures, others, **WELL) == 0


@pytest.mark.parametrize(
    ("told", "known", "cost"),
    [
        (error(), {}, 1 / 3),
        # A refused connection says nothing of a document; a 500 may.
        (error(ErrorKind.CONNECTION), {}, 0),
        (error(ErrorKind.RATE_LIMITED, status=429), {}, 0),
        (error(status=529), {}, 0),
        (error(ErrorKind.CONNECTION), {"lead_s": -1.0}, 1 / 3),
        # The last success is long ago, or there was none.
        (error(), {"lead_s": 300.0}, 0),
        (error(), {"lead_s": None}, 0),
        (error(), {"is_down": True}, 0),
    ],
)
def test_what_a_failure_costs_where_nobody_else_calls(told, known, cost):
    assert cost_alone(told, **{"lead_s": 5.0, "is_down": False, **known}) == cost


def test_calls_are_looked_at_as_far_around_as_the_branch_called_before():
    failures = [Failure(began=began) for began in (0.0, 0.4, 2.4, 60.0)]
    assert reaches_s(failures) == [1, 1, 2, 10]


def test_without_others_to_compare_with_only_a_wait_that_was_asked_for_is_free():
    assert judge_alone(error(retry_after_s=1)).cost == 0
    assert judge_alone(error()).cost == judge_alone(error(retry_after_s=1, is_own=True)).cost == 1


@pytest.mark.parametrize(
    ("failing", "share", "down"),
    [(1, 1.0, False), (2, 0.98, True), (2, 0.9, False), (4, 0.9, True), (5, 0.5, False),
     (10, 0.5, True), (10, 0.2, False)],
)  # fmt: skip
def test_how_many_failures_are_no_chance(failing, share, down):
    assert is_outage(failing, share) == down


def test_probes_are_let_through_one_by_one_and_soon_each_four_seconds():
    breaker, at, probes = trip(CLOSED, now=1_000.0), 1_000.0, []
    while at < 1_120:
        standing, breaker = ask(breaker, now=at)
        if standing.is_probe:
            probes.append(round(at - 1_000))
        at += 0.25
    assert probes == [1, 3, *range(7, 120, 4)]
    assert ask(breaker, now=at)[0].wait_s <= MAX_PROBE_S


def test_a_breaker_that_was_closed_stays_so_for_a_while_and_an_old_one_is_forgotten():
    breaker = close(trip(CLOSED, now=1_000.0), now=1_010.0)
    assert ask(breaker, now=1_010.0)[0].wait_s == 0
    assert trip(breaker, now=1_020.0) == breaker
    assert trip(breaker, now=1_050.0).opened_at == 1_050
    assert trip(breaker, now=1_020.0, reopen_s=0.0).opened_at == 1_020
    standing, breaker = ask(trip(CLOSED, now=1_000.0), now=1_002.0 + FORGET_S)
    assert (standing.wait_s, standing.down_s, breaker.opened_at) == (0, None, None)


# The number of the worker that calls.
_caller = contextvars.ContextVar("_caller")


# What a turn of a loop takes at least.
_TURN_S = 1e-6


class Hours(asyncio.SelectorEventLoop):
    """A loop on which waiting takes no time; what would run in a thread runs at once."""

    def __init__(self):
        super().__init__(_Jumping(self))
        self.skipped = 0.0

    def time(self):
        return 1_000.0 + self.skipped

    def run_in_executor(self, executor, func, *args):  # type: ignore[override]
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the future has it
            done.set_exception(error)
        return done


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            # A wait that is shorter than the clock can tell would never end.
            self._loop.skipped += max(timeout, _TURN_S)
        return ready


class SimulatedProvider:
    """Answers after least to most ``latency_s``; ``fate`` gets prompt and seconds, may raise."""

    def __init__(self, fate, latency_s):
        self.calls = 0
        self.struck_s = []
        self._latencies = random.Random(11)
        self._fate = fate
        self._latency_s = latency_s

    async def complete(self, request):
        self.calls += 1
        began = asyncio.get_running_loop().time() - 1_000.0
        told = self._fate(request.prompt, began)
        if told is not None:
            self.struck_s.append(began)
            # An error comes sooner than an answer, but for one that is a time-out.
            await asyncio.sleep(30.0 if told.kind is ErrorKind.TIMEOUT else 0.01)
            raise told
        least, most = self._latency_s
        await asyncio.sleep(self._latencies.uniform(least, most))
        return LLMReply(text="yes")


class Fleet:
    """Runs branches on several workers that share a store, in no time; keeps the results."""

    def __init__(self, monkeypatch, store=None):
        self.loop = Hours()
        set_server_clock(monkeypatch, self.loop.time)
        self.store = store or fake_store()

    def run(self, fate, *, branches=300, workers=2, in_flight=8, latency_s=0.5, policy=None):
        latencies_s = latency_s if isinstance(latency_s, tuple) else (latency_s, latency_s)
        self.provider = SimulatedProvider(fate, latencies_s)
        limiters = [
            Limiter(self.store, clock=self.loop.time, sleep=asyncio.sleep) for _ in range(workers)
        ]

        async def lane(number, prompts, results):
            limiter = limiters[number]
            _caller.set(number)
            for prompt in prompts:
                results[prompt] = await complete_with_retries(
                    self.provider,
                    LLMRequest(prompt=prompt),
                    policy=policy or RetrySpec(),
                    timeout_s=120,
                    gate=limiter.gate("m", Rates()),
                    clock=self.loop.time,
                )

        async def everything():
            results = {}
            prompts = iter([str(number) for number in range(branches)])
            async with asyncio.TaskGroup() as group:
                for number in range(workers * in_flight):
                    group.create_task(lane(number % workers, prompts, results))
            return results

        try:
            return self.loop.run_until_complete(everything())
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()


@pytest.fixture
def fleet(monkeypatch):
    return Fleet(monkeypatch)


SORTS = {
    "500": lambda: error(status=500),
    "503": lambda: error(status=503),
    "overloaded": lambda: error(status=529),
    "refused": lambda: error(ErrorKind.CONNECTION),
    "no answer": lambda: error(ErrorKind.TIMEOUT),
    "429": lambda: error(ErrorKind.RATE_LIMITED, status=429),
    "429, wait": lambda: error(ErrorKind.RATE_LIMITED, status=429, retry_after_s=2.0),
    "429, wait 600": lambda: error(ErrorKind.RATE_LIMITED, status=429, retry_after_s=600.0),
    "html": error,
}


@pytest.mark.parametrize(
    ("sort", "begins_s", "shape"),
    [
        *((sort, 4, (2, 8)) for sort in SORTS),
        *((sort, 0, (2, 4)) for sort in ("500", "429", "no answer")),
        # Hardly another call to compare with, as in a prefork pool or with max_workers.
        *((sort, 4, (1, 1)) for sort in ("500", "429", "refused", "html")),
        ("500", 4, (3, 1)),
        ("503", 4, (1, 60)),
    ],
)
def test_an_outage_costs_no_branch(fleet, sort, begins_s, shape):
    workers, in_flight = shape
    branches = 8 * workers * in_flight if workers * in_flight > 3 else 20
    fate = lambda _prompt, now: SORTS[sort]() if begins_s <= now < begins_s + 120 else None  # noqa: E731
    results = fleet.run(fate, branches=branches, workers=workers, in_flight=in_flight)
    assert [result.kind for result in results.values() if result.kind] == []
    assert len(results) == branches
    # The model was left alone meanwhile: what was called in vain is little.
    assert fleet.provider.calls <= 1.3 * branches + 12 * workers * in_flight + 60


@pytest.mark.parametrize(
    ("sort", "shape"), [("500", (2, 60)), ("503", (4, 10)), ("refused", (1, 20))]
)
def test_only_probes_are_made_while_an_outage_lasts(fleet, sort, shape):
    workers, in_flight = shape
    fate = lambda _prompt, now: SORTS[sort]() if 4 <= now < 64 else None  # noqa: E731
    fleet.run(fate, branches=20 * workers * in_flight, workers=workers, in_flight=in_flight)
    # The breaker opens when no call has succeeded for 2 s, and soon all workers have heard of it.
    probes = [began for began in fleet.provider.struck_s if began > 4 + 0.5 + 2 + 1.5]
    turns = [0]
    for before, began in pairwise(probes):
        turns += [0] if began - before > MAX_PROBE_S / 2 else []
        turns[-1] += 1
    assert len(turns) >= 60 / MAX_PROBE_S - 3
    # Each time two calls of one worker.
    assert max(turns) <= PROBES


def down(lasts_s, up_s=math.inf, share=1.0):
    """Return the fate where a share of calls fails for so long, again and again."""
    chance = random.Random(5)

    def fate(_prompt, now):
        is_down = now >= 4 and (now - 4) % (lasts_s + up_s) < lasts_s
        return error(status=500) if is_down and chance.random() < share else None

    return fate


@pytest.mark.parametrize(
    "outage",
    [
        *((lasts_s,) for lasts_s in (0.5, 1, 2, 3, 5, 10, 30)),
        *((0.5, 0.5), (1, 1), (3, 3), (5, 2), (2, 5), (10, 10)),
        *((3, 3, 0.9), (5, 5, 0.5), (math.inf, 1, 0.5), (math.inf, 1, 0.1)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("shape", "latency_s"), [((1, 3), (0.1, 0.1)), ((2, 4), (1, 4)), ((2, 30), (0.1, 3))], ids=str
)
def test_short_repeated_and_partial_outages_cost_no_branch(fleet, outage, shape, latency_s):
    workers, in_flight = shape
    branches = min(300, int(40 * workers * in_flight / (sum(latency_s) / 2)))
    results = fleet.run(
        down(*outage),
        branches=branches,
        workers=workers,
        in_flight=in_flight,
        latency_s=latency_s,
    )
    assert [result for result in results.values() if result.kind] == []


@pytest.mark.parametrize("outage", [(3, 3), (5, 5, 0.5)], ids=str)
def test_a_document_that_fails_by_itself_ends_among_outages_too(fleet, outage):
    fails = down(*outage)
    results = fleet.run(
        lambda prompt, now: error(status=500) if prompt == "7" else fails(prompt, now),
        branches=800,
        latency_s=(0.1, 3),
        in_flight=16,
    )
    assert {prompt for prompt, result in results.items() if result.kind} == {"7"}
    assert 5 <= results["7"].attempts <= 25


@pytest.mark.parametrize("outage", [(10, 10), (30,)], ids=str)
def test_an_outage_that_one_worker_alone_sees_costs_no_branch(fleet, outage):
    fails = down(*outage)
    results = fleet.run(
        lambda _prompt, now: fails("", now) if _caller.get() == 0 else None, latency_s=(0.1, 3)
    )
    assert [result for result in results.values() if result.kind] == []


def test_documents_that_fail_by_themselves_end_however_many_they_are(fleet):
    bad = {str(number) for number in range(0, 300, 4)}
    results = fleet.run(
        lambda prompt, _now: error(status=500) if prompt in bad else None,
        latency_s=(0.1, 3),
        in_flight=16,
    )
    assert all(results[prompt].kind for prompt in bad)
    attempts = sorted(results[prompt].attempts for prompt in bad)
    # The waits are random, and with them the few that are taken for an outage.
    assert attempts[len(attempts) // 2] <= 12
    assert attempts[len(attempts) * 9 // 10] <= 40


@pytest.mark.parametrize("sort", ["500", "503", "429, wait"])
def test_a_provider_that_fails_often_fails_no_branch(fleet, sort):
    chance = random.Random(7)
    results = fleet.run(
        lambda _prompt, _now: SORTS[sort]() if chance.random() < 0.6 else None, branches=120
    )
    assert {result.kind for result in results.values()} == {None}


@pytest.mark.parametrize(
    ("sort", "bad"),
    [
        ("500", {"7"}),
        ("500", {"0", "159"}),
        ("500", {"3", "50", "51", "120"}),
        ("no answer", {"9"}),
    ],
)
def test_a_document_that_fails_by_itself_ends_and_holds_nobody_up(fleet, sort, bad):
    results = fleet.run(lambda prompt, _now: SORTS[sort]() if prompt in bad else None, branches=160)
    assert {prompt for prompt, result in results.items() if result.kind} == bad
    for prompt in bad:
        assert 5 <= results[prompt].attempts <= 15
        assert results[prompt].elapsed_s < 600
    assert fleet.loop.skipped < 700


@pytest.mark.parametrize("asked_s", [0.0, 1.0, 20.0])
def test_a_prompt_that_is_always_told_to_wait_holds_nobody_up(fleet, asked_s):
    def fate(prompt, _now):
        if prompt != "7":
            return None
        return error(ErrorKind.RATE_LIMITED, status=429, retry_after_s=asked_s)

    results = fleet.run(fate, branches=160, policy=RetrySpec(max_elapsed_s=300))
    assert {prompt for prompt, result in results.items() if result.kind} == {"7"}
    assert results["7"].attempts < 100
    others = [result.elapsed_s for prompt, result in results.items() if prompt != "7"]
    # Each takes half a second; no more than the first refusals held them back.
    assert sum(others) / len(others) < 1


def test_an_error_of_any_status_with_a_hint_makes_all_wait(fleet):
    results = fleet.run(
        lambda _prompt, now: error(status=503, retry_after_s=10.0) if now < 25 else None,
        branches=60,
    )
    assert {result.kind for result in results.values()} == {None}
    assert fleet.provider.calls < 60 + 6 * 16


def test_a_branch_that_is_alone_in_an_outage_ends_with_the_time_there_is(fleet):
    policy = RetrySpec(max_elapsed_s=600)
    results = fleet.run(lambda *_: error(), branches=1, policy=policy)
    assert results["0"].kind is ErrorKind.SERVER_ERROR
    assert 550 <= results["0"].elapsed_s <= 601


def test_an_outage_that_lasts_longer_than_there_is_time_ends_all_branches_with_it(fleet):
    policy = RetrySpec(max_elapsed_s=300)
    results = fleet.run(lambda *_: SORTS["refused"](), branches=100, policy=policy)
    assert {result.kind for result in results.values()} == {ErrorKind.CONNECTION}
    # Those that come after that time do not wait it out again each.
    assert fleet.loop.skipped < 400


def test_an_outage_is_waited_out_without_a_store(monkeypatch):
    class Away(RedisStore):
        def pause_of(self, model):
            raise BrokerError("away")

        trip_breaker = close_breaker = pause_of

        def pause_model(self, model, pause_s):
            raise BrokerError("away")

    fleet = Fleet(monkeypatch, Away(fake_redis()))
    results = fleet.run(lambda _prompt, now: error() if 4 <= now < 124 else None, branches=100)
    assert {result.kind for result in results.values()} == {None}


def test_after_an_outage_calls_do_not_come_back_all_at_once(fleet):
    begun = []

    def fate(_prompt, now):
        if now >= 24:
            begun.append(now)
        return error() if 4 <= now < 24 else None

    fleet.run(fate, branches=300, workers=1, in_flight=100, latency_s=3.0)
    first = min(begun)
    assert sum(at < first + 0.2 for at in begun) < 50


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
def test_refusals_at_random_cost_little_more_than_their_share_of_the_time(fleet, retry_after_s):
    chance = random.Random(5)
    refusal = partial(error, ErrorKind.RATE_LIMITED, status=429, retry_after_s=retry_after_s)
    results = fleet.run(
        lambda _prompt, _now: refusal() if chance.random() < 0.25 else None,
        branches=1_000,
        in_flight=32,
    )
    assert [result.kind for result in results.values() if result.kind] == []
    assert fleet.provider.calls <= 1.4 * 1_000
    # Without refusals it takes 8 s, and with a pause of the fleet for each of them 650 s.
    assert fleet.loop.skipped <= 120
