"""What the commands that act on runs say."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from fanout.cli import inspect_runs
from fanout.cli.control_runs import _budget_hint, _keeps_answers, _redoes_aggregate, _retried
from fanout.core.budgets import Amounts, BudgetLimits
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec
from fanout.runs.budget_status import BudgetStatus
from fanout.runs.status import ReduceError, StoredResult

from .test_progress import status

ALL = list(ErrorKind)
AGGREGATE, NONE = {"aggregate_prompt": "{input}"}, {}
BEST = {"reduce": "best", "samples": 2, "criteria": "clear"}
UNREAD = " is made again; 1 branch has a document that could not be read, which only a new run reads again"
BUDGET = BudgetStatus(limit=BudgetLimits(calls=9, tokens=100), spent=Amounts(calls=2, tokens=90))


def test_the_failed_calls_of_reduces_are_listed(monkeypatch, capsys):
    found = [
        ReduceError(group=group, kind=kind, message="a\nb", attempts=2, reduce="each")
        for group, kind in (("x", ErrorKind.TIMEOUT), ("y", ErrorKind.BUDGET))
    ]
    values = SimpleNamespace(errors=lambda: iter(found), left_out=lambda: iter(()))
    run = SimpleNamespace(
        outcomes=lambda: iter(()),
        status=lambda: SimpleNamespace(errors={}),
        stored_aggregate=lambda: SimpleNamespace(values=values),
    )
    monkeypatch.setattr(inspect_runs, "one_run", lambda *_: nullcontext(run))
    listed = inspect_runs.errors.callback
    assert listed is not None
    listed("r", None, (), 1, has_summary=False, as_json=False)
    printed = capsys.readouterr()
    assert printed.out == "reduce each\tx\ttimeout\ta b (after 2 calls)\n"
    assert printed.err == "and 1 more\n"
    listed("r", None, ("budget",), None, has_summary=False, as_json=True)
    row = {"group": "y", "kind": "budget", "message": "a\nb", "attempts": 2, "reduce": "each"}
    assert json.loads(capsys.readouterr().out) == {"index": None, **row}


def test_a_retry_of_the_calls_of_an_aggregate_says_how_many_these_are():
    text = _retried("r", 0, 0, redoes=True, is_any=True, calls=3)
    assert text.endswith("only its aggregate is made again, with 3 calls that had failed")


@pytest.mark.parametrize(
    ("calls", "words"),
    [(3, "with all its calls, of which 3 had failed"), (0, "with all its calls")],
)
def test_a_retry_of_an_aggregate_whose_answers_are_not_kept_says_that_it_makes_all_calls(
    calls, words
):
    text = _retried("r", 0, 0, redoes=True, is_any=True, calls=calls, keeps=False)
    assert text.endswith(f"made again, {words}: their answers are not kept")


@pytest.mark.parametrize(
    ("fields", "keeps"),
    [
        ({"reduce": "vote"}, True),
        ({"aggregate_prompt": "{input}"}, True),
        ({"aggregate_prompt": "{input}", "cache": False}, False),
        ({"aggregate_prompt": "{input}", "model": "own.model:ask"}, False),
        ({"reduce": "pairwise", "criteria": "x", "judge_model": "fake"}, False),
    ],
)
def test_answers_of_a_reduce_are_kept_if_all_its_models_have_them_kept(fields, keeps):
    spec = make_spec(**{"model": "openai/gpt-5-mini", "prompt": "{input}", **fields})
    assert _keeps_answers(spec) is keeps


def test_a_retry_says_which_branches_the_budget_leaves_as_they_are():
    text = _retried("r", 0, 0, redoes=False, is_any=True, unpaid=2)
    nothing = "no branch of run r can be processed again: nothing is processed again"
    assert text == f"{nothing}; the budget has no room for calls of 2 branches"


def test_a_retry_says_that_the_budget_leaves_the_aggregate_as_it_is():
    text = _retried("r", 0, 0, redoes=False, is_any=True, unmade=8)
    nothing = "no branch of run r has failed: nothing is processed again"
    assert text == f"{nothing}; the budget has no room to make its aggregate again"


@pytest.mark.parametrize(
    ("count", "unread", "redoes", "is_any", "text"),
    [
        (2, 0, False, True, "2 branches of run r are processed again"),
        (0, 0, True, True, "no branch of run r has failed: only its aggregate is made again"),
        (0, 0, False, True, "no branch of run r has failed: nothing is processed again"),
        (0, 0, False, False, "no branch of run r has failed so: nothing is processed again"),
        (0, 1, True, True, f"no branch of run r can be processed again: only its aggregate{UNREAD}"),
    ],
)  # fmt: skip
def test_a_retry_says_what_is_done(count, unread, redoes, is_any, text):
    assert _retried("r", count, unread, redoes=redoes, is_any=is_any) == text


@pytest.mark.parametrize(
    ("before", "succeeded", "now", "fields", "redoes"),
    [
        # The budget has no room for a call.
        (RunStatus.CANCELLED, 4, RunStatus.CANCELLED, AGGREGATE, False),
        # The reduce was lost; it may have been lost again by now.
        (RunStatus.FAILED, 4, RunStatus.RUNNING, AGGREGATE, True),
        (RunStatus.FAILED, 4, RunStatus.FAILED, AGGREGATE, True),
        (RunStatus.CANCELLED, 1, RunStatus.RUNNING, {**AGGREGATE, "min_success": 0.5}, True),
        # It stays as it is.
        (RunStatus.SUCCEEDED, 4, RunStatus.SUCCEEDED, AGGREGATE, False),
        (RunStatus.SUCCEEDED, 4, RunStatus.SUCCEEDED, BEST, False),
        # Some of its comparisons have failed.
        (RunStatus.SUCCEEDED, 4, RunStatus.RUNNING, BEST, True),
        (RunStatus.FAILED, 1, RunStatus.FAILED, {**AGGREGATE, "min_success": 0.5}, False),
        (RunStatus.FAILED, 0, RunStatus.FAILED, AGGREGATE, False),
        (RunStatus.FAILED, 4, RunStatus.RUNNING, NONE, False),
    ],
)
def test_only_an_aggregate_that_can_be_made_is_said_to_be(before, succeeded, now, fields, redoes):
    spec = make_spec(model="fake", prompt="{input}", **fields)
    was = status(status=before, total=4, succeeded=succeeded, failed=4 - succeeded)
    # One that stays as it is has ended when it had.
    ended_s = 2.0 if now in (RunStatus.SUCCEEDED, RunStatus.CANCELLED) else 3.0
    is_now = status(status=now, elapsed_s=ended_s)
    assert _redoes_aggregate(was, is_now, spec) == redoes


class Run:
    run_id = "r"

    def __init__(self, *errors):
        self.errors = errors

    def stored_result(self):
        return StoredResult(
            errors=[
                ReduceError(group="", kind=kind, message="", attempts=0) for kind in self.errors
            ]
        )


@pytest.mark.parametrize(
    ("errors", "of_reduce", "kinds", "budget", "is_said"),
    [
        ({ErrorKind.BUDGET: 2}, [], ALL, BUDGET, True),
        ({}, [ErrorKind.BUDGET], ALL, BUDGET, True),
        ({ErrorKind.BUDGET: 2}, [], [ErrorKind.TIMEOUT], BUDGET, False),
        ({ErrorKind.TIMEOUT: 2}, [ErrorKind.TIMEOUT], ALL, BUDGET, False),
        # The account has no money left.
        ({ErrorKind.BUDGET: 2}, [], ALL, None, False),
    ],
)
def test_a_retry_without_a_new_budget_says_how_to_give_one(
    errors, of_reduce, kinds, budget, is_said
):
    now = status(errors=errors, budget=budget)
    hint = (
        "calls of run r did not fit into its budget, which has 7 calls, 10 tokens left: `fanout retry r "
        "--budget-tokens N` gives it a larger one"
    )
    assert _budget_hint(Run(*of_reduce), now, kinds) == (hint if is_said else None)
