"""The batch lane: gathered calls, batches at a provider, and deaths at every step between."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections import Counter
from contextlib import suppress
from copy import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from fanout.core.budgets import BudgetLimits
from fanout.core.errors import LLMError, ModelError
from fanout.core.gathered import BatchRecord, LaneRecord, Prepared
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import NO_CALL, ErrorKind, RunStatus, Usage
from fanout.core.settings import load_settings
from fanout.llm.base import LLMReply
from fanout.llm.batches import base
from fanout.llm.batches.base import (
    BatchError,
    BatchLimits,
    BatchResult,
    BatchState,
    BatchStatus,
    BatchUnknownError,
)
from tests.fakes import RUN, FakeContext, Publisher, run_branch
from tests.fences import bare
from workers.batching import batcher as batching
from workers.batching import joined_calls, provider_batch, waiting_runs
from workers.batching.batcher import Batcher
from workers.batching.clients import LaneApi
from workers.branch.batch_lane import GatheredCalls
from workers.branch.delivery_ends import BranchGathered, BranchParked
from workers.branch.execution import BranchFailed

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL, OTHER = "openai/m", "openai/n"


class Death(BaseException):
    """The process has died."""


class Provider:
    """A provider's batches, in memory.

    Attributes:
        made: The custom ids of each batch, by its id.
        nonces: How many batches were made of each intent.
    """

    limits = BatchLimits(requests=100, bytes=100_000)

    def __init__(self, answer=lambda body: {"text": "answer"}):
        self.made: dict[str, list[dict[str, Any]]] = {}
        self.nonces = Counter()
        self.answer = answer
        self.results_of: dict[str, list[BatchResult]] = {}
        self.cancelled: list[str] = []
        self.refuses = []
        self.is_running = False
        self.on_upload = None
        self.keeps_on = False
        self.account = "mine"
        self.hangs = False
        self.is_gone: Callable[[], bool] = lambda: False
        self.ends_as = BatchState.ENDED
        self.succeeded: int | None = None
        self.discarded: list[str] = []

    def bought(self):
        return Counter(line["custom_id"] for lines in self.made.values() for line in lines)

    def make(self, path, intent):
        if self.refuses:
            raise self.refuses.pop(0)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == intent.requests
        assert lines[0]["custom_id"] == intent.first_id
        batch_id = f"batch_{len(self.results_of)}"
        self.made[batch_id] = lines
        self.nonces[intent.nonce] += 1
        self.results_of[batch_id] = [self._result(line) for line in lines]
        return batch_id, intent.nonce

    def _result(self, line):
        given = self.answer(line)
        if given is None:
            return None
        if "error" in given:
            error = BatchError(kind=ErrorKind(given["error"]), message="no")
            return BatchResult(custom_id=line["custom_id"], error=error)
        reply = LLMReply(text=given["text"], usage=Usage(calls=1, input_tokens=5), lane="batch")
        return BatchResult(custom_id=line["custom_id"], reply=reply)


class Client:
    """The provider as one process sees it; the process dies at a step of ``life``."""

    def __init__(self, provider, life):
        self._provider = provider
        self._life = life
        self._ids = {}
        self.limits = provider.limits

    async def line(self, custom_id, request):
        body = {"custom_id": custom_id, "prompt": bare(request.prompt), "turns": len(request.turns)}
        return json.dumps(body).encode() + b"\n"

    def settle_s(self, intent):
        return base.SETTLE_S

    async def submit(self, path, intent, *, before):
        if self._provider.on_upload is not None:
            await self._provider.on_upload()
        await before()

        def make():
            batch_id, nonce = self._provider.make(path, intent)
            NONCES[nonce] = batch_id
            return batch_id

        return self._life.step(make)

    async def find(self, intent, known_ids):
        found = NONCES.get(intent.nonce)
        return self._life.step(lambda: None if found in known_ids else found)

    async def status(self, batch_id):
        provider = self._provider
        state = BatchState.RUNNING if provider.is_running else provider.ends_as
        if batch_id in provider.cancelled:
            state = BatchState.CANCELLED
        if provider.is_gone():
            state = BatchState.GONE
        status = BatchStatus(state=state, requests=1, succeeded=provider.succeeded)
        return self._life.step(lambda: status)

    async def results(self, batch_id):
        if self._provider.hangs:
            await asyncio.Event().wait()
        for result in self._provider.results_of[batch_id]:
            if result is not None:
                yield self._life.step(lambda: result)  # noqa: B023 - called at once

    def taken(self, request, result):
        if result.error is not None:
            raise result.error.error()
        return result.reply

    async def cancel(self, batch_id):
        if self._provider.keeps_on:
            raise LLMError(ErrorKind.AUTH, "no")
        self._life.step(lambda: self._provider.cancelled.append(batch_id))

    async def discard(self, batch_id):
        self._life.step(lambda: self._provider.discarded.append(batch_id))

    async def check(self):
        pass


NONCES: dict[str, str] = {}


class Life:
    """Counts the steps of a process, which dies before or after one of them."""

    def __init__(self, dies_at=None, *, is_done=False):
        self.steps = 0
        self.is_dead = False
        self._dies_at = dies_at
        self._is_done = is_done

    def step(self, take):
        if self.is_dead:
            raise Death
        self.steps += 1
        if self.steps == self._dies_at:
            self.is_dead = True
            if self._is_done:
                take()
            raise Death
        return take()


class MortalStore:
    """A store as a process sees it that dies at one of its steps."""

    def __init__(self, store, life):
        self._store = store
        self._life = life

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name in {"members_left", "batch_lines", "gathered_marks", "now"}:
            return method
        return lambda *args, **options: self._life.step(lambda: method(*args, **options))


class MortalPublisher:
    def __init__(self, publisher, life):
        self._publisher = publisher
        self._life = life

    def mixed_branches(self, branches):
        branches = list(branches)
        self._life.step(lambda: self._publisher.mixed_branches(branches))


class Model:
    account = "mine"
    identity = MODEL

    def __init__(self, client):
        self._client = client

    def batches(self):
        return self._client


class Fleet:
    """A run in the batch lane, its branches, and the processes that make its batches."""

    def __init__(self, monkeypatch, provider, count=5, texts=None, **fields):
        monkeypatch.setattr(base, "SETTLE_S", 0.0)
        monkeypatch.setattr(joined_calls, "_GRACE_S", 0.0)
        texts = texts or [f"t{i}" for i in range(count)]
        self.provider = provider
        options = {"model": MODEL, "lane": "batch", "retries": {"max_attempts": 3}, **fields}
        self.context = FakeContext(publisher=Publisher(), **options)
        self.store = self.context.store
        self.context.models.made[MODEL] = Model(Client(provider, Life()))
        self.context.write(texts)
        self.store.open_shards(StageId(RUN, 0), window=100)
        self.messages = [BranchId(RUN, 0, 0, position) for position in range(len(texts))]
        self.ids = itertools.count()
        self.settings = load_settings(batch_wait_s=0.0001, batch_poll_s=0.0001)
        self.life: Life = Life()
        monkeypatch.setattr(
            batching, "LaneClients", lambda _settings: LaneClients(self.provider, self.life)
        )
        self.start(self.life)

    def start(self, life):
        """Start a process that makes batches; one before it has died."""
        self.life = life
        self.store._redis.hset("fanout:batches:leader", "until", 0)
        self.batcher = Batcher(
            MortalStore(self.store, life),
            MortalStore(self.store, life),
            MortalPublisher(self.context.publisher, life),
            self.settings,
            process=f"p{next(self.ids)}",
            ttl_s=1_000,
        )

    def beat(self):
        self.batcher.beat()
        for task in list(self.batcher._tasks.values()):
            with suppress(Death):
                task.result(60)

    def process(self):
        """Process the branches that have messages; return how many there were."""
        sent, self.context.publisher.sent = self.context.publisher.sent, []
        self.messages += [BranchId(RUN, *each[1:]) for each in sent if each[0] == "branch"]
        messages, self.messages = self.messages, []
        for branch_id in messages:
            with suppress(BranchGathered, BranchFailed, BranchParked):
                run_branch(self.context, branch_id)
        return len(messages)

    @property
    def outcomes(self):
        return self.store.outcomes(ShardId(RUN, 0, 0))

    def finish(self, most=60):
        """Go on until all branches have ended; a process that dies is followed by another one."""
        size = self.store.stage(StageId(RUN, 0)).total
        for _ in range(most):
            self.process()
            waits = self.store.batches() or self.store.gathered(RUN)
            if len(self.outcomes) == size and not waits:
                return
            with suppress(Death):
                self.beat()
            if self.life.is_dead:
                self.batcher.close()
                self.start(Life())
        raise AssertionError("the run does not end")

    def check(self, *, calls):
        """Check that nothing is lost, doubled or submitted twice."""
        assert all(outcome.ok for outcome in self.outcomes.values())
        assert set(self.provider.nonces.values()) == {1}
        assert set(self.provider.bought().values()) == {1}
        stage = self.store.stage(StageId(RUN, 0))
        assert stage.usage.calls == sum(self.provider.bought().values()) == calls
        assert self.store.gathered(RUN) == 0
        left = self.store._redis.keys("fanout:batches:*")
        assert not [key for key in left if key.endswith((b":members", b":lines", b":ready"))]


class LaneClients:
    def __init__(self, provider, life):
        self._provider = provider
        self._client = Client(provider, life)

    async def get(self, lane):
        return LaneApi(self._client, is_own=self._provider.account == lane.account)

    async def aclose(self):
        pass


def test_the_calls_of_a_run_become_a_batch_whose_results_are_its_answers(monkeypatch):
    fleet = Fleet(monkeypatch, Provider())
    assert fleet.process() == 5
    assert fleet.outcomes == {}
    assert fleet.store.gathered(RUN) == 5
    assert fleet.store.shard_state(ShardId(RUN, 0, 0)).held == frozenset(range(5))
    fleet.finish()
    fleet.check(calls=5)
    assert [len(lines) for lines in fleet.provider.made.values()] == [5]
    # The time of a batch is no call's.
    assert {outcome.lane for outcome in fleet.outcomes.values()} == {"batch"}
    assert fleet.store.stage(StageId(RUN, 0)).latency.count == 0
    assert fleet.store.totals().latency.count == 0
    fleet.batcher.close()


def answers_later(line, seen=Counter()):  # noqa: B006 - a fresh one is given
    seen[line["prompt"]] += 1
    if seen[line["prompt"]] == 1 and line["prompt"] in {"t0", "t1"}:
        return {"text": "not json"} if line["prompt"] == "t0" else {"error": "expired"}
    return {"text": '{"a": 1}'}


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def with_reasks(monkeypatch):
    seen = Counter()
    provider = Provider(lambda line: answers_later(line, seen))
    texts = ["t0", "t1", "t2", "t3", "t0", "t1", "t0"]
    return Fleet(monkeypatch, provider, texts=texts, prompt="{input}", schema=SCHEMA)


def test_a_call_that_is_made_again_is_in_the_next_batch(monkeypatch):
    fleet = with_reasks(monkeypatch)
    fleet.finish()
    fleet.check(calls=6)
    # What is there several times is asked for once, and again once.
    assert [fleet.outcomes[position].saved.calls for position in (0, 4, 5, 6)] == [0, 1, 1, 1]
    made = [sorted(line["prompt"] for line in lines) for lines in fleet.provider.made.values()]
    assert made == [["t0", "t1", "t2", "t3"], ["t0", "t1"]]
    fleet.batcher.close()


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_death_at_any_step_loses_and_doubles_nothing(monkeypatch, is_done):
    whole = with_reasks(monkeypatch)
    whole.finish()
    steps = whole.life.steps
    whole.batcher.close()
    assert steps > 40
    # Each takes a tenth of a second.
    for dies_at in range(1 + 5 * is_done, steps, 10):
        fleet = with_reasks(monkeypatch)
        fleet.start(Life(dies_at, is_done=is_done))
        fleet.finish()
        fleet.check(calls=6)
        fleet.batcher.close()


@pytest.mark.parametrize("cause", ["fails", "has no room", "is evicted"])
def test_identical_calls_are_made_on_their_own_if_the_first_has_no_answer_for_them(
    monkeypatch, cause
):
    seen = Counter()

    def answer(line):
        seen["all"] += 1
        return {"error": "expired"} if cause == "fails" and seen["all"] == 1 else {"text": "a"}

    fleet = Fleet(monkeypatch, Provider(answer), texts=["t"] * 4, retries={"max_attempts": 1})
    if cause == "has no room":
        monkeypatch.setattr(fleet.store, "_value", lambda *_: None)
    if cause == "is evicted":
        find = fleet.store.find_answers

        def evicted(requests, **options):
            fleet.store.clear_answers()
            return find(requests, **options)

        monkeypatch.setattr(fleet.store, "find_answers", evicted)
    fleet.finish()
    assert sum(outcome.ok for outcome in fleet.outcomes.values()) == 4 - (cause == "fails")
    # At most one for each, and they do not wait for each other.
    assert set(fleet.provider.bought().values()) == {1}
    assert [len(lines) for lines in fleet.provider.made.values()] == [1, 3]
    fleet.beat()
    assert (fleet.store.gathered(RUN), fleet.store.joined_keys((0, 0))[1]) == (0, [])
    fleet.batcher.close()


@pytest.mark.parametrize("kind", ["bad_request", "content_filter", "invalid_output"])
def test_identical_calls_take_a_failure_that_theirs_would_have(monkeypatch, kind):
    answer = {"text": "not json"} if kind == "invalid_output" else {"error": kind}
    fleet = Fleet(
        monkeypatch, Provider(lambda _: answer), texts=["t"] * 4, schema=SCHEMA, max_reasks=1,
        budget={"calls": 9},
    )  # fmt: skip
    fleet.finish()
    made = 2 if kind == "invalid_output" else 1
    outcomes = list(fleet.outcomes.values())
    assert sum(fleet.provider.bought().values()) == made
    assert {(one.kind, one.message) for one in outcomes} == {(kind, outcomes[0].message)}
    assert sorted(one.usage.calls for one in outcomes) == [0, 0, 0, made]
    assert [one.usage.cost_usd for one in outcomes if not one.usage.calls] == [0.0] * 3
    state = fleet.store.budget(RUN)
    assert (state.spent.calls, state.unsure.calls) == (made, 0)
    fleet.beat()
    assert (fleet.store.gathered(RUN), fleet.store.joined_keys((0, 0))[1]) == (0, [])
    fleet.batcher.close()


def test_a_call_that_follows_another_one_reserves_nothing_of_the_budget(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), texts=["t0", "t1", "t0", "t0"], budget={"calls": 2})
    fleet.process()
    assert fleet.store.gathered(RUN) == 4
    fleet.finish()
    fleet.check(calls=2)
    state = fleet.store.budget(RUN)
    assert (state.spent.calls, state.unsure.calls) == (2, 0)
    fleet.batcher.close()


def test_identical_calls_are_not_joined_without_kept_answers(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), texts=["t"] * 3, cache=False)
    fleet.finish()
    fleet.check(calls=3)
    fleet.batcher.close()


def error(kind, **fields):
    return LLMError(ErrorKind(kind), "no", **fields)


def test_a_batch_whose_creation_has_no_reply_is_found_or_made_later(monkeypatch):
    fleet = Fleet(monkeypatch, Provider())
    fleet.provider.refuses = [
        BatchUnknownError(ErrorKind.CONNECTION, "lost"),
        error("rate_limited"),
    ]
    fleet.finish()
    fleet.check(calls=5)
    fleet.batcher.close()


@pytest.mark.parametrize(
    ("kind", "tries", "fields"),
    [
        ("bad_request", 1, {"status": 400}),
        ("auth", 1, {"status": 401}),
        # A reply that makes no sense, such as an upload without an id.
        ("server_error", 9, {"is_own": True, "status": 200}),
    ],
)
def test_a_batch_that_the_provider_refuses_ends_its_calls(monkeypatch, kind, tries, fields):
    fleet = Fleet(monkeypatch, Provider(), count=3, retries={"max_attempts": 1})
    quoting = LLMError(ErrorKind(kind), "line 1 is bad: t0 of another", **fields)
    fleet.provider.refuses = [quoting] * tries
    fleet.finish()
    # A refused key stops the run.
    kinds = {outcome.kind for outcome in fleet.outcomes.values()} - {ErrorKind.CANCELLED}
    assert kinds == {ErrorKind(kind)}
    assert not [one for one in fleet.outcomes.values() if "t0" in one.message]
    assert (fleet.provider.made, fleet.provider.refuses) == ({}, [])
    fleet.batcher.close()


def test_a_creation_whose_replies_name_no_batch_is_given_up_and_may_have_cost(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=2, retries={"max_attempts": 1})
    fleet.provider.refuses = [
        BatchUnknownError(ErrorKind.SERVER_ERROR, "it has no id", is_own=True) for _ in range(9)
    ]
    fleet.finish()
    assert {outcome.kind for outcome in fleet.outcomes.values()} == {ErrorKind.SERVER_ERROR}
    usage = fleet.store.stage(StageId(RUN, 0)).usage
    assert (usage.calls, usage.input_tokens) == (2, None)
    assert (fleet.provider.made, fleet.provider.refuses) == ({}, [])
    fleet.batcher.close()


@pytest.mark.parametrize("kind", ["rate_limited", "bad_request"])
def test_a_batch_that_fails_as_a_whole_is_gathered_anew_if_that_helps(monkeypatch, kind):
    fleet = Fleet(monkeypatch, Provider(), count=4)
    failed: list[str] = []
    status = Client.status

    async def fails_once(self, batch_id):
        if failed and batch_id != failed[0]:
            return await status(self, batch_id)
        failed.append(batch_id)
        # The provider has answered nothing.
        fleet.provider.made.pop(batch_id, None)
        found = BatchError(kind=ErrorKind(kind), message="no")
        return BatchStatus(state=BatchState.FAILED, error=found)

    monkeypatch.setattr(Client, "status", fails_once)
    fleet.finish()
    if kind == "bad_request":
        assert {outcome.kind for outcome in fleet.outcomes.values()} == {ErrorKind.BAD_REQUEST}
    else:
        assert all(outcome.ok for outcome in fleet.outcomes.values())
        # Half as many calls in a batch, as there was no room for more.
        assert [len(lines) for lines in fleet.provider.made.values()] == [2, 2]
        assert {outcome.attempts for outcome in fleet.outcomes.values()} == {1}
    fleet.batcher.close()


def wait_at_provider(fleet):
    fleet.provider.is_running = True
    fleet.process()
    while not fleet.provider.made:
        fleet.beat()


def test_the_answers_of_a_cancelled_run_are_counted(monkeypatch):
    answers = {"t0": {"text": "answer"}}
    provider = Provider(lambda line: answers.get(line["prompt"]))
    fleet = Fleet(monkeypatch, provider, count=3, budget={"calls": 9})
    wait_at_provider(fleet)
    assert fleet.store.budget(RUN).unsure.calls == 3
    assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    fleet.beat()
    fleet.finish()
    assert {outcome.kind for outcome in fleet.outcomes.values()} == {ErrorKind.CANCELLED}
    assert fleet.provider.cancelled == ["batch_0"]
    known = [fleet.outcomes[position].usage for position in range(3)]
    assert [usage.input_tokens for usage in known] == [5, 0, 0]
    state = fleet.store.budget(RUN)
    assert (state.spent.calls, state.unsure.calls) == (3, 0)
    # Each was called, and has no time of a call.
    assert {(one.attempts, one.lane, one.message) for one in fleet.outcomes.values()} == {
        (1, "batch", "the run was stopped before this branch had ended")
    }
    assert fleet.store.stage(StageId(RUN, 0)).latency.count == 0
    fleet.batcher.close()


@pytest.mark.parametrize("ends", ["promoted", "stopped", "poisoned"])
def test_what_is_reserved_for_a_call_that_is_in_no_batch_is_given_back(monkeypatch, ends):
    fleet = Fleet(monkeypatch, Provider(), count=2, budget={"calls": 9})

    async def complete(_request):
        return LLMReply(text="now", usage=Usage(calls=1))

    fleet.context.models.made[MODEL].complete = complete
    days = {"*": BudgetLimits(calls=9)}
    fleet.context.has_days(days)
    fleet.process()
    assert fleet.store.budget(RUN).unsure.calls == 2
    if ends == "stopped":
        assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    if ends == "poisoned":
        fleet.context.settings = load_settings(max_deliveries=1)
    [marks] = fleet.store.gathered_marks(RUN)
    epoch = fleet.store.lead_batches("me", ttl_s=0.001).epoch
    assert fleet.store.release_gathered(epoch, RUN, marks, promotes=ends == "promoted") == 2
    fleet.finish()
    asyncio.run(fleet.context.budgets.aclose())
    [of_day], _ = fleet.store.day_budgets(["*"])
    made = 2 if ends == "promoted" else 0
    for state in (fleet.store.budget(RUN), of_day):
        assert (state.spent.calls, state.unsure.calls) == (made, 0)
    fleet.batcher.close()


@pytest.mark.parametrize("other", [(), (OTHER,)], ids=["only model", "fallback"])
def test_a_result_that_no_worker_can_use_counts_and_its_budget_is_settled(monkeypatch, other):
    fleet = Fleet(monkeypatch, Provider(), count=1, budget={"calls": 9}, fallback=list(other))
    wait_at_provider(fleet)
    fleet.provider.is_running = False
    while not fleet.context.publisher.sent:
        fleet.beat()

    async def fails(_model):
        raise ModelError("no key")

    fleet.context.models.get = fails
    fleet.context.models.made.clear()
    fleet.finish()
    asyncio.run(fleet.context.budgets.aclose())
    [outcome], state = fleet.outcomes.values(), fleet.store.budget(RUN)
    assert outcome.attempts == outcome.usage.calls == 1
    assert (state.spent.calls, state.unsure.calls, state.held.calls) == (1, 0, 0)
    assert outcome.usage.input_tokens == fleet.store.stage(StageId(RUN, 0)).usage.input_tokens
    assert outcome.usage.input_tokens == 5
    fleet.batcher.close()


def test_an_answer_that_comes_too_late_is_that_of_the_model_that_was_asked(monkeypatch):
    prices = {
        MODEL: {"input_mtok": 1, "output_mtok": 1},
        OTHER: {"input_mtok": 8e5, "output_mtok": 8},
    }
    answers = iter([{"error": "content_filter"}, {"text": "answer"}])
    provider = Provider(lambda _: next(answers))
    fleet = Fleet(monkeypatch, provider, count=1, fallback=[OTHER], price=prices)
    other = fleet.context.models.made[OTHER] = copy(fleet.context.models.made[MODEL])
    other.identity = OTHER
    fleet.process()
    for _ in range(9):
        fleet.beat()
        provider.is_running = len(provider.made) > 1
        fleet.process()
    assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    fleet.finish()
    outcome = fleet.outcomes[0]
    assert (outcome.kind, outcome.attempts) == (ErrorKind.CANCELLED, 2)
    by_model = fleet.store.stage(StageId(RUN, 0)).usage_of
    assert [by_model[one].input_tokens for one in (MODEL, OTHER)] == [0, 5]
    assert by_model[OTHER].at_least["cost_usd"] == pytest.approx(2.0)
    fleet.batcher.close()


def calls_of(prepared, *, earlier=0, model=MODEL):
    claim = SimpleNamespace(branch_id=BranchId(RUN, 0, 0, 0))
    lane = LaneRecord(model=model, account="mine")
    return GatheredCalls(
        claim, Client(Provider(), Life()), lane, earlier=earlier, prepared=prepared
    )


def test_only_the_result_of_the_next_call_is_a_result_of_it():
    item = calls_of(Prepared())._item(1)
    landed = Prepared(item=item)
    assert calls_of(landed).has_result
    assert not calls_of(landed, earlier=1).has_result
    assert not calls_of(landed, model=OTHER).has_result
    # A retry makes the calls anew.
    assert not calls_of(structs.replace(landed, since="12.5")).has_result


def test_only_a_call_that_has_followed_another_one_takes_its_failure():
    item = calls_of(Prepared())._item(1)
    followed = Prepared(followed=item)
    assert calls_of(followed).has_followed
    assert not calls_of(Prepared()).has_followed
    assert not calls_of(followed, earlier=1).has_followed
    assert not calls_of(structs.replace(followed, since="12.5")).has_followed


def test_a_run_that_waits_no_more_is_not_remembered(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=1)
    wait_at_provider(fleet)
    fleet.beat()
    waiting = fleet.batcher._runs
    assert (list(waiting._shown), len(fleet.store.in_batches(RUN)[1])) == ([RUN], 1)
    fleet.store._redis.delete("fanout:batches:runs", "fanout:batches:all")
    fleet.beat()
    assert (waiting._shown, fleet.store.in_batches(RUN)[1]) == ({}, [])
    fleet.batcher.close()


def test_branches_of_a_stopped_run_do_not_wait_for_a_batch_of_others(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=2)
    wait_at_provider(fleet)
    # A call of another run is in the same batch.
    fleet.store.create_run("r2", spec="{}", created_at=1.0)
    fleet.store._redis.hset("fanout:batches:batch:1:runs", "r2", 1)
    assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    for _ in range(3):
        fleet.beat()
        fleet.process()
    assert {outcome.kind for outcome in fleet.outcomes.values()} == {ErrorKind.CANCELLED}
    assert fleet.provider.cancelled == []
    # The provider may answer them yet.
    assert fleet.outcomes[0].usage.input_tokens is None
    fleet.batcher.close()


def test_late_branches_of_an_automatic_lane_are_called_at_once(monkeypatch):
    texts = ["t0", "t1", "t0"]
    options = {"lane": "auto", "deadline_s": 1000, "budget": {"calls": 9}}
    fleet = Fleet(monkeypatch, Provider(), texts=texts, **options)
    called = []

    async def complete(request):
        called.append((bare(request.prompt), request.lane))
        return LLMReply(text="now", usage=Usage(calls=1, cost_usd=0.25))

    fleet.context.models.made[MODEL].complete = complete
    fleet.store._redis.hset("fanout:run:r1", "deadline_at", fleet.store.now() + 900)
    fleet.store._redis.hset("fanout:run:r1", "created_at", fleet.store.now() - 100)
    wait_at_provider(fleet)
    fleet.beat()
    assert (called, fleet.store.gathered(RUN)) == ([], 3)
    fleet.store._redis.hset("fanout:run:r1", "deadline_at", fleet.store.now() + 50)
    fleet.finish()
    assert sorted(called) == [("t0", "realtime"), ("t1", "realtime")]
    assert {outcome.output for outcome in fleet.outcomes.values()} == {"now"}
    assert fleet.provider.cancelled == ["batch_0"]
    # The provider may bill the calls of the batch, too: for outcomes, status and budget alike.
    asyncio.run(fleet.context.budgets.aclose())
    state = fleet.store.budget(RUN)
    assert (state.spent.calls, state.unsure.calls) == (4, 0)
    usage = fleet.store.stage(StageId(RUN, 0)).usage
    outcomes = [fleet.outcomes[number] for number in range(3)]
    assert sum(one.usage.calls for one in outcomes) == usage.calls == 4
    # One of two that are identical takes the answer of the other.
    assert sum(one.attempts for one in outcomes) == 4
    assert sum(one.saved.calls for one in outcomes) == 1
    assert (usage.cost_usd, usage.at_least["cost_usd"]) == (None, 0.5)
    fleet.batcher.close()


def test_a_late_branch_takes_the_answer_that_its_batch_has_brought(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=2, lane="auto", deadline_s=1000)
    wait_at_provider(fleet)
    fleet.provider.is_running = False
    while not fleet.context.publisher.sent:
        fleet.beat()
    fleet.store._redis.hset("fanout:run:r1", "deadline_at", fleet.store.now() + 50)
    fleet.finish()
    fleet.check(calls=2)
    fleet.batcher.close()


def set_deadline(fleet, *, left_s, span_s=1_000):
    now = fleet.store.now()
    times = {"deadline_at": now + left_s, "created_at": now + left_s - span_s}
    fleet.store._redis.hset("fanout:run:r1", mapping=times)


def test_a_late_batch_is_asked_about_once_more_before_it_is_paid_again(monkeypatch):
    """Its calls and those that follow them go on with its answers, which nobody has asked for yet."""
    fleet = Fleet(monkeypatch, Provider(), texts=["t0", "t1", "t0"], lane="auto", deadline_s=1000)
    fleet.settings = load_settings(batch_wait_s=0.0001, batch_poll_s=10_000)
    fleet.start(Life())
    monkeypatch.setattr(provider_batch, "poll_wait_s", lambda _polls, longest_s: longest_s)
    # What was known when the branches were gathered, however long the test takes.
    monkeypatch.setattr("workers.context.late_runs._HOLDS_S", math.inf)
    wait_at_provider(fleet)
    fleet.beat()
    fleet.provider.is_running = False
    set_deadline(fleet, left_s=215)
    fleet.finish()
    fleet.check(calls=2)
    assert fleet.provider.cancelled == []
    assert not fleet.store.run(RUN).is_late
    fleet.batcher.close()


def test_a_batch_that_would_soon_be_late_is_not_made(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), texts=["t0", "t1", "t0"], lane="auto", deadline_s=1000)

    async def complete(_request):
        return LLMReply(text="now", usage=Usage(calls=1))

    fleet.context.models.made[MODEL].complete = complete
    set_deadline(fleet, left_s=900)
    fleet.process()
    assert fleet.store.gathered(RUN) == 3
    # Three branches take 120 s if each is called anew, and 100 s are kept: a batch needs 100 s more.
    set_deadline(fleet, left_s=315)
    fleet.finish()
    assert fleet.provider.made == {}
    assert {outcome.output for outcome in fleet.outcomes.values()} == {"now"}
    assert fleet.store.run(RUN).is_late
    fleet.batcher.close()


def test_a_paused_run_takes_its_results_when_it_goes_on(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=3)
    fleet.process()
    assert fleet.store.pause(RUN)
    for _ in range(4):
        fleet.beat()
        fleet.process()
    # What was in no batch is parked, so that no batch is made of it.
    assert (fleet.provider.made, fleet.outcomes, fleet.store.gathered(RUN)) == ({}, {}, 0)
    assert fleet.store.unpause(RUN)
    fleet.messages = fleet.store.take_parked(RUN)
    assert len(fleet.messages) == 3
    fleet.finish()
    fleet.check(calls=3)
    fleet.batcher.close()


def test_two_runs_share_a_batch_and_one_may_be_deleted(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=2)
    wait_at_provider(fleet)
    fleet.store.delete_run(RUN)
    fleet.provider.is_running = False
    for _ in range(5):
        fleet.beat()
    assert fleet.store.batches() == []
    assert fleet.store.gathered_runs() == []
    assert not [key for key in fleet.store._redis.keys("*") if b":r1" in key]
    fleet.batcher.close()


def wait_with_intent(fleet, refusal):
    """Go on until the provider has refused a batch, or has not said whether it made it."""
    fleet.provider.refuses = [refusal] * 1_000
    fleet.process()
    while len(fleet.provider.refuses) == 1_000:
        fleet.beat()
    [batch] = fleet.store.batches()
    assert batch.stage == "intent"
    fleet.provider.refuses = []


@pytest.mark.parametrize("lane", ["batch", "auto"])
def test_calls_that_no_provider_has_leave_their_batch_with_their_run(monkeypatch, lane):
    fields = {"deadline_s": 1000, "lane": lane} if lane == "auto" else {}
    fleet = Fleet(monkeypatch, Provider(), count=2, **fields)

    async def complete(request):
        assert request.lane == "realtime"
        return LLMReply(text="now", usage=Usage(calls=1, input_tokens=7))

    fleet.context.models.made[MODEL].complete = complete
    wait_with_intent(fleet, error("rate_limited"))
    if lane == "auto":
        fleet.store._redis.hset("fanout:run:r1", "deadline_at", fleet.store.now() + 50)
        fleet.store._redis.hset("fanout:run:r1", "created_at", fleet.store.now() - 950)
    else:
        assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    fleet.finish()
    assert fleet.provider.made == {}
    paid = Usage(calls=1, input_tokens=7) if lane == "auto" else NO_CALL
    assert [fleet.outcomes[at].usage for at in range(2)] == [paid, paid]
    fleet.batcher.close()


def test_calls_that_a_provider_may_have_got_are_not_said_to_cost_nothing(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=2)
    monkeypatch.setattr(base, "SETTLE_S", 1_000.0)
    wait_with_intent(fleet, BatchUnknownError(ErrorKind.CONNECTION, "lost"))
    # A call of another run is in the same batch.
    fleet.store.create_run("r2", spec="{}", created_at=1.0)
    fleet.store._redis.hset("fanout:batches:batch:1:runs", "r2", 1)
    assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    for _ in range(3):
        fleet.beat()
        fleet.process()
    assert {outcome.kind for outcome in fleet.outcomes.values()} == {ErrorKind.CANCELLED}
    assert [fleet.outcomes[at].usage for at in range(2)] == [Usage(calls=1)] * 2
    fleet.batcher.close()


@pytest.mark.parametrize("lost", ["line", "damaged", "member", "run", "all"])
def test_a_batch_is_made_without_calls_whose_lines_are_lost(monkeypatch, lost):
    fleet = Fleet(monkeypatch, Provider(), count=3)
    wait_with_intent(fleet, error("rate_limited"))
    [batch] = fleet.store.batches()
    members, lines, _ = fleet.store._batch_keys(batch.number)
    redis = fleet.store._redis
    if lost == "line":
        redis.hdel(lines, batch.first_item)
    elif lost == "damaged":
        other = next(item for item in redis.hkeys(lines) if item.decode() != batch.first_item)
        redis.hset(lines, other, b"9 no line")
    elif lost == "member":
        redis.hdel(members, batch.first_item)
    elif lost == "run":
        fleet.store.delete_run(RUN)
    else:
        redis.delete(lines)
    if lost in {"member", "run"}:
        for _ in range(6):
            fleet.beat()
            fleet.process()
        count = 2 if lost == "member" else 0
        assert sum(fleet.provider.bought().values()) == count
        assert fleet.store.batches() == []
    else:
        fleet.finish()
        assert fleet.store.stage(StageId(RUN, 0)).usage.input_tokens == 15
        assert list(fleet.provider.bought().values()) == [1, 1, 1]
        attempts = sorted(outcome.attempts for outcome in fleet.outcomes.values())
        assert attempts == ([2, 2, 2] if lost == "all" else [1, 1, 2])
    fleet.batcher.close()


@pytest.mark.parametrize("fate", ["unsure", "other", "stuck"])
def test_no_batch_is_made_once_the_leadership_is_lost_in_its_upload(monkeypatch, fate):
    fleet = Fleet(monkeypatch, Provider())
    uploads = []

    async def upload():
        uploads.append(1)
        if fate == "unsure":
            fleet.batcher._leads_until = time.monotonic() + 1
        elif fate == "other":
            fleet.store._redis.hset("fanout:batches:leader", "until", 0)
            assert fleet.store.lead_batches("other", ttl_s=0.001)
        else:
            await asyncio.Event().wait()

    fleet.provider.on_upload = upload
    fleet.batcher._ttl_s = 0.5 if fate == "stuck" else 1_000
    fleet.process()
    while not uploads:
        fleet.beat()
    assert fleet.provider.made == {}
    fleet.provider.on_upload = None
    fleet.batcher._ttl_s = 1_000
    fleet.finish()
    fleet.check(calls=5)
    fleet.batcher.close()


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_goes_on_whose_batch_the_provider_does_not_cancel(monkeypatch, ends):
    fleet = Fleet(monkeypatch, Provider(), count=2)
    fleet.provider.keeps_on = True
    wait_at_provider(fleet)
    assert fleet.store.halt(RUN, RunStatus.CANCELLED)
    fleet.beat()
    fleet.beat()
    assert fleet.process() == 0
    [batch] = fleet.store.batches()
    assert (batch.stage, batch.cancelled_at) == ("submitted", None)
    if ends:
        # It is polled all the same.
        fleet.provider.is_running = False
    else:
        monkeypatch.setattr(waiting_runs, "_PATIENCE_S", 0.0)
    while len(fleet.outcomes) < 2:
        fleet.beat()
        fleet.process()
    assert fleet.provider.cancelled == []
    known = [fleet.outcomes[position].usage.input_tokens for position in range(2)]
    assert known == ([5, 5] if ends else [None, None])
    assert fleet.store.stage(StageId(RUN, 0)).usage.calls == 2
    fleet.batcher.close()


def rotate_key(monkeypatch, fleet):
    fleet.provider.account = fleet.context.models.made[MODEL].account = "new"
    monkeypatch.setattr(batching, "_STRANDED_S", 0.0)
    fleet.batcher.close()
    fleet.start(Life())


@pytest.mark.parametrize("stage", ["queued", "forming", "submitted"])
def test_calls_of_an_earlier_key_go_on(monkeypatch, stage):
    fleet = Fleet(monkeypatch, Provider())
    if stage == "submitted":
        wait_at_provider(fleet)
        fleet.provider.is_running = False
    else:
        fleet.process()
    if stage == "forming":
        [queue] = fleet.store.lane_queues()
        epoch = fleet.store.lead_batches("p0", ttl_s=1).epoch
        batch = BatchRecord(number=9, lane_id=queue.lane_id, calls=9)
        assert fleet.store.put_batch(epoch, batch)
        assert fleet.store.fill_batch(epoch, batch, most_calls=3, most_bytes=10_000).calls == 3
    rotate_key(monkeypatch, fleet)
    fleet.finish()
    fleet.check(calls=5)
    fleet.batcher.close()


@pytest.mark.parametrize("stage", ["intent", "gone"])
def test_a_batch_that_the_new_key_does_not_find_is_given_up_late(monkeypatch, stage):
    fleet = Fleet(monkeypatch, Provider(), count=2)
    if stage == "intent":
        wait_with_intent(fleet, error("rate_limited"))
    else:
        wait_at_provider(fleet)
        status = Client.status

        async def status_by_new_key(self, batch_id):
            if batch_id == "batch_0":
                return BatchStatus(state=BatchState.GONE)
            return await status(self, batch_id)

        monkeypatch.setattr(Client, "status", status_by_new_key)
        fleet.provider.is_running = False
    rotate_key(monkeypatch, fleet)
    for _ in range(1_000):
        fleet.beat()
        if "another key" in fleet.store.batches()[0].problem:
            break
    assert "another key" in fleet.store.batches()[0].problem
    assert fleet.process() == 0
    monkeypatch.setattr(provider_batch, "_MOST_TRIES", 0)
    fleet.finish()
    assert all(outcome.ok for outcome in fleet.outcomes.values())
    # What came of the first ones is not known.
    assert {outcome.usage.input_tokens for outcome in fleet.outcomes.values()} == {None}
    fleet.batcher.close()


def beat_until(fleet, condition):
    for _ in range(6_000):
        fleet.batcher.beat()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to that")


def test_results_that_do_not_arrive_hold_up_no_batches_and_end_when_nobody_waits(monkeypatch):
    fleet = Fleet(monkeypatch, Provider(), count=10)
    fleet.settings = load_settings(batch_wait_s=0.0001, batch_poll_s=0.0001, batch_calls=1)
    fleet.provider.hangs = True
    fleet.start(Life())
    fleet.process()
    stages = lambda: [batch.stage for batch in fleet.store.batches()]  # noqa: E731
    beat_until(fleet, lambda: len(fleet.provider.made) == 10 and set(stages()) == {"landing"})
    # A part of them is read at a time.
    assert len(fleet.batcher._tasks) < 10
    fleet.store.delete_run(RUN)
    beat_until(fleet, lambda: not fleet.store.batches())
    beat_until(fleet, lambda: all(task.done() for task in fleet.batcher._tasks.values()))
    fleet.batcher.close()


def test_a_batch_that_the_provider_does_not_know_at_first_is_asked_about_again(monkeypatch):
    gone = iter([True, True])
    provider = Provider()
    provider.is_gone = lambda: next(gone, False)
    fleet = Fleet(monkeypatch, provider)
    fleet.finish()
    fleet.check(calls=5)
    assert len(provider.made) == len(provider.discarded) == 1
    fleet.batcher.close()


@pytest.mark.parametrize(
    ("ends_as", "succeeded", "is_gone", "is_billed"),
    [
        (BatchState.ENDED, None, False, None),
        (BatchState.ENDED, 1, False, None),
        (BatchState.EXPIRED, None, False, 0),
        (BatchState.EXPIRED, 1, False, 0),
        (BatchState.EXPIRED, 2, False, None),
        (BatchState.CANCELLED, 2, False, None),
        (BatchState.CANCELLED, 1, False, 0),
        (BatchState.ENDED, None, True, None),
    ],
)
def test_a_call_without_a_result_costs_nothing_only_if_it_was_not_made(
    monkeypatch, ends_as, succeeded, is_gone, is_billed
):
    monkeypatch.setattr(base, "MISSING_S", 0.0)
    provider = Provider(lambda line: {"text": "answer"} if line["prompt"] == "t0" else None)
    provider.ends_as, provider.succeeded, provider.is_gone = ends_as, succeeded, lambda: is_gone
    fleet = Fleet(monkeypatch, provider, count=2, retries={"max_attempts": 1})
    fleet.finish()
    assert fleet.outcomes[0].ok is not is_gone
    assert fleet.outcomes[1].usage.input_tokens == is_billed
    is_unknown = is_billed is None
    assert ("did not come to it" in fleet.outcomes[1].message) is not is_unknown
    # One that may run yet needs its file.
    assert provider.discarded == ([] if is_gone else ["batch_0"])
    fleet.batcher.close()
