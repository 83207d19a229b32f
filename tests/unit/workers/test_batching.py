"""The batch lane: gathered calls, batches at a provider, and deaths at every step between."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import ErrorKind, Usage
from fanout.core.settings import load_settings
from fanout.llm.base import LLMReply
from fanout.llm.batches import base
from fanout.llm.batches.base import (
    BatchError,
    BatchLimits,
    BatchResult,
    BatchState,
    BatchStatus,
)
from tests.fakes import RUN, FakeContext, Publisher, run_branch
from workers.batching import batcher as batching
from workers.batching.batcher import Batcher
from workers.branch.claims import BranchGathered, BranchParked
from workers.branch.execution import BranchFailed

MODEL = "openai/m"


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

    def bought(self):
        return Counter(line["custom_id"] for lines in self.made.values() for line in lines)

    def make(self, path, intent):
        if self.refuses:
            raise self.refuses.pop(0)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == intent.requests
        assert lines[0]["custom_id"] == intent.first_id
        batch_id = f"batch_{len(self.made)}"
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
        body = {"custom_id": custom_id, "prompt": request.prompt, "turns": len(request.turns)}
        return json.dumps(body).encode() + b"\n"

    async def submit(self, path, intent):
        def make():
            batch_id, nonce = self._provider.make(path, intent)
            NONCES[nonce] = batch_id
            return batch_id

        return self._life.step(make)

    async def find(self, intent, known_ids):
        return self._life.step(lambda: NONCES.get(intent.nonce))

    async def status(self, batch_id):
        state = BatchState.RUNNING if self._provider.is_running else BatchState.ENDED
        if batch_id in self._provider.cancelled:
            state = BatchState.CANCELLED
        return self._life.step(lambda: BatchStatus(state=state, requests=1))

    async def results(self, batch_id):
        for result in self._provider.results_of[batch_id]:
            if result is not None:
                yield self._life.step(lambda: result)  # noqa: B023 - called at once

    def taken(self, request, result):
        if result.error is not None:
            raise result.error.error()
        return result.reply

    async def cancel(self, batch_id):
        self._life.step(lambda: self._provider.cancelled.append(batch_id))

    async def discard(self, batch_id):
        self._life.step(lambda: None)

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

    def __init__(self, client):
        self._client = client

    def batches(self):
        return self._client


class Fleet:
    """A run in the batch lane, its branches, and the processes that make its batches."""

    def __init__(self, monkeypatch, provider, count=5, **fields):
        monkeypatch.setattr(base, "SETTLE_S", 0.0)
        self.provider = provider
        options = {"model": MODEL, "lane": "batch", "retries": {"max_attempts": 3}, **fields}
        self.context = FakeContext(publisher=Publisher(), **options)
        self.store = self.context.store
        self.context.models.made[MODEL] = Model(Client(provider, Life()))
        self.context.write([f"t{i}" for i in range(count)])
        self.store.open_shards(StageId(RUN, 0), window=100)
        self.messages = [BranchId(RUN, 0, 0, position) for position in range(count)]
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
                task.result(10)

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
            if len(self.outcomes) == size and not self.store.batches():
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
        self._client = Client(provider, life)

    async def get(self, lane):
        return self._client

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
    return Fleet(monkeypatch, provider, prompt="{input}", schema=SCHEMA)


def test_a_call_that_is_made_again_is_in_the_next_batch(monkeypatch):
    fleet = with_reasks(monkeypatch)
    fleet.finish()
    fleet.check(calls=7)
    made = [sorted(line["prompt"] for line in lines) for lines in fleet.provider.made.values()]
    assert made == [["t0", "t1", "t2", "t3", "t4"], ["t0", "t1"]]
    fleet.batcher.close()


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_death_at_any_step_loses_and_doubles_nothing(monkeypatch, is_done):
    whole = with_reasks(monkeypatch)
    whole.finish()
    steps = whole.life.steps
    whole.batcher.close()
    assert steps > 40
    # Each takes a tenth of a second: both tests together come to every step.
    for dies_at in range(1 + is_done, steps, 2):
        fleet = with_reasks(monkeypatch)
        fleet.start(Life(dies_at, is_done=is_done))
        fleet.finish()
        fleet.check(calls=7)
        fleet.batcher.close()
