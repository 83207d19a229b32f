"""The calls of branches fit into the budget of their run, and into those of the day."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace

import msgspec
import pytest

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits
from fanout.core.errors import BrokerError, LLMError
from fanout.core.gathered import LaneRecord, Prepared
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import NO_CALL, ErrorKind, RunStatus, Usage
from fanout.llm import FakeLLM
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.batches.base import BatchError, BatchResult
from fanout.llm.prices import price_of
from tests.fakes import RUN, Calls, FakeContext, fake_store
from workers.branch.batch_lane import GatheredCalls
from workers.context.budget_account import BudgetAccount
from workers.context.budgets import Budgets
from workers.context.inflight import CallStoppedError

TOKENS = {"input_tokens": 10, "output_tokens": 5}
# A call uses at most 0.01 dollars for the answer, and far less for the prompt.
PRICED = {"price": {"input_mtok": 0.0, "output_mtok": 100.0}, "max_tokens": 100}
FAST = {"base_wait_s": 0.0, "max_attempts": 3}


def reply(text="yes", *, reason=None, **usage):
    return LLMReply(text=text, finish_reason=reason, usage=Usage(calls=1, **{**TOKENS, **usage}))


def processed(script, texts=4, **fields):
    """Process a run whose model does what the script says; return its context and outcomes."""
    context = FakeContext(**{"retries": FAST, **fields})
    names = {context.spec.model, *context.spec.models, *context.spec.fallback}
    context.models.made = {name: FakeLLM(script=script) for name in names}
    context.write([f"text {number}" for number in range(texts)])
    context.process()
    asyncio.run(context.budgets.aclose())
    found = context.store.outcomes(ShardId(RUN, 0, 0))
    return context, [found[position] for position in range(len(found))]


def budgeted_calls(budgets, spec, llm):
    plan = budgets.plan(StageId(RUN, 0), spec, "fake", llm)
    assert plan is not None
    return budgets.calls(plan)


def kinds(outcomes):
    return [outcome.kind for outcome in outcomes]


def used(context):
    return context.store.budget(RUN).used


def test_branches_that_do_not_fit_fail_and_the_run_succeeds_with_the_others():
    context, outcomes = processed(lambda _: reply(), budget={"calls": 3})
    assert kinds(outcomes) == [None, None, None, ErrorKind.BUDGET]
    last = outcomes[-1]
    assert (last.attempts, last.usage) == (0, NO_CALL)
    assert last.message == (
        "the run's budget of 3 calls has no room for this call: 3 calls spent, and it may use 1 call"
    )
    run = context.store.run(RUN)
    assert (run.status, run.halt, run.error) == (RunStatus.SUCCEEDED, None, None)
    assert run.has_budget


def test_an_account_without_money_stops_the_run_as_before():
    context, outcomes = processed(
        lambda _: LLMError(ErrorKind.BUDGET, "insufficient_quota"), budget={"calls": 3}
    )
    run = context.store.run(RUN)
    assert run.halt is RunStatus.FAILED
    assert "insufficient_quota" in (run.error or "")
    assert set(kinds(outcomes)) == {ErrorKind.BUDGET, ErrorKind.CANCELLED}


@pytest.mark.parametrize(
    ("script", "spent"),
    [
        (lambda _: reply(cost_usd=0.001), 0.001),
        # Without a cost its tokens have one.
        (lambda _: reply(), 0.0005),
        # Bought in the lane flex, for half the price.
        (lambda _: msgspec.structs.replace(reply(), lane="flex"), 0.00025),
        # A refusal costs nothing, and a call of which nothing is known what it can cost at most.
        (lambda _: LLMError(ErrorKind.CONTENT_FILTER, "no"), 0.0),
        (lambda _: LLMError(ErrorKind.TIMEOUT, "late", is_own=True), 0.03),
        (lambda _: LLMReply(text="yes"), 0.01),
        (lambda _: LLMError(ErrorKind.TRUNCATED, "cut", usage=reply(output_tokens=100).usage),
         0.02),
    ],
)  # fmt: skip
def test_a_call_counts_with_what_its_provider_says(script, spent):
    given = {key: value for key, value in PRICED.items() if spent != 0.001 or key != "price"}
    if spent == 0.00025:
        given |= {"model": "openai/m", "lane": "flex"}
    context, [outcome] = processed(script, 1, budget={"usd": 1.0}, **given)
    assert used(context).usd == pytest.approx(spent)
    assert used(context).calls == outcome.usage.calls
    if outcome.usage.cost_usd is not None:
        assert outcome.usage.cost_usd == pytest.approx(used(context).usd)
    state = context.store.budget(RUN)
    assert state.held == NO_AMOUNTS
    # What is only known to be no more is told apart.
    is_bound = outcome.usage.cost_usd is None
    assert (state.guessed.usd, state.guessed.calls) == (spent if is_bound else 0.0, 0)


@pytest.mark.parametrize(
    ("fields", "script"),
    [
        ({"choices": "a,b", "max_reasks": 2}, lambda _: reply("c")),
        ({"max_tokens": 50}, lambda _: reply(reason="length")),
        ({"fallback": ["fake?seed=2"]}, lambda _: LLMError(ErrorKind.CONTENT_FILTER, "no")),
        ({}, lambda _: LLMError(ErrorKind.INVALID_OUTPUT, "no", usage=reply().usage)),
    ],
)
def test_each_further_call_of_a_branch_must_fit_too(fields, script):
    context, [outcome] = processed(script, 1, budget={"calls": 1}, **fields)
    assert (outcome.kind, outcome.attempts) == (ErrorKind.BUDGET, 1)
    assert outcome.usage.output_tokens in (0, 5)
    assert used(context).calls == 1
    assert context.store.run(RUN).halt is None


def test_a_second_call_with_a_longer_answer_reserves_more():
    sizes = []

    def script(request):
        sizes.append(request.max_tokens)
        return reply(reason="length", output_tokens=request.max_tokens)

    context, [outcome] = processed(script, 1, budget={"usd": 0.025}, **PRICED)
    assert sizes == [100]
    assert outcome.kind is ErrorKind.BUDGET, "twice 100 tokens cost 0.02, and 0.015 is left"
    assert used(context).usd == pytest.approx(0.01)


def test_a_branch_that_votes_ends_with_the_majority_so_far():
    fields = {"samples": 9, "certainty": 0.999, "choices": "a,b"}
    context, [outcome] = processed(lambda _: reply("a"), 1, budget={"calls": 3}, **fields)
    assert (outcome.output, outcome.kind) == ("a", None)
    assert outcome.votes == {"a": 3}
    assert used(context).calls == 3


def test_the_reduce_has_a_part_of_its_own():
    context, outcomes = processed(
        lambda _: reply(), 6, budget={"calls": 5}, aggregate_prompt="{input}"
    )
    assert kinds(outcomes) == [None] * 4 + [ErrorKind.BUDGET] * 2
    context.process(1)
    assert context.result.aggregates[""].value == "yes"
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    assert used(context).calls == 5


def test_what_cannot_be_kept_here_stops_the_run_with_the_reason():
    context, [outcome] = processed(lambda _: reply(), 1, model="openai/unheard-of",
                                   budget={"usd": 1.0})  # fmt: skip
    assert outcome.kind is ErrorKind.BAD_REQUEST
    assert "the price of openai/unheard-of is unknown" in (outcome.message or "")
    assert used(context) == NO_AMOUNTS


def test_a_run_without_a_budget_asks_the_server_nothing(monkeypatch):
    def fail(*_args, **_options):
        raise AssertionError

    monkeypatch.setattr("fanout.stores.RedisStore.report_budget", fail)
    monkeypatch.setattr("workers.context.budgets.Budgets.calls", fail)
    _, outcomes = processed(lambda _: reply())
    assert kinds(outcomes) == [None] * 4


class Fleet:
    """Processes that share the budget of one run, on one loop."""

    def __init__(self, limits, processes=8, *, dies_after_s=15.0):
        self.store = fake_store()
        self.store.create_run(RUN, spec="{}", created_at=1.0, budget=(limits, limits))
        self.trips = 0
        self.faults = []
        self.accounts = [
            BudgetAccount(
                self._send, process=str(number), in_flight=Calls(), dies_after_s=dies_after_s
            )
            for number in range(processes)
        ]

    def _send(self, report):
        self.trips += 1
        if self.faults and self.faults.pop(0) == "lost":
            raise BrokerError("it did not arrive")
        reply = self.store.report_budget(RUN, report, dies_after_s=15)
        if self.faults and self.faults.pop(0) == "lost":
            raise BrokerError("the reply did not arrive")
        return reply

    async def call(self, account, most, used):
        """Make a call; return whether it fitted."""
        account.opens()
        try:
            await account.take(most, is_reduce=False)
            await asyncio.sleep(0.001 * used.calls)
            account.settle(most, used)
        except LLMError:
            return False
        finally:
            account.closes()
        return True


@pytest.mark.parametrize("seed", range(2))
def test_a_fleet_uses_its_budget_up_and_never_passes_it(monkeypatch, seed):
    monkeypatch.setattr("workers.context.budget_account._FIRST_POLL_S", 0.005)
    monkeypatch.setattr("workers.context.budget_account._LAST_POLL_S", 0.02)
    monkeypatch.setattr("workers.context.budget_account._AGAIN_S", 0.01)
    rand = random.Random(seed)
    limit = 200_000
    fleet = Fleet(BudgetLimits(nano_usd=limit))
    fleet.faults = [rand.choice(("lost", "", "", "")) for _ in range(60)]
    most = Amounts(nano_usd=1_000, calls=1, tokens=100)

    async def branch(number):
        used = Amounts(nano_usd=rand.randint(1, 1_000), calls=1, tokens=rand.randint(1, 100))
        fitted = await fleet.call(fleet.accounts[number % 8], most, used)
        return used.nano_usd if fitted else 0

    async def work():
        gate = asyncio.Semaphore(120)

        async def begin(number):
            async with gate:
                return await branch(number)

        spent = await asyncio.gather(*map(begin, range(700)))
        for account in fleet.accounts:
            await account.aclose()
        return spent

    spent = asyncio.run(work())
    state = fleet.store.budget(RUN)
    assert state.spent.nano_usd == sum(spent) <= limit
    assert sum(spent) >= 0.99 * limit
    assert state.held == state.unsure == NO_AMOUNTS
    ended = spent.count(0)
    assert 0 < ended < 700
    # Those that end ask together, or not at all.
    assert fleet.trips < 700


def test_branches_beyond_the_budget_end_without_a_question_each():
    fleet = Fleet(BudgetLimits(calls=1), processes=1)
    [account] = fleet.accounts

    async def work():
        account.opens()
        fitted = [await fleet.call(account, Amounts(calls=1), Amounts(calls=1)) for _ in range(200)]
        account.closes()
        await account.aclose()
        return fitted

    assert asyncio.run(work()) == [True] + [False] * 199
    assert fleet.trips <= 4


def test_a_branch_that_stops_while_it_waits_holds_nothing():
    fleet = Fleet(BudgetLimits(calls=2), processes=1)
    [account] = fleet.accounts

    async def work():
        account.opens()
        await account.take(Amounts(calls=2), is_reduce=False)
        waiting = asyncio.create_task(account.take(Amounts(calls=1), is_reduce=False))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "what is reserved may come back"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        account.settle(Amounts(calls=2), Amounts(calls=1))
        await account.take(Amounts(calls=1), is_reduce=False)
        account.settle(Amounts(calls=1), NO_AMOUNTS)
        account.closes()
        await account.aclose()

    asyncio.run(work())
    state = fleet.store.budget(RUN)
    assert (state.spent.calls, state.held.calls) == (1, 0)


def test_what_waits_for_a_deleted_run_stops():
    fleet = Fleet(BudgetLimits(calls=1), processes=1)

    async def work():
        [account] = fleet.accounts
        account.opens()
        await account.take(Amounts(calls=1), is_reduce=False)
        fleet.store.delete_run(RUN)
        with pytest.raises(CallStoppedError):
            await account.take(Amounts(calls=1), is_reduce=False)

    asyncio.run(work())


def test_calls_beyond_the_budget_of_a_day_wait_for_the_next_day(monkeypatch, server_clock):
    monkeypatch.setattr("workers.context.budget_account._DAY_POLL_S", 0.05)
    context = FakeContext()
    days = {"fake*": BudgetLimits(calls=2), "openai/*": BudgetLimits(calls=1)}
    context.has_days(days)
    context.write(["a", "b", "c"])

    async def pass_midnight():
        for _ in range(1_000):
            if any(account._waiting for account in context.budgets._of_days.values()):
                break
            await asyncio.sleep(0.01)
        [state], _ = context.store.day_budgets(["fake*"])
        assert state.used.calls == 2
        server_clock.now += 86_400

    made = asyncio.run

    def run(main):
        async def both():
            passing = asyncio.create_task(pass_midnight())
            try:
                return await main
            finally:
                passing.cancel()

        return made(both())

    monkeypatch.setattr(asyncio, "run", run)
    context.loop.wait_for = run
    context.process()
    outcomes = context.store.outcomes(ShardId(RUN, 0, 0))
    assert kinds(outcomes.values()) == [None] * 3
    [state], _ = context.store.day_budgets(["fake*"])
    assert state.used.calls == 1


TINY = {"fake*": BudgetLimits(tokens=5)}


def test_a_call_that_fits_into_no_day_fails_and_does_not_wait():
    context = FakeContext(max_tokens=100)
    context.has_days(TINY)
    budgets = context.budgets
    context.write(["a", "b"])
    context.process()
    outcomes = context.store.outcomes(ShardId(RUN, 0, 0)).values()
    assert kinds(outcomes) == [ErrorKind.BUDGET] * 2
    [message] = {outcome.message for outcome in outcomes}
    assert message == (
        "the workers' budget of a day for fake* of 5 tokens has no room for this call: "
        "it may use 101 tokens"
    )
    # In a batch, too.
    calls = budgeted_calls(budgets, context.spec, context.llm)
    with pytest.raises(LLMError, match="has no room"):
        asyncio.run(calls.hold("item", LLMRequest(prompt="a", max_tokens=100)))


async def until(condition):
    for _ in range(6_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


# A model has a day's budget of its own, and one that it shares with others.
SHARED = {"*": BudgetLimits(calls=10), "fake": BudgetLimits(calls=3)}


def test_a_call_that_waits_for_one_budget_keeps_nothing_of_another(monkeypatch):
    monkeypatch.setattr("workers.context.budget_account._DAY_POLL_S", 0.05)
    context = FakeContext()
    context.has_days(SHARED)
    budgets, request = context.budgets, LLMRequest(prompt="p")
    made = [budgeted_calls(budgets, context.spec, context.llm) for _ in range(8)]

    def held():
        found, _ = context.store.day_budgets([*SHARED])
        return [state.held.calls for state in found]

    async def work():
        tasks = [asyncio.create_task(calls.reserve(request)) for calls in made]
        await until(lambda: "fake" in budgets._of_days)
        of_model = budgets._of_days["fake"]
        await until(lambda: len([*of_model._waiting]) == 5)
        await until(lambda: held() == [3, 3])
        assert [calls.has_reserved for calls in made].count(True) == 3
        # What one gives back is the next one's, of both budgets.
        next(calls for calls in made if calls.has_reserved).give_back()
        await until(lambda: [task.done() for task in tasks].count(True) == 4)
        await until(lambda: held() == [3, 3])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for calls in made:
            calls.give_back()
        await budgets.aclose()
        assert held() == [0, 0]

    asyncio.run(work())


def test_a_call_of_a_batch_that_waits_for_one_budget_keeps_nothing_of_another(monkeypatch):
    context = FakeContext()
    context.has_days(SHARED)
    request, waits = LLMRequest(prompt="p"), []
    calls = budgeted_calls(context.budgets, context.spec, context.llm)

    async def wait(seconds):
        waits.append(seconds)
        await asyncio.Event().wait()

    monkeypatch.setattr(Calls, "wait", staticmethod(wait))

    async def work():
        tasks = [asyncio.create_task(calls.hold(f"i{number}", request)) for number in range(8)]
        await until(lambda: len(waits) == 5)
        assert [task.done() for task in tasks].count(True) == 3
        found, _ = context.store.day_budgets([*SHARED])
        assert [state.unsure.calls for state in found] == [3, 3]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(work())


def test_each_call_of_very_many_is_asked_for_once_between_two_polls(monkeypatch):
    monkeypatch.setattr("workers.context.budget_account._FIRST_POLL_S", 600.0)
    monkeypatch.setattr("workers.context.budget_account._LAST_POLL_S", 600.0)
    fleet = Fleet(BudgetLimits(calls=10), processes=1, dies_after_s=6_000.0)
    [account] = fleet.accounts

    async def work():
        account.opens()
        await account.take(Amounts(calls=10), is_reduce=False)
        before = fleet.trips
        tasks = [
            asyncio.create_task(account.take(Amounts(calls=1), is_reduce=False)) for _ in range(250)
        ]
        await until(lambda: len([*account._waiting]) == 250 and not account._waiting.has_new)
        await until(lambda: account._poll_at > account._clock())
        assert fleet.trips - before <= 4
        # The first to come are the first to go on.
        account.settle(Amounts(calls=10), Amounts(calls=7))
        await until(lambda: [task.done() for task in tasks].count(True) == 3)
        assert all(task.done() for task in tasks[:3])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        account.settle(Amounts(calls=3), NO_AMOUNTS)
        account.closes()
        await account.aclose()

    asyncio.run(work())
    assert fleet.store.budget(RUN).held == NO_AMOUNTS


def test_what_was_used_two_days_ago_does_not_count_again(server_clock):
    store, limits, began = fake_store(), BudgetLimits(calls=10), server_clock.now

    def send(report):
        return store.report_day_budget("fake", report, limits=limits, dies_after_s=15)

    def clock():
        return time.monotonic() + server_clock.now - began

    async def call(account):
        await account.take(Amounts(calls=1), is_reduce=False)
        account.settle(Amounts(calls=1), Amounts(calls=1))
        await until(lambda: account._keeper is None)

    async def work():
        slow, other = (
            BudgetAccount(
                send, process=name, in_flight=Calls(), dies_after_s=15, day="fake", clock=clock
            )
            for name in ("slow", "other")
        )
        # A branch of it waits for something else, for days.
        slow.opens()
        for _ in range(4):
            await call(slow)
        server_clock.now += 2 * 86_400
        await call(other)
        await call(slow)
        slow.closes()

    asyncio.run(work())
    [state], _ = store.day_budgets(["fake"])
    assert (state.spent.calls, state.held.calls) == (2, 0)


class Gate:
    """A gate that refuses calls, or counts them."""

    entered = 0
    problem: Exception | None = None

    async def enter(self, _request, *, left_s):
        self.entered += 1
        if self.problem is not None:
            raise self.problem
        return 1.5


def test_a_call_passes_its_rate_limit_after_its_budget_and_gives_back_if_it_does_not():
    context = FakeContext(budget={"calls": 1})
    request = LLMRequest(prompt="p")
    gate = Gate()

    async def work():
        made = [budgeted_calls(context.budgets, context.spec, context.llm) for _ in range(2)]
        first, second = (calls.gate(gate) for calls in made)
        gate.problem = LLMError(ErrorKind.RATE_LIMITED, "full")
        with made[0], made[1]:
            with pytest.raises(LLMError, match="full"):
                await first.enter(request, left_s=1)
            gate.problem = None
            assert await second.enter(request, left_s=1) >= 1.5
            waiting = asyncio.create_task(first.enter(request, left_s=1))
            await asyncio.sleep(0.05)
            assert (waiting.done(), gate.entered) == (False, 2)
            made[1].give_back()
            await waiting
        await context.budgets.aclose()

    asyncio.run(work())
    assert gate.entered == 3
    state = context.store.budget(RUN)
    assert state.used == state.held == NO_AMOUNTS


def test_calls_of_batches_reserve_together_and_end_while_the_server_is_away(monkeypatch):
    context = FakeContext(budget={"calls": 50})
    sent = []
    take = context.store.hold_budgets

    def hold(steps):
        sent.append(len(steps))
        if is_away:
            raise BrokerError("it is away")
        return take(steps)

    monkeypatch.setattr("fanout.stores.RedisStore.hold_budgets", lambda _, steps: hold(steps))
    context.budgets = Budgets(context.store, Calls(), {}, process="me", dies_after_s=15)
    is_away = False
    calls = budgeted_calls(context.budgets, context.spec, context.llm)
    request = LLMRequest(prompt="p")

    async def work():
        nonlocal is_away
        await asyncio.gather(*(calls.hold(f"i{number}", request) for number in range(40)))
        assert sum(sent) == 40
        assert len(sent) <= 3
        is_away = True
        for step in (calls.hold("x", request), calls.unhold("i1")):
            task = asyncio.create_task(step)
            await asyncio.sleep(0.05)
            task.cancel()
            async with asyncio.timeout(60):
                await asyncio.wait([task])
            assert task.cancelled()
        await calls.unhold("i1", insists=False)

    asyncio.run(work())


DEAR = {"input_mtok": 0.0, "output_mtok": 100.0}
FREE_OF_CHARGE = {"input_mtok": 0.0, "output_mtok": 0.0}


@pytest.mark.parametrize(
    ("model", "of_job", "of_workers", "usd"),
    [
        ("fake", {"price": FREE_OF_CHARGE}, DEAR, 0.0005),
        ("openai/gpt-4o", {"price": FREE_OF_CHARGE, "lane": "flex"}, DEAR, 0.00025),
        ("fake", {"price": DEAR}, FREE_OF_CHARGE, 0.0),
        ("fake", {"price": FREE_OF_CHARGE, "budget": {"usd": 1.0}}, DEAR, 0.0005),
        # The listed price holds without one of the workers; an unknown one is refused.
        ("openai/gpt-4o", {"price": FREE_OF_CHARGE}, None, 0.000075),
        ("openai/unheard-of", {"price": DEAR}, None, None),
    ],
)
def test_the_price_of_a_job_does_not_count_for_the_budget_of_a_day(
    monkeypatch, tmp_path, model, of_job, of_workers, usd
):
    if of_workers is not None:
        (tmp_path / "prices.yaml").write_text(msgspec.json.encode({model: of_workers}).decode())
        monkeypatch.setenv("FANOUT_PRICES", str(tmp_path / "prices.yaml"))
    days = {"*": BudgetLimits(nano_usd=10**9)}
    context = FakeContext(model=model, max_tokens=100, **of_job)
    context.models.made = {model: FakeLLM(script=lambda _: reply())}
    context.has_days(days)
    context.write(["a"])
    context.process()
    asyncio.run(context.budgets.aclose())
    [outcome] = context.store.outcomes(ShardId(RUN, 0, 0)).values()
    if usd is None:
        assert "a job's own price does not count" in (outcome.message or "")
        return
    own = of_job["price"]["output_mtok"] * 5 / 1e6
    assert outcome.usage.cost_usd == pytest.approx(own)
    [state], _ = context.store.day_budgets(["*"])
    assert state.used.usd == pytest.approx(usd)
    if "budget" in of_job:
        assert used(context).usd == pytest.approx(own)


@pytest.mark.parametrize(
    ("result", "spent"),
    [
        ({"reply": reply(cost_usd=0.001)}, 0.0005),
        ({"reply": LLMReply(text="x")}, 0.02),
        ({"error": BatchError(kind=ErrorKind.EXPIRED, message="late")}, 0.0),
        ({"error": BatchError(kind=ErrorKind.CONTENT_FILTER, message="no")}, 0.0),
        ({"error": BatchError(kind=ErrorKind.TIMEOUT, message="?")}, 0.02),
    ],
)
def test_a_call_of_a_batch_is_reserved_when_it_is_gathered_and_settled_when_it_lands(result, spent):
    # An answer of 200 tokens costs 0.02 dollars at most, and two of three fit.
    fields = {"budget": {"usd": 0.045}, "price": {"input_mtok": 0.0, "output_mtok": 100.0}}
    context = FakeContext(**fields)
    request = LLMRequest(prompt="p", max_tokens=200)
    gathered: list[str] = []

    class Client:
        async def line(self, item, _request):
            return item.encode()

    def calls(branch, landed=None):
        async def gather(item, _line, _lane, **_options):
            gathered.append(item)

        claim = SimpleNamespace(
            branch_id=BranchId(RUN, 0, 0, branch),
            gather=gather,
            waits=lambda: None,
            leaves_place=lambda: True,
        )
        prepared = Prepared()
        if landed is not None:
            held = msgspec.json.encode(BatchResult(custom_id=landed, **result))
            prepared = Prepared(item=landed, result=held)
        llm = FakeLLM(script=lambda _: reply())
        budgeted = budgeted_calls(context.budgets, context.spec, llm)
        return GatheredCalls(
            claim,
            Client(),
            LaneRecord(model="fake", account=""),
            earlier=0,
            prepared=prepared,
            price=price_of("fake", context.spec.price),
            budgeted=budgeted,
        )

    async def work():
        for branch in (0, 0, 1):
            await calls(branch).enter(request, left_s=1)
        with pytest.raises(LLMError, match="no room") as caught:
            await calls(2).enter(request, left_s=1)
        assert (caught.value.kind, caught.value.stop_after) == (ErrorKind.BUDGET, 0)
        for _ in range(2):
            await calls(0, landed=gathered[0]).enter(request, left_s=1)

    asyncio.run(work())
    assert len(gathered) == 3
    state = context.store.budget(RUN)
    assert state.spent.usd == pytest.approx(spent)
    assert state.unsure.usd == pytest.approx(0.02)
