"""A delivery that ends without an outcome releases its claim, for any cause of its end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.exceptions import Reject, Retry
from celery.worker.request import Request

from fanout.broker.result_backend import TaskFault
from fanout.core.errors import BrokerError
from fanout.core.ids import BranchId, ShardId
from fanout.core.state import BeginRequest
from tests.fakes import RUN, FakeContext, begin_one, fake_store, make_shard, run_branch
from workers.branch.execution import BranchFailed
from workers.consumer.task_requests import (
    BranchRequest,
    HandedBackError,
    PostponedError,
    RunGoneError,
    StillHeldError,
    abandon,
)
from workers.context.branch_steps import ClaimReleases
from workers.tasks import _not_done

BRANCH = BranchId("r1", 0, 0, 1)
REFUSED = BrokerError("MISCONF", is_refusal=True)
AWAY = BrokerError("away", is_passing=True)


class Server:
    """Notes what is given up, and refuses as often as it is told to."""

    def __init__(self, *refusals):
        self.refusals = list(refusals)
        self.asked = []
        self.now = 100.0
        self.releases = ClaimReleases(self.release_claim, clock=lambda: self.now)
        self.ended = 0

    def count_ended(self):
        self.ended += 1

    def release_claim(self, branch_id, *, token, counts):
        self.asked.append((branch_id, token, counts))
        if self.refusals:
            raise self.refusals.pop(0)

    def beat(self, after_s=5.0):
        self.now += after_s
        self.releases.again()


def test_a_claim_is_given_up_twice_the_second_time_when_no_begin_can_come_late():
    server = Server()
    assert server.releases.now(BRANCH, "a", counts=True)
    server.beat(after_s=0.1)
    assert len(server.releases) == 1
    server.beat()
    assert len(server.releases) == 0
    server.beat()
    assert server.asked == 3 * [(BRANCH, "a", True)]


@pytest.mark.parametrize("error", [REFUSED, AWAY, BrokerError("WRONGTYPE")])
def test_what_the_server_does_not_take_is_given_up_with_a_later_beat(error):
    server = Server(error, error, error)
    assert not server.releases.now(BRANCH, "a", counts=True)
    server.releases.later(BRANCH, "a", counts=False)
    server.beat()
    server.beat()
    assert len(server.asked) == 3
    server.beat()
    server.beat()
    assert len(server.releases) == 0
    assert set(server.asked) == {(BRANCH, "a", True)}, "as it was first said"


def test_one_that_is_always_refused_keeps_none_of_the_others():
    server = Server()
    given_up = []

    def release_claim(branch_id, *, token, counts):
        if token == "bad":
            raise BrokerError("WRONGTYPE")
        given_up.append(token)

    server.releases = ClaimReleases(release_claim, clock=lambda: server.now)
    for token in ("bad", "a", "b"):
        server.releases.later(BRANCH, token, counts=True)
    for _ in range(6):
        server.beat()
    assert sorted(given_up) == ["a", "a", "b", "b"]
    assert len(server.releases) == 1


class Broker:
    """What Celery's part of a request would do."""

    def __init__(self, monkeypatch, *, takes_tries=True):
        self.takes_tries = takes_tries
        self.done = []
        monkeypatch.setattr(Request, "on_failure", self._on_failure)
        monkeypatch.setattr(Request, "on_retry", lambda _, __: self.done.append("acknowledged"))
        monkeypatch.setattr(Request, "_retry_worker_lost", lambda *_: self._publish())
        monkeypatch.setattr(Request, "send_event", lambda *_, **__: None)
        monkeypatch.setattr("workers.consumer.task_requests.task_ready", lambda _: None)
        monkeypatch.setattr(BranchRequest, "forget", lambda _: self.done.append("left"))

    def _on_failure(self, exc_info, *_):
        raise AssertionError  # replaced by end()

    def _publish(self):
        if self.takes_tries:
            self.done.append("published")
        return self.takes_tries

    def end(self, request, error, monkeypatch):
        """Have a task end with an error, as the process that took its message sees it."""

        def on_failure(this, exc_info, *_):
            if isinstance(error, WorkerLostError):
                return this._retry_worker_lost(error, exc_info)
            return this.on_retry(exc_info) if isinstance(error, Retry) else None

        monkeypatch.setattr(Request, "on_failure", on_failure)
        wrapped = ExceptionWithTraceback(error, "")
        request.on_failure(SimpleNamespace(exception=wrapped, traceback=""))


