"""The budgets of runs and of days at the server: one script decides for all processes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits, BudgetReport, BudgetStep
from fanout.core.errors import UnknownRunError

RUN = "budgeted"
DIES_S = 15.0
ONE = Amounts(nano_usd=10, calls=1, tokens=3)


@pytest.fixture
def run(store):
    limits = BudgetLimits(nano_usd=100, calls=8)
    kept = BudgetLimits(nano_usd=90, calls=7)
    store.create_run(RUN, spec="{}", created_at=1.0, budget=(limits, kept))
    return RUN


def report(store, number, session="a", *, held=0, spent=0, asks=0, is_reduce=False, run=RUN):
    return store.report_budget(
        run,
        BudgetReport(
            session=session,
            number=number,
            held=Amounts(nano_usd=10 * held, calls=held, tokens=3 * held),
            spent=Amounts(nano_usd=10 * spent, calls=spent, tokens=3 * spent),
            asked=((ONE, is_reduce, NO_AMOUNTS),) * asks,
        ),
        dies_after_s=DIES_S,
    )


def sums(state):
    return state.spent.calls, state.unsure.calls, state.held.calls


def test_calls_are_granted_until_the_part_of_the_branches_is_held_and_the_reduce_has_the_rest(
    store, run
):
    reply = report(store, 1, asks=9)
    assert reply.granted == (True,) * 7 + (False,) * 2
    assert reply.state.limits == BudgetLimits(nano_usd=100, calls=8)
    assert reply.state.map_limits == BudgetLimits(nano_usd=90, calls=7)
    assert report(store, 1, "b", asks=2).granted == (False, False)
    assert report(store, 2, "b", asks=2, is_reduce=True).granted == (True, False)
    # What two calls did not use is free for others.
    assert sums(report(store, 2, held=5, spent=0).state) == (0, 0, 6)
    assert report(store, 3, "b", held=1, asks=3).granted == (True, False, False)
    assert store.budget(run) == report(store, 4, "b", held=2).state


def test_a_report_that_arrives_twice_or_late_counts_once(store, run):
    first = report(store, 1, asks=2)
    assert report(store, 1, asks=2) == first
    assert sums(report(store, 2, held=1, spent=1).state) == (1, 0, 1)
    late = report(store, 1, asks=2)
    assert late.granted == ()
    assert sums(late.state) == (1, 0, 1)
    # The same number without what it asked for: what was granted stays until the next report.
    report(store, 3, held=1, spent=1, asks=2)
    assert sums(report(store, 3, held=1, spent=1).state) == (1, 0, 3)
    assert sums(report(store, 4, held=1, spent=1).state) == (1, 0, 1)


def test_what_a_dead_process_holds_counts_as_used_until_it_comes_back(store, run, server_clock):
    report(store, 1, "dead", asks=3)
    report(store, 1, "other", asks=1)
    start = server_clock.now
    for number, ahead_s in enumerate((5, 10, 14, 18, 22), 2):
        server_clock.now = start + ahead_s
        state = report(store, number, "other", held=1).state
    assert sums(state) == (0, 3, 1)
    # Only 3 of 7 are left.
    assert report(store, 7, "other", held=1, asks=4).granted == (True, True, True, False)
    # It was cut off: one of its calls is settled, two are in flight.
    assert sums(report(store, 2, "dead", held=2, spent=1).state) == (1, 0, 6)


def test_nobody_is_dead_because_the_server_was_unreachable_for_all(store, run, server_clock):
    report(store, 1, "a", asks=2)
    report(store, 1, "b", asks=2)
    server_clock.now += 100
    assert sums(report(store, 2, "b", held=2).state) == (0, 0, 4)
    server_clock.now += 10
    assert sums(report(store, 2, "a", held=2).state) == (0, 0, 4)


def test_a_budget_is_replaced_and_what_was_spent_stays(store, run):
    report(store, 1, spent=7)
    assert report(store, 2, spent=7, asks=1).granted == (False,)
    limits = BudgetLimits(calls=20)
    store.set_budget(run, limits=limits, map_limits=limits)
    reply = report(store, 3, spent=7, asks=1)
    assert reply.granted == (True,)
    assert reply.state.limits == reply.state.map_limits == limits
    assert reply.state.spent.calls == 7


def test_a_deleted_run_has_no_budget(store, run):
    report(store, 1, asks=1)
    store.delete_run(run)
    assert not list(store._redis.scan_iter(f"*{run}*"))
    for step in (
        lambda: report(store, 2, held=1),
        lambda: store.budget(run),
        lambda: store.set_budget(run, limits=BudgetLimits(), map_limits=BudgetLimits()),
    ):
        with pytest.raises(UnknownRunError):
            step()
    assert not list(store._redis.scan_iter(f"*{run}*"))


def of_day(store, number, *, held=NO_AMOUNTS, spent=NO_AMOUNTS, asks=0, session="a"):
    made = BudgetReport(
        session=session,
        number=number,
        held=held,
        spent=spent,
        asked=((ONE, False, NO_AMOUNTS),) * asks,
    )
    limits = BudgetLimits(calls=3)
    return store.report_day_budget("openai/*", made, limits=limits, dies_after_s=DIES_S)


def test_the_budget_of_a_day_begins_anew_at_midnight(store, server_clock):
    three = Amounts(nano_usd=30, calls=3, tokens=9)
    assert of_day(store, 1, asks=4).granted == (True, True, True, False)
    assert of_day(store, 2, held=ONE, spent=three - ONE, asks=1).granted == (False,)
    [state], left_s = store.day_budgets(["openai/*"])
    assert (state.spent.calls, state.held.calls) == (2, 1)
    assert 0 < left_s <= 86_400
    assert store.day_budgets([])[0] == []
    # The call in flight ends on the next day, and counts for that.
    server_clock.now += 86_400
    reply = of_day(store, 3, spent=three, asks=3)
    assert reply.granted == (True, True, False)
    assert reply.state.spent.calls == 1


def test_it_is_known_while_calls_wait_for_the_next_day(store, server_clock):
    def is_full():
        [state], _ = store.day_budgets(["openai/*"])
        return state.is_full

    assert of_day(store, 1, asks=4).granted[-1] is False
    # The others may use less than they may.
    assert not is_full()
    three = Amounts(nano_usd=30, calls=3, tokens=9)
    of_day(store, 2, spent=three, asks=1)
    assert is_full()
    # Nobody asks any more.
    server_clock.now += 60
    assert not is_full()
    of_day(store, 3, spent=three, asks=1)
    assert is_full()
    server_clock.now += 86_400
    assert not is_full()
    # A call that fits into no day waits for none.
    huge = BudgetReport(session="b", number=1, asked=((Amounts(calls=4), False, NO_AMOUNTS),))
    limits = BudgetLimits(calls=3)
    store.report_day_budget("openai/*", huge, limits=limits, dies_after_s=DIES_S)
    assert not is_full()
    for call in "abcd":
        step = BudgetStep(call=call, day="openai/*", limits=limits, amounts=Amounts(calls=1))
        store.hold_budgets([step])
    assert is_full()


def test_the_part_of_what_is_spent_that_is_a_bound_is_counted_apart(store, run):
    def reported(number, guessed, *, session="a"):
        made = BudgetReport(session=session, number=number, spent=ONE + ONE, guessed=guessed)
        return store.report_budget(run, made, dies_after_s=DIES_S).state

    bound = Amounts(nano_usd=10, tokens=3)
    assert reported(1, bound).guessed == bound
    assert reported(1, bound).guessed == bound
    assert reported(2, bound + bound).guessed == bound + bound
    assert reported(1, bound, session="b").guessed == bound + bound + bound
    # Of a call of a batch nothing is known, all, or a part.
    ends = [None, ONE, Amounts(nano_usd=7, calls=1, tokens=3)]
    for call, used in enumerate(ends):
        guessed = Amounts(tokens=3) if call == 2 else NO_AMOUNTS
        step = BudgetStep(run_id=run, call=str(call), amounts=ONE)
        ended = BudgetStep(run_id=run, call=str(call), amounts=used, guessed=guessed, ends=True)
        store.hold_budgets([step, ended])
    state = store.budget(run)
    assert state.guessed == Amounts(nano_usd=40, calls=1, tokens=15)
    assert (state.spent.nano_usd, state.spent.calls) == (67, 7)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_granted_to_many_processes_never_passes_the_limit(store, seed):
    rand = random.Random(seed)
    limits = BudgetLimits(nano_usd=rand.randint(2_000, 9_000), tokens=rand.randint(9_000, 30_000))
    store.create_run(RUN, spec="{}", created_at=1.0, budget=(limits, limits))
    books: dict[str, Any] = {name: [0, NO_AMOUNTS, NO_AMOUNTS, []] for name in "abcdefgh"}
    for _ in range(250):
        name = rand.choice(list(books))
        number, held, spent, flying = books[name]
        for most in [one for one in flying if rand.random() < 0.4]:
            flying.remove(most)
            held -= most
            spent += Amounts(
                nano_usd=rand.randint(0, most.nano_usd),
                calls=1,
                tokens=rand.randint(0, most.tokens),
            )
        asked = tuple(
            (
                Amounts(nano_usd=rand.randint(1, 90), calls=1, tokens=rand.randint(1, 250)),
                False,
                NO_AMOUNTS,
            )
            for _ in range(rand.randint(0, 6))
        )
        made = BudgetReport(session=name, number=number + 1, held=held, spent=spent, asked=asked)
        for _ in range(rand.choice((1, 1, 2))):
            reply = store.report_budget(RUN, made, dies_after_s=DIES_S)
        for (most, *_), is_granted in zip(asked, reply.granted, strict=True):
            if is_granted:
                flying.append(most)
                held += most
        books[name] = [number + 1, held, spent, flying]
        state = reply.state
        for part in ("nano_usd", "tokens"):
            booked = sum(getattr(one[1], part) + getattr(one[2], part) for one in books.values())
            assert booked == getattr(state.held, part) + getattr(state.spent, part)
            assert booked <= getattr(limits, part)


def test_a_call_is_granted_only_if_what_it_leaves_for_others_fits_beside_it(store, run):
    asked = tuple((ONE, True, Amounts(calls=left)) for left in (7, 6, 6, 0))
    made = BudgetReport(session="a", number=1, asked=asked)
    reply = store.report_budget(run, made, dies_after_s=DIES_S)
    assert reply.granted == (True, True, False, True)
    assert reply.state.held == ONE + ONE + ONE, "what is left for others is not reserved"
    assert held(store, "b", ONE, is_reduce=True, left=Amounts(calls=5)).granted == (False,)
    assert held(store, "b", ONE, is_reduce=True, left=Amounts(calls=4)).granted == (True,)


def held(store, call, amounts, **step):
    [reply] = store.hold_budgets([BudgetStep(run_id=RUN, call=call, amounts=amounts, **step)])
    return reply


def test_a_call_of_a_batch_counts_as_used_until_it_is_settled_and_each_step_counts_once(store, run):
    most, used = Amounts(nano_usd=40, calls=1), Amounts(nano_usd=7, calls=1)
    for _ in range(2):
        assert held(store, "b1", most).granted == (True,)
    assert held(store, "b2", most).state.unsure == most + most
    assert held(store, "b3", most).granted == (False,)
    assert report(store, 1, asks=2).granted == (True, False), "10 of 90 are left"
    for _ in range(2):
        state = held(store, "b1", used, ends=True).state
    assert (state.spent, state.unsure, state.held) == (used, most, ONE)
    assert held(store, "b3", Amounts(nano_usd=33, calls=1)).granted == (True,)
    # The reduce has a part of its own.
    assert held(store, "r", Amounts(nano_usd=10), is_reduce=True).granted == (True,)
    assert held(store, "r2", Amounts(nano_usd=1), is_reduce=True).granted == (False,)
    # One of which nothing is known has used what it may.
    assert held(store, "b2", None, ends=True).state.spent == used + most
    assert held(store, "b2", None, ends=True).state.spent == used + most
    steps = [BudgetStep(run_id=run_id, call="x", amounts=most) for run_id in ("none", RUN, "no")]
    assert [reply is None for reply in store.hold_budgets(steps)] == [True, False, True]
    store.delete_run(run)
    assert held(store, "b4", most) is None
    assert not list(store._redis.scan_iter(f"*{run}*"))


DAY_S = 86_400
LIMITS = BudgetLimits(calls=10)


def hold(store, call, calls=1, *, ends=False):
    """Reserve from the budget of the day, or settle; return whether it fits, and the state."""
    amounts = Amounts(calls=calls)
    step = BudgetStep(day="*", limits=LIMITS, call=call, amounts=amounts, ends=ends)
    [reply] = store.hold_budgets([step])
    return reply.granted == (True,), reply.state


def test_a_call_of_a_batch_counts_for_the_day_on_which_it_lands_and_is_reserved_until_then(
    store, server_clock
):
    assert hold(store, "a", 8)[0]
    assert hold(store, "b", 2)[0]
    assert not hold(store, "c")[0]
    for _ in range(2):
        server_clock.now += DAY_S
        assert not hold(store, "c")[0], "both are under way"
    for _ in range(2):
        _, state = hold(store, "a", 3, ends=True)
        assert (state.spent.calls, state.unsure.calls) == (3, 2)
    assert hold(store, "c", 5)[0]
    assert not hold(store, "d", 1)[0]
    # It is one of today.
    assert hold(store, "c", 0, ends=True)[1].used.calls == 5
    # What is not settled for three days counts no more, as calls of a run that was deleted.
    server_clock.now += DAY_S
    fits, state = hold(store, "d", 10)
    assert (fits, state.used.calls) == (True, 10)
    _, state = hold(store, "b", 2, ends=True)
    assert (state.spent.calls, state.unsure.calls) == (0, 10)


def test_a_day_says_whether_calls_in_batches_are_part_of_what_is_unsure(store, server_clock):
    def is_batched():
        states, _ = store.day_budgets(["other", "*"])
        assert not states[0].is_batched
        return states[1].is_batched

    made = BudgetReport(session="dead", number=1, asked=((ONE, False, NO_AMOUNTS),))
    store.report_day_budget("*", made, limits=LIMITS, dies_after_s=DIES_S)
    for _ in range(3):
        server_clock.now += DIES_S
        other = BudgetReport(session="b", number=int(server_clock.now))
        reply = store.report_day_budget("*", other, limits=LIMITS, dies_after_s=DIES_S)
    assert (reply.state.unsure.calls, is_batched()) == (1, False)
    hold(store, "a", 2)
    assert is_batched()
    server_clock.now += DAY_S
    # No worker has reported on this day.
    _, of_day = store.day_budgets(["other", "*"])[0]
    assert (of_day.spent.calls, of_day.unsure.calls, is_batched()) == (0, 2, True)
    hold(store, "b")
    hold(store, "b", ends=True)
    assert is_batched(), "that of the day before is still open"
    hold(store, "a", ends=True)
    assert not is_batched()


def test_the_keys_of_calls_of_batches_have_an_end(store, server_clock):
    hold(store, "a")
    server_clock.now += DAY_S
    hold(store, "b")
    keys = sorted(store._redis.scan_iter("*budget-held*"))
    assert len(keys) == 2
    assert all(0 < store._redis.ttl(key) <= 3 * DAY_S for key in keys)
    # An end that comes late makes none.
    hold(store, "a", ends=True)
    assert sorted(store._redis.scan_iter("*budget-held*")) == keys[1:]


@pytest.mark.parametrize("first", ["late report", "same report", "report", "end", "known", "over"])
def test_the_first_step_of_a_day_begins_it_also_if_it_grants_nothing(store, server_clock, first):
    spent, limits = Amounts(calls=9), LIMITS

    def step(number):
        made = BudgetReport(session="s", number=number, spent=spent)
        return store.report_day_budget("*", made, limits=limits, dies_after_s=DIES_S)

    hold(store, "open")
    step(2)
    server_clock.now += DAY_S
    {
        "late report": lambda: step(1),
        "same report": lambda: step(2),
        "report": lambda: step(3),
        "end": lambda: hold(store, "another", ends=True),
        "known": lambda: hold(store, "open"),
        "over": lambda: hold(store, "huge", 11),
    }[first]()
    [state], _ = store.day_budgets(["*"])
    assert (state.spent.calls, state.unsure.calls) == (0, 1)
    fits, state = hold(store, "more", 9)
    assert (fits, state.used.calls) == (True, 10)


def spent_by_reduce(store, number, spent, reduced, session="a"):
    """Report what a process has spent, and of it in calls of the reduce; ask for a call of a branch."""
    made = BudgetReport(
        session=session,
        number=number,
        spent=Amounts(calls=spent),
        reduced=Amounts(calls=reduced),
        asked=((Amounts(calls=1), False, NO_AMOUNTS),),
    )
    return store.report_budget(RUN, made, dies_after_s=DIES_S)


@pytest.fixture
def tree(store):
    kept = BudgetLimits(calls=90)
    store.create_run(RUN, spec="{}", created_at=1.0, budget=(BudgetLimits(calls=100), kept))
    return RUN


@pytest.mark.parametrize(
    ("spent", "reduced", "granted"),
    [
        (90, 0, False),
        (90, 1, True),
        (95, 5, False),
        (95, 6, True),
        (99, 10, True),
        (99, 30, True),
        (100, 30, False),
    ],
)
def test_what_the_reduce_has_used_is_no_longer_kept_for_it(store, tree, spent, reduced, granted):
    """Else its calls beside the branches would count twice, and branches fail with room left."""
    reply = spent_by_reduce(store, 1, spent, reduced)
    assert reply.granted == (granted,)
    assert reply.state.map_limits == BudgetLimits(calls=min(100, 90 + reduced))
    # One that arrives twice counts once, and tells the same.
    assert spent_by_reduce(store, 1, spent, reduced) == reply


def test_what_the_reduce_has_used_is_that_of_all_processes_and_of_batches(store, tree):
    spent_by_reduce(store, 1, 40, 2, "a")
    spent_by_reduce(store, 1, 40, 1, "b")
    spent_by_reduce(store, 2, 41, 3, "a")
    for call, is_reduce in (("x", True), ("y", True), ("z", False)):
        most = Amounts(calls=2)
        held = BudgetStep(call=call, run_id=RUN, amounts=most, is_reduce=is_reduce)
        store.hold_budgets([held])
    used = {"x": Amounts(calls=1), "z": Amounts(calls=1)}
    store.hold_budgets(
        [BudgetStep(call=call, run_id=RUN, amounts=one, ends=True) for call, one in used.items()]
    )
    state = spent_by_reduce(store, 2, 40, 1, "b").state
    assert state.map_limits == BudgetLimits(calls=90 + 3 + 1 + 1 + 2)
    assert (state.spent.calls, state.unsure.calls) == (41 + 40 + 2, 2)
    assert store.budget(RUN).map_limits == BudgetLimits(calls=90), "as a retry reads it"


def test_a_retry_keeps_as_much_for_its_reduce_again(store, tree):
    spent_by_reduce(store, 1, 95, 8)
    store.set_budget(RUN, limits=BudgetLimits(calls=200), map_limits=BudgetLimits(calls=180))
    assert spent_by_reduce(store, 2, 95, 8).state.map_limits == BudgetLimits(calls=180)
    assert spent_by_reduce(store, 3, 99, 9).state.map_limits == BudgetLimits(calls=181)
