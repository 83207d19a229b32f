"""What is said when the answer of a run is delivered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fanout.aggregators import Aggregate, Tally
from fanout.cli.delivery import Delivery, Scoring, _print, _say_faults, left_out, unpaid_calls
from fanout.cli.run_answer import RunAnswer
from fanout.client.run_answers import RunAnswers
from fanout.core.records import ErrorKind
from fanout.runs.budget_status import BudgetStatus
from fanout.runs.status import StoredResult
from fanout.runs.stored_aggregate import StoredAggregate
from fanout.runs.stored_aggregates import StoredAggregates
from tests.fakes import RUN
from tests.unit.workers.test_tree_budgets import budgeted

from .test_progress import status


def said(limit):
    context, _ = budgeted(budget={"calls": limit})
    aggregated = RunAnswers(RUN, context.store).stored_aggregate()
    budget = BudgetStatus.of(context.store.budget(RUN), has_ended=True)
    answer = RunAnswer(aggregated=aggregated, evaluation=None)
    return list(unpaid_calls(RUN, status(budget=budget), aggregated.values.errors())), answer


def test_calls_of_the_aggregate_without_room_in_the_budget_have_a_way_on():
    [line], answer = said(66)
    assert answer.aggregated, "of what was paid for"
    assert line.startswith("cut short by the budget: ")
    assert "calls of the aggregate; `fanout retry r1 --budget-calls N` makes them" in line
    lines, answer = said(1_000)
    assert not lines
    assert not list(unpaid_calls(RUN, status(), answer.aggregated.values.errors()))


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ({}, None),
        (
            {ErrorKind.BAD_REQUEST: 2},
            "left out: 2 branches that cannot be used; `fanout errors r` says",
        ),
        (
            {ErrorKind.TIMEOUT: 1},
            "left out: 1 branch; `fanout errors r` lists it, `fanout retry r` ",
        ),
        (
            {ErrorKind.BUDGET: 2},
            "left out: 2 branches; `fanout errors r` lists them, `fanout retry r --budget-calls N` goes",
        ),
    ],
)
def test_what_is_left_out_has_a_way_on(errors, line):
    context, _ = budgeted(budget={"calls": 66})
    budget = BudgetStatus.of(context.store.budget(RUN), has_ended=True)
    now = status(run_id="r", failed=sum(errors.values()), errors=errors, budget=budget)
    assert [one.startswith(str(line)) for one in left_out(now)] == [True] * (line is not None)


def test_an_evaluation_that_could_not_be_printed_has_a_command_that_prints_it(capsys):
    run = SimpleNamespace(run_id=RUN)
    for scoring, words in (
        (None, "nothing is lost: `fanout results r1 --out DIR`"),
        (
            Scoring(),
            "nothing is lost: `fanout eval r1` prints the evaluation again, `fanout results r1",
        ),
    ):
        assert _say_faults([], run, Delivery(scoring=scoring), 0, is_read=False) == 141
        assert words in capsys.readouterr().err


def test_beside_the_error_of_a_run_stands_why_groups_of_other_reduces_have_no_aggregate():
    """The error names only the reduces that have none at all."""
    problem = Tally().coverage("budget: no room")
    none, there = (
        Aggregate(value=value, coverage=one) for value, one in ((None, problem), ("x", None))
    )
    found = {"sums": {"kettle": none, "lamp": there}, "all": {"": none}}
    stored = StoredResult(problems={"all": "no aggregate could be made: budget: no room"})
    by_name = {
        name: StoredAggregate(
            SimpleNamespace(aggregates=groups.items), "llm", is_grouped=name == "sums"
        )
        for name, groups in found.items()
    }
    aggregated = StoredAggregates(SimpleNamespace(stored=stored), by_name)
    assert list(aggregated.each_note(has_error=True)) == [
        "sums: kettle: no aggregate: budget: no room"
    ]
    assert len(list(aggregated.each_note())) == 2
    assert not list(aggregated.each_note(has_reasons=False, has_error=True))


def test_a_run_whose_only_aggregate_failed_prints_why_and_not_its_branches(capsys):
    problem = "no aggregate could be made: embed: e:f made no vectors"
    notes: list[str] = []
    progress = SimpleNamespace(note=notes.append)
    run = SimpleNamespace(run_id=RUN, outcomes=lambda: 1 / 0)
    values = SimpleNamespace(stored=StoredResult(problem=problem), aggregates=lambda: iter(()))
    aggregated = StoredAggregate(values, "llm", is_grouped=False)
    answer = RunAnswer(aggregated=aggregated, evaluation=None)
    _print(run, status(succeeded=4), answer, progress, Delivery())
    assert capsys.readouterr().out == "(no aggregate: embed: e:f made no vectors)\n"
    assert notes == ["4 branches have answers: `fanout results r1 --out DIR` writes them"]