def request(server, token="a"):
    made = object.__new__(BranchRequest)
    made.id = "r1/0/0/1"
    made._request_dict = {"properties": {"delivery_tag": token}}
    made._kwargs = {"run_id": "r1", "stage": 0, "shard": 0, "position": 1}
    made._app = SimpleNamespace(context=SimpleNamespace(branches=server))
    return made


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (WorkerLostError("SIGKILL"), True),
        (TaskFault("KeyError at x.py:1"), True),
        (Retry(exc=AWAY), False),
        (Reject("the worker stops", requeue=True), False),
        (HandedBackError("its claim is released", requeue=True), None),
        (BranchFailed("timeout"), None),
        (StillHeldError("another worker has it"), None),
        (PostponedError("the run is paused"), None),
        (RunGoneError("its run is gone"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_end_without_an_outcome_gives_the_claim_up(error, counts, monkeypatch):
    """An outcome, or a claim of another delivery, is left as it is."""
    server, broker = Server(), Broker(monkeypatch)
    broker.end(request(server), error, monkeypatch)
    assert server.ended == isinstance(error, BranchFailed), "only outcomes are counted"
    server.beat()
    assert set(server.asked) == (set() if counts is None else {(BRANCH, "a", counts)})


def test_what_succeeded_is_counted_and_its_claim_left(monkeypatch):
    server = Server()
    monkeypatch.setattr(Request, "acknowledge", lambda _: None)
    request(server).acknowledge()
    monkeypatch.setattr("workers.consumer.task_requests.successful_requests", {"r1/0/0/1"})
    request(server).acknowledge()
    assert (server.ended, len(server.releases)) == (1, 0)


@pytest.mark.parametrize(
    ("refusal", "kind"), [(None, HandedBackError), (RuntimeError("can't start new thread"), Reject)]
)
def test_a_branch_that_is_handed_back_says_whether_its_claim_is_released(
    refusal, kind, monkeypatch
):
    context = FakeContext()
    context.write(["a"])

    async def cancelled(_):
        raise asyncio.CancelledError

    monkeypatch.setattr(context.branches, "record", cancelled)
    release = context.store.release_claim

    def release_claim(*args, **kwargs):
        if refusal is not None:
            raise refusal
        release(*args, **kwargs)

    monkeypatch.setattr(context.store, "release_claim", release_claim)
    with pytest.raises(Reject) as raised, _not_done():
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert type(raised.value) is kind
    assert raised.value.requeue


def test_what_nobody_sees_to_its_end_gives_its_claim_up(monkeypatch):
    server, broker = Server(), Broker(monkeypatch)
    abandon(request(server), RuntimeError("a fault"))
    assert server.asked == [], "it does not wait for the server"
    server.beat()
    assert server.asked == [(BRANCH, "a", True)]
    assert broker.done == ["left"]


@pytest.mark.parametrize(
    ("refusals", "takes_tries", "done"),
    [
        ([], True, ["published"]),
        ([], False, ["left"]),
        # No further try: it would be held until the claim is given up.
        ([REFUSED], True, ["left"]),
        ([AWAY], False, ["left"]),
    ],
)
def test_a_lost_child_gives_its_branch_up_before_it_comes_again(
    refusals, takes_tries, done, monkeypatch
):
    store = fake_store()
    store.create_run("r1", spec="{}", created_at=1.0)
    store.put_shard(ShardId("r1", 0, 0), make_shard())
    store.beat("parent", ttl_s=60)

    def begin(token):
        return begin_one(
            store, BeginRequest(BRANCH, token=token, holder="parent", lasts_s=60)
        ).verdict

    server, broker = Server(), Broker(monkeypatch, takes_tries=takes_tries)
    refused = list(refusals)

    def release_claim(branch_id, *, token, counts):
        if refused:
            raise refused.pop()
        store.release_claim(branch_id, token=token, counts=counts)

    server.releases = ClaimReleases(release_claim, clock=lambda: server.now)
    assert begin("a") == "go"
    broker.end(request(server), WorkerLostError("SIGKILL"), monkeypatch)
    assert broker.done == done
    assert begin("copy") == ("held" if refusals else "go")
    server.beat()
    assert begin("try") == ("go" if refusals else "held")
    server.beat()
    assert begin("another") == "held", "one delivery makes the call, and no other"
