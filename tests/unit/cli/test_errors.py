"""What ``fanout errors`` and ``fanout results --json`` say of calls of a reduce that have failed."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fanout.aggregators import Aggregate, Coverage
from fanout.cli import inspect_runs, show
from fanout.cli.run_answer import RunAnswer
from fanout.core.errors import UnknownRunError
from fanout.core.records import ErrorKind
from fanout.runs.result_values import ResultValues
from fanout.runs.status import ReduceError, StoredResult
from fanout.runs.stored_aggregate import StoredAggregate
from tests.unit.runs.test_results import branch

from .test_progress import status


def call(group, kind=ErrorKind.SERVER_ERROR):
    return ReduceError(reduce="sum", group=group, kind=kind, message="it\nfailed", attempts=2)


CALLS = [call("a\nb"), call("c"), call("d", ErrorKind.TIMEOUT)]
AGGREGATE = StoredAggregate(
    ResultValues(StoredResult(named={"sum": StoredResult(errors=CALLS)})), "llm", is_grouped=True
)


@pytest.fixture
def printed(monkeypatch):
    run = SimpleNamespace(
        outcomes=lambda: iter([branch(0), branch(1, ErrorKind.TIMEOUT)]),
        status=lambda: status(failed=1, errors={ErrorKind.TIMEOUT: 1}),
        stored_aggregate=lambda: AGGREGATE,
    )

    @contextmanager
    def one_run(*_given):
        yield run

    monkeypatch.setattr(inspect_runs, "one_run", one_run)

    def lines(*options):
        done = CliRunner().invoke(inspect_runs.errors, ["r1", *options])
        assert done.exception is None
        return done.stdout.splitlines(), done.stderr

    return lines


def test_failed_calls_are_listed_behind_the_failed_branches(printed):
    assert printed()[0] == [
        "1\td1\ttimeout\ttoo slow (after 1 call)",
        "reduce sum\ta b\tserver_error\tit failed (after 2 calls)",
        "reduce sum\tc\tserver_error\tit failed (after 2 calls)",
        "reduce sum\td\ttimeout\tit failed (after 2 calls)",
    ]
    rows = list(map(json.loads, printed("--json")[0]))
    assert [row["index"] for row in rows] == [1, None, None, None]
    assert [(row["reduce"], row["group"]) for row in rows[1:]] == [
        ("sum", "a\nb"), ("sum", "c"), ("sum", "d"),
    ]  # fmt: skip


def test_failed_calls_are_chosen_by_kind_and_those_that_are_left_out_are_counted(printed):
    assert len(printed("--kind", "timeout")[0]) == 2
    lines, said = printed("--limit", "2")
    assert (len(lines), said) == (2, "and 2 more\n")
    assert printed("--kind", "server_error", "--limit", "1")[1] == "and 1 more\n"
    assert printed("--limit", "4")[1] == ""


def test_groups_without_an_aggregate_for_which_no_call_was_made_are_listed_last(
    printed, monkeypatch
):
    def made(problem=None):
        return Aggregate(value=None, succeeded=0, failed=1, coverage=Coverage(problem=problem))

    groups = {
        "c": made("server_error: it failed"),
        "x": made("too little is behind it"),
        "y": made(),
    }
    stored = StoredResult(errors=CALLS, aggregates=groups)
    values = ResultValues(StoredResult(named={"sum": stored}))
    monkeypatch.setattr(AGGREGATE, "values", values)
    lines = printed("--kind", "bad_request")[0]
    assert lines == ["reduce sum\tx\tbad_request\ttoo little is behind it (after 0 calls)"]
    assert printed("--limit", "4")[1] == "and 1 more\n"
    # The only aggregate of a run without groups: its status says why there is none.
    alone = ResultValues(StoredResult(aggregates={"": made("too little is behind it")}))
    assert list(alone.left_out()) == []


def test_failed_calls_are_summed_up_apart_from_branches(printed):
    assert printed("--summary")[0] == [
        "2\tserver_error\tsuch as reduce sum\ta b\tit failed (after 2 calls)",
        "1\ttimeout\tsuch as 1\td1\ttoo slow (after 1 call)",
        "1\ttimeout\tsuch as reduce sum\td\tit failed (after 2 calls)",
    ]


def test_the_json_of_a_result_has_the_failed_calls():
    parts = RunAnswer(aggregated=AGGREGATE, evaluation=None).parts(status())
    found = json.loads("".join(parts["reduce_errors"]))
    assert [one["group"] for one in found] == ["a\nb", "c", "d"]


def test_a_branch_is_shown_by_its_number_and_not_by_the_name_of_its_document():
    done = CliRunner().invoke(show.command, ["r1", "R03"])
    assert done.exit_code == 2
    assert "'R03' is no number from 0: give that of a branch, the `index`" in done.output


def test_the_latest_of_no_runs_is_no_run_that_may_have_expired_by_its_name():
    assert str(UnknownRunError("latest")).startswith("no run is known to this broker")
    assert str(UnknownRunError("abc")).startswith("no run 'abc' is known to this broker")
