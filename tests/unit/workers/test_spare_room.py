"""Calls begin without a question to the server where their process has room in the budget."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits
from fanout.core.errors import BrokerError, LLMError
from fanout.llm.base import LLMRequest
from tests.fakes import RUN, Calls, FakeContext, fake_store
from tests.unit.workers.test_budgets import budgeted_calls
from workers.context.budget_account import BudgetAccount
from workers.context.spare_room import COUNTED_S, SpareRoom

MOST = Amounts(nano_usd=1_000, calls=1, tokens=100)
USED = Amounts(nano_usd=250, calls=1, tokens=40)
# So much that there is room for very many calls.
PLENTY = 10**9
BURST = 40


class Server:
    """The budget of a run, with what processes report of it."""

    def __init__(self, limit=PLENTY):
        self.store = fake_store()
        limits = BudgetLimits(nano_usd=limit)
        self.store.create_run(RUN, spec="{}", created_at=1.0, budget=(limits, limits))
        self.reports = []
        # Of each report, whether it or its reply is lost.
        self.faults = []

    def account(self, process="a", *, dies_after_s=60.0, clock=time.monotonic):
        return BudgetAccount(
            self._send, process=process, in_flight=Calls(), dies_after_s=dies_after_s, clock=clock
        )

    def _send(self, report):
        self.reports.append(report)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "lost":
            raise BrokerError("it did not arrive")
        reply = self.store.report_budget(RUN, report, dies_after_s=60)
        if fault == "reply lost":
            raise BrokerError("the reply did not arrive")
        return reply

    @property
    def asked(self):
        """How many calls have asked, and processes for spare room."""
        return sum(len(report.asked) for report in self.reports)

    @property
    def state(self):
        return self.store.budget(RUN)


async def until(condition):
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110 - it looks at plain values
            await asyncio.sleep(0.001)


async def with_spare_room(account, calls=40):
    """Begin calls at once, and end one; return how many are in flight once there is spare room."""
    account.opens()
    await asyncio.gather(*(account.take(MOST, is_reduce=False) for _ in range(calls)))
    account.settle(MOST, USED)
    await until(lambda: account.takes(MOST))
    return calls


def taken(account):
    """Begin calls until one would have to ask; return how many have begun."""
    count = 0
    while account.takes(MOST):
        count += 1
    return count


async def ends(account, calls):
    """End all calls, and wait until the server knows."""
    for _ in range(calls):
        account.settle(MOST, USED)
    account.closes()
    await until(lambda: account.is_idle)


def test_a_call_begins_at_once_where_a_process_has_room_and_all_is_settled_at_the_end():
    server = Server()
    account = server.account()

    async def work():
        in_flight = await with_spare_room(account)
        asked = server.asked
        in_flight += taken(account)
        assert server.asked == asked
        # All that may be in use counts at the server.
        assert server.state.held.calls >= in_flight > 50
        await ends(account, in_flight)
        return 1 + in_flight

    calls = asyncio.run(work())
    state = server.state
    assert state.held == state.unsure == NO_AMOUNTS
    assert (state.spent.calls, state.spent.nano_usd) == (calls, 250 * calls)


def test_calls_that_begin_in_bursts_ask_for_no_room_after_a_pause():
    server, now = Server(), [0.0]
    account = server.account(clock=lambda: now[0])

    async def reported():
        sent = len(server.reports)
        now[0] += 1.5 * COUNTED_S
        await until(lambda: len(server.reports) > sent)
        # Its reply is read before the next time is due.
        await until(lambda: account._reported_at == now[0])

    async def work():
        account.opens()
        await asyncio.gather(*(account.take(MOST, is_reduce=False) for _ in range(BURST)))
        for _ in range(5):
            for _ in range(BURST):
                account.settle(MOST, USED)
            await reported()
            # This one sees no call begin.
            await reported()
            asked = server.asked
            assert all(account.takes(MOST) for _ in range(BURST))
            assert server.asked == asked
        for _ in range(BURST):
            account.settle(MOST, USED)
        account.closes()
        # All is given back soon, however much it was.
        for _ in range(8):
            if not account.is_idle:
                await reported()
        await until(lambda: account.is_idle)

    asyncio.run(work())
    assert server.state.held == server.state.unsure == NO_AMOUNTS
    assert server.state.spent.calls == 6 * BURST


def test_a_budget_without_room_for_very_many_calls_has_no_spare_room():
    server = Server(100_000)
    account = server.account()

    async def work():
        account.opens()
        for calls in (40, 50):
            await asyncio.gather(*(account.take(MOST, is_reduce=False) for _ in range(calls)))
            assert not account.takes(MOST)
        await ends(account, 90)

    asyncio.run(work())
    # Each call has asked, and nothing else.
    assert (server.asked, server.state.spent.calls) == (90, 90)


def test_spare_room_is_given_back_once_others_need_it():
    server = Server()
    # The first has no calls to report of; it reports from time to time.
    first, second = server.account("first", dies_after_s=0.1), server.account("second")

    async def work():
        in_flight = await with_spare_room(first)
        # What it has for those in flight is left, and nothing for calls that have begun lately.
        await until(lambda: not first._spare._pace)
        second.opens()
        state = server.state
        left = PLENTY - (state.used + state.held).nano_usd
        most = [Amounts(nano_usd=left - 5_000, calls=1), Amounts(nano_usd=10_000, calls=1)]
        for one in most:
            await asyncio.wait_for(second.take(one, is_reduce=False), 90)
        assert taken(first) == 0
        for one in most:
            second.settle(one, NO_AMOUNTS)
        second.closes()
        await ends(first, in_flight)
        await until(lambda: second.is_idle)

    asyncio.run(work())
    assert server.state.held == NO_AMOUNTS


@pytest.mark.parametrize("fault", ["lost", "reply lost"])
def test_no_room_is_taken_twice_where_a_report_fails(monkeypatch, fault):
    monkeypatch.setattr("workers.context.budget_account._AGAIN_S", 0.01)
    server = Server()
    account = server.account()

    async def work():
        in_flight = await with_spare_room(account)
        sent = len(server.reports)
        server.faults = [fault]
        account.settle(MOST, USED)
        await until(lambda: len(server.reports) > sent)
        in_flight += taken(account) - 1
        assert server.state.held.calls + server.state.spent.calls >= in_flight + 2
        await ends(account, in_flight)
        return in_flight + 2

    calls = asyncio.run(work())
    assert (server.state.spent.calls, server.state.held) == (calls, NO_AMOUNTS)


def test_a_call_that_leaves_room_for_others_asks_the_server():
    server = Server()
    account = server.account()

    async def work():
        in_flight = await with_spare_room(account)
        asked = server.asked
        await account.take(MOST, is_reduce=True, left=MOST)
        assert server.asked > asked
        await ends(account, in_flight + 1)

    asyncio.run(work())


@pytest.mark.parametrize("seed", range(2))
def test_a_fleet_with_spare_room_never_passes_its_budget_and_uses_it_up(monkeypatch, seed):
    monkeypatch.setattr("workers.context.budget_account._FIRST_POLL_S", 0.005)
    monkeypatch.setattr("workers.context.budget_account._LAST_POLL_S", 0.02)
    monkeypatch.setattr("workers.context.budget_account._AGAIN_S", 0.01)
    # Spare room until little is left of the budget.
    monkeypatch.setattr("fanout.policy.budgets._SPARE_TIMES", 2)
    monkeypatch.setattr("fanout.policy.budgets._FEW_CALLS", 2)
    rand = random.Random(seed)
    limit = 250_000
    server = Server(limit)
    server.faults = [rand.choice(("lost", "reply lost", "", "", "", "")) for _ in range(60)]
    accounts = [server.account(str(number)) for number in range(4)]
    in_use = {"spent": 0, "most": 0}

    async def call(account):
        used = Amounts(nano_usd=rand.randint(1, 1_000), calls=1, tokens=rand.randint(1, 100))
        account.opens()
        try:
            if not account.takes(MOST):
                await account.take(MOST, is_reduce=False)
            in_use["most"] += MOST.nano_usd
            state = server.state
            counted = state.used + state.held
            assert in_use["spent"] + in_use["most"] <= counted.nano_usd <= limit
            await asyncio.sleep(rand.random() * 0.004)
            in_use["most"] -= MOST.nano_usd
            in_use["spent"] += used.nano_usd
            account.settle(MOST, used)
        except LLMError:
            return False
        finally:
            account.closes()
        return True

    async def work():
        gate = asyncio.Semaphore(100)

        async def begin(number):
            async with gate:
                return await call(accounts[number % 4])

        fitted = await asyncio.gather(*map(begin, range(700)))
        for account in accounts:
            await account.aclose()
        return fitted

    fitted = asyncio.run(work())
    state = server.state
    assert state.held == state.unsure == NO_AMOUNTS
    assert (state.spent.nano_usd, state.spent.calls) == (in_use["spent"], sum(fitted))
    assert 0.99 * limit <= in_use["spent"] <= limit


class Gate:
    """A gate that lets a call through at once if it is open."""

    def __init__(self):
        self.is_open = True
        self.entered = self.begun = 0

    def begins(self, _request):
        self.begun += self.is_open
        return self.is_open

    async def enter(self, _request, *, left_s):
        self.entered += 1
        return 1.5


def test_a_call_reserves_once_where_its_budget_has_room_and_its_model_has_none():
    context = FakeContext(budget={"calls": 1_000_000})
    gate, request = Gate(), LLMRequest(prompt="p")
    reports = []
    send = context.store.report_budget

    def sent(*args, **options):
        reports.append(args[1])
        return send(*args, **options)

    context.store.report_budget = sent

    async def work():
        calls = budgeted_calls(context.budgets, context.spec, context.llm)
        first = calls.gate(gate, begins=gate.begins)
        [account] = calls._accounts
        with calls:
            assert not first.begins(request), "it has to ask"
            assert not calls.has_reserved
            account._spare.grows(Amounts(nano_usd=10**9, calls=2, tokens=10**6))
            gate.is_open = False
            assert not first.begins(request)
            assert calls.has_reserved
            assert await first.enter(request, left_s=1) >= 1.5
            assert (gate.begun, gate.entered, account._held.calls) == (0, 1, 1)
            calls.give_back()
            gate.is_open = True
            assert first.begins(request)
            assert (gate.begun, account._held.calls) == (1, 1)
        assert account._held == NO_AMOUNTS
        await context.budgets.aclose()

    asyncio.run(work())
    assert [report.asked for report in reports] == [()] * len(reports)
    assert context.store.budget(RUN).held == NO_AMOUNTS


def test_spare_room_is_never_below_nothing_where_it_is_kept():
    spare = SpareRoom()
    assert spare.is_empty
    spare.grows(MOST)
    assert not spare.takes(Amounts(nano_usd=1_001))
    assert spare.takes(MOST)
    # A call was billed with more than it was to use.
    spare.frees(MOST, Amounts(nano_usd=1_500, calls=1))
    assert not spare.takes(Amounts(nano_usd=1))
    assert spare.keeps(MOST) == Amounts(tokens=100)
    assert spare.keeps(NO_AMOUNTS) == NO_AMOUNTS
    assert spare.is_empty


@pytest.mark.parametrize("step", ["_wanted", "_report", "_hand_out", "_hand_out_spare"])
def test_calls_go_on_after_an_error_beside_the_server(monkeypatch, step):
    monkeypatch.setattr("workers.context.budget_account._AGAIN_S", 0.0)
    carry_out, errors = getattr(BudgetAccount, step), [ValueError("a fault"), ValueError("another")]

    def failing(account, *args):
        if errors:
            raise errors.pop()
        return carry_out(account, *args)

    monkeypatch.setattr(BudgetAccount, step, failing)
    server = Server()
    account = server.account()

    async def work():
        account.opens()
        async with asyncio.timeout(20):
            await asyncio.gather(*(account.take(MOST, is_reduce=False) for _ in range(40)))
        assert server.state.held.calls >= 40
        await ends(account, 40)

    asyncio.run(work())
    assert not errors
    assert server.state.held == server.state.unsure == NO_AMOUNTS
    assert (server.state.spent.calls, server.state.spent.nano_usd) == (40, 40 * 250)
