"""When what one branch failed of stops its run: what succeeds elsewhere speaks against it."""

from __future__ import annotations

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus, Shard
from fanout.core.state import RecordRequest
from fanout.llm.error_kinds import ALWAYS, FEW, MANY, NEVER
from fanout.policy.retries import is_common, stop_after
from fanout.runs.common_errors import commonest_error
from tests.fakes import record_one
from workers.context.models import CommonFailures


@pytest.mark.parametrize(
    ("kind", "given", "after"),
    [
        (ErrorKind.AUTH, None, 1), (ErrorKind.BUDGET, None, 1), (ErrorKind.TIMEOUT, None, 0),
        (ErrorKind.AUTH, FEW, 3), (ErrorKind.AUTH, 0, 0), (ErrorKind.BAD_REQUEST, MANY, 20),
    ],
)  # fmt: skip
def test_an_error_stops_as_it_says_or_as_its_kind_has_it(kind, given, after):
    assert stop_after(kind, LLMError(kind, "x", stop_after=given).stop_after) == after


@pytest.mark.parametrize(
    ("alike", "after", "succeeded", "stops"),
    [
        (1, ALWAYS, 0, True), (1, ALWAYS, 99, True), (99, NEVER, 0, False), (2, FEW, 0, False),
        (3, FEW, 0, True), (99, FEW, 1, False), (19, MANY, 0, False), (20, MANY, 0, True),
    ],
)  # fmt: skip
def test_the_policy(alike, after, succeeded, stops):
    assert is_common(alike=alike, stop_after=after, succeeded=succeeded) is stops


@pytest.fixture
def fleet(store):
    """A run in a store, and what two worker processes have seen of it."""
    store.create_run("r", spec="{}", created_at=1.0)
    chunks = [Chunk(text="t", document="d", document_index=0)]
    store.put_shard(ShardId("r", 0, 0), Shard(first=0, count=99, first_chunk=0, chunks=chunks))
    return Fleet(store)


class Fleet:
    def __init__(self, store):
        self.store = store
        self.workers = [CommonFailures(store), CommonFailures(store)]
        self.ended = 0

    def end(self, outcome):
        record_one(self.store, RecordRequest(BranchId("r", 0, 0, self.ended), outcome))
        self.ended += 1

    def fails(self, words="HTTP 404: no", after=FEW, kind=ErrorKind.BAD_REQUEST, worker=0):
        outcome = Outcome(index=self.ended, kind=kind, message=words, attempts=1)
        run = self.store.run("r")
        reason = self.workers[worker].reason(run, StageId("r", 0), outcome, after)
        self.end(outcome)
        return reason


def test_the_first_few_that_fail_alike_stop_a_run(fleet):
    assert [fleet.fails(), fleet.fails("HTTP 404: no")] == [None, None]
    assert fleet.fails() == (
        "bad_request: HTTP 404: no; stopped, as the first 3 branches failed of the same"
    )


def test_the_processes_of_a_fleet_need_no_more_together(fleet):
    reasons = [fleet.fails(worker=number % 2) for number in range(3)]
    assert [reason is None for reason in reasons] == [True, True, False]


def test_a_branch_that_succeeded_speaks_against_it(fleet):
    fleet.end(Outcome(index=0, output="yes", attempts=1))
    assert [fleet.fails() for _ in range(9)] == [None] * 9
    assert fleet.fails(kind=ErrorKind.AUTH, words="revoked", after=ALWAYS) == "auth: revoked"


def test_ids_and_times_do_not_make_the_same_words_differ(fleet):
    reasons = [fleet.fails(f"HTTP 400: no (req_a{i}f, {i}.5 s)", MANY) for i in range(20)]
    assert reasons[:19] == [None] * 19
    assert reasons[19] is not None


def test_words_that_differ_are_not_alike(fleet):
    words = [chr(97 + number) * 3 for number in range(25)]
    assert [fleet.fails(f"HTTP 400: {each}", MANY) for each in words] == [None] * 25


def test_failures_of_before_a_retry_do_not_count(fleet):
    assert [fleet.fails(), fleet.fails()] == [None, None]
    fleet.store.end_run("r", RunStatus.FAILED, ended_at=2.0)
    assert fleet.store.reopen_run("r", retry=frozenset({ErrorKind.BAD_REQUEST}))
    # Those that the retry has not taken back yet do not, either.
    assert [fleet.fails(worker=1), fleet.fails()] == [None, None]
    assert fleet.fails() is not None


def test_another_kind_among_them_speaks_against_the_sum_of_the_store(fleet):
    fleet.end(Outcome(index=0, kind=ErrorKind.CONTENT_FILTER, message="x", attempts=1))
    assert fleet.fails() is None
    assert fleet.fails(worker=1) is None
    assert fleet.fails() is None


def test_a_failed_run_says_what_most_of_its_calls_failed_of():
    failed = [
        *[(ErrorKind.CANCELLED, "the run was stopped")] * 9,
        *[(ErrorKind.TIMEOUT, f"no answer within 5 s (req_{n})") for n in range(3)],
        (ErrorKind.AUTH, "no"),
        (ErrorKind.AUTH, "never"),
    ]
    said = commonest_error("none succeeded", failed)
    assert said == "none succeeded; most common: timeout 3: no answer within 5 s (req_0)"
    assert commonest_error("x", failed[:9]) == "x; most common: cancelled 9: the run was stopped"
    assert commonest_error("auth: no; stopped", failed[-2:-1]) == "auth: no; stopped"
    assert commonest_error("x", []) == "x"
