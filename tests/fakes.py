"""Fakes for unit tests: a server, a broker and a worker process."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import fakeredis
from msgspec import structs

from fanout.core.errors import UnknownRunError
from fanout.core.ids import ShardId, StageId
from fanout.core.permits import PermitRequest, PermitShare
from fanout.core.records import Chunk, Shard
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.llm import FakeLLM
from fanout.policy.packing import pack
from fanout.runs.budgets import run_limits
from fanout.runs.result_values import stored_values
from fanout.runs.retried_runs import reset_retried_shard
from fanout.stores import RedisStore
from workers.branch import execution as branches
from workers.branch.execution import BranchFailed
from workers.context.admission import Admission
from workers.context.answers import Answers
from workers.context.broken_models import BrokenModels
from workers.context.budgets import Budgets
from workers.context.call_plans import CallPlans
from workers.context.fleet_checks import StorageWatch, VersionGate
from workers.context.inflight import CallStoppedError, StopReason
from workers.context.late_runs import LateRuns
from workers.context.leads import Leads
from workers.context.limiter import Limiter
from workers.context.models import CommonFailures
from workers.context.passages import Passages
from workers.context.progress import BranchTracker
from workers.context.run_caches import RunCaches
from workers.context.worker_context import Connections, WorkerContext
from workers.reduce.groups import pack_partition
from workers.reduce.stages import aggregate, collect
from workers.telemetry.reports import Reports, Telemetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    import pytest

    from fanout.core.budgets import BudgetLimits
    from fanout.core.gathered import GatherReply, GatherRequest, Prepared
    from fanout.core.ids import BranchId, PartitionId
    from fanout.core.state import (
        BeginReply,
        BeginRequest,
        CheckpointRequest,
        RecordReply,
        RecordRequest,
    )
    from fanout.llm import LLMRequest
    from fanout.runs.status import StoredResult

__all__ = [
    "RUN",
    "Clock",
    "FakeContext",
    "MessageReader",
    "Publisher",
    "begin_one",
    "fake_redis",
    "fake_store",
    "make_shard",
    "record_one",
    "run_branch",
    "set_server_clock",
]

_T = TypeVar("_T")

RUN = "r1"
# The modules where fakeredis reads the time: for TIME, for expiry, and for absolute expiry.
_CLOCKS = ("commands_mixins.server_mixin", "_socket._base", "_helpers")


def fake_redis(server: fakeredis.FakeServer | None = None) -> fakeredis.FakeRedis:
    """Return a client of a fake server; of a new one by default."""
    return fakeredis.FakeRedis(server=server or fakeredis.FakeServer())


def fake_store(server: fakeredis.FakeServer | None = None, **options: Any) -> RedisStore:
    """Return a store on a fake server; on a new one by default."""
    return RedisStore(fake_redis(server), **options)


def set_server_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Make fake servers use ``clock``, which returns seconds since the epoch."""
    for module in _CLOCKS:
        monkeypatch.setattr(f"fakeredis.{module}.time", SimpleNamespace(time=clock))


class Clock:
    """A clock in seconds that only the test advances."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_shard(count: int = 3, first: int = 0) -> Shard:
    """Return a shard of ``count`` branches, each with its own chunk."""
    chunks = [Chunk(text=f"t{i}", document=f"d{i}", document_index=i) for i in range(count)]
    return Shard(first=first, count=count, first_chunk=first, chunks=chunks)


def begin_one(store: RedisStore, request: BeginRequest) -> BeginReply:
    """Begin a branch by itself."""
    return store.begin_all([request])[0]


def share_one(
    store: RedisStore, run_id: str, *, process: str, dies_after_s: float = 15, **asked: int
) -> PermitShare:
    """Report the permits of a process for one run. Raises UnknownRunError."""
    request = PermitRequest(run_id=run_id, **asked)
    [share] = store.share_permits([request], process=process, dies_after_s=dies_after_s)
    if share is None:
        raise UnknownRunError(run_id)
    if isinstance(share, Exception):
        raise share
    return share


def record_one(store: RedisStore, request: RecordRequest) -> RecordReply:
    """Record an outcome by itself."""
    return store.record_all([request])[0]


class Publisher:
    """Records the published messages."""

    def __init__(self) -> None:
        self.sent: Any = []
        self.packs: list[PartitionId] = []

    def expand(self, stage_id: StageId, shards: Iterable[int]) -> None:
        self.sent += [("expand", stage_id.stage, shard) for shard in shards]

    def shard_chord(self, shard_id: ShardId, positions: Iterable[int]) -> None:
        self.sent.append(("chord", shard_id.stage, shard_id.shard, list(positions)))

    def forget_chord(self, of: StageId | ShardId) -> None:
        self.sent.append(("forget", of.stage, *([of.shard] if isinstance(of, ShardId) else [])))

    def forget_run(self, run_id: str, shards: object) -> None:
        self.sent.append(("forgotten", shards))

    def branches(self, shard_id: ShardId, positions: Iterable[int]) -> None:
        self.mixed_branches(shard_id.branch(position) for position in positions)

    def mixed_branches(self, branches: Iterable[BranchId]) -> None:
        self.sent += [("branch", b.stage, b.shard, b.position) for b in branches]

    def aggregate(self, stage_id: StageId) -> None:
        self.sent.append(("aggregate", stage_id.stage))

    def collect(self, shard_id: ShardId) -> None:
        self.sent.append(("collect", shard_id.stage, shard_id.shard))

    def seal(self, stage_id: StageId, *, shards: int) -> None:
        self.sent.append(("seal", stage_id.stage, shards))

    def pack(self, partitions: Iterable[PartitionId], *, wait_s: float = 0.0) -> None:
        some = list(partitions)
        self.sent += [("pack", one.stage, one.reduce, one.partition) for one in some]
        self.packs += some

    @property
    def seals(self) -> list[Any]:
        return [sent for sent in self.sent if sent[0] == "seal"]


def run_branch(context: Any, branch_id: BranchId) -> None:
    """Process one delivery of a branch; each delivery has its own token."""
    branches.run_branch(context, branch_id, token=secrets.token_hex(4))


class MessageReader:
    """The tasks whose messages are in the broker; the test sets them."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def task_ids(self) -> dict[str, set[str]]:
        return {RUN: self.ids}

    def give_turns(self) -> int:
        return 0


class InlineExecutor(Executor):
    """Calls in the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the caller gets it
            future.set_exception(error)
        return future


class Steps:
    """The steps of branches, one at a time."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.alone = asyncio.Lock()
        self.progress = BranchTracker(step_s=60)

    async def begin(self, request: BeginRequest) -> BeginReply:
        return begin_one(self._store, request)

    async def record(self, request: RecordRequest) -> RecordReply:
        return record_one(self._store, request)

    async def checkpoint(self, request: CheckpointRequest) -> BeginReply:
        return self._store.checkpoint_all([request])[0]

    async def gather(self, request: GatherRequest) -> GatherReply:
        return self._store.gather_all([request])[0]

    async def prepared(self, branch_id: BranchId) -> Prepared:
        return self._store.prepared([branch_id])[0]

    async def last_checkpoint(self, branch_id: BranchId) -> bytes | None:
        return self._store.checkpoints([branch_id])[0]


class Calls:
    """The calls in flight: each ends early if the test says why."""

    stop: StopReason | None = None
    is_stopping = False
    wait = staticmethod(asyncio.sleep)
    wait_for = staticmethod(asyncio.shield)

    def require_room(self) -> None:
        if self.is_stopping:
            raise CallStoppedError(StopReason.HANDED_BACK)

    async def until(self, awaited: Awaitable[_T]) -> _T:
        return await awaited

    async def call(
        self, run_id: str, coroutine: Coroutine[Any, Any, _T], *, has_deadline: bool
    ) -> _T:
        if self.stop is not None:
            coroutine.close()
            raise CallStoppedError(self.stop)
        return await coroutine


class FakeContext(WorkerContext):
    """A worker's context on a fake server, with a fake model and without a loop of its own.

    Args:
        store: Instead of one on a new fake server, with the run.
        publisher: Instead of a plain one.
        fields: Of the run's spec.
    """

    # Unlike the parts of a real context, those of a test may be fakes, and may be replaced.
    models: Any
    branches: Any
    budgets: Any
    call_plans: Any
    admission: Any
    hand_back: Any
    runs: Any
    reports: Any
    settings: Any
    __setattr__ = object.__setattr__
    kept_learnt = 0

    def keep_learnt(self) -> None:
        self.kept_learnt += 1

    def has_days(self, days: dict[str, BudgetLimits]) -> None:
        """Give the worker budgets of days."""
        self.budgets = Budgets(self.store, Calls(), days, process="me", dies_after_s=15)
        self.call_plans = CallPlans(self.settings, self.budgets)

    def __init__(
        self, store: RedisStore | None = None, publisher: Publisher | None = None, **fields: Any
    ) -> None:
        self.spec = make_spec(**{"model": "fake", "prompt": "{input}", **fields})
        self.store = store or fake_store()
        if store is None:
            self.store.create_run(
                RUN,
                spec=self.spec.model_dump_json(),
                created_at=1.0,
                budget=run_limits(self.spec),
            )
        self.publisher: Any = publisher or Publisher()
        self.messages: Any = MessageReader()
        self.answer: Callable[[LLMRequest], Any] = lambda request: f"answer to {request.prompt}"
        self.llm = FakeLLM(script=self._answer)
        connections = Connections(
            store=self.store,
            fail_fast_store=self.store,
            answers=self.store,
            publisher=self.publisher,
            messages=self.messages,
            backend=None,
            broker=fake_redis(),
        )
        settings = load_settings(max_deliveries=2)
        ask = partial(self.store.share_permits, process="me", dies_after_s=15)
        parts: dict[str, Any] = {
            "loop": SimpleNamespace(wait_for=asyncio.run),
            "models": SimpleNamespace(
                made={"fake": self.llm},
                in_flight=(in_flight := Calls()),
                limiter=Limiter(self.store),
                broken=BrokenModels(self.store),
                late=LateRuns(self.store, wait_s=settings.batch_wait_s),
                common_failures=CommonFailures(self.store),
            ),
            "branches": Steps(self.store),
            "budgets": Budgets(self.store, in_flight, {}, process="me", dies_after_s=15),
            "hand_back": SimpleNamespace(has_begun=False),
        }
        parts["call_plans"] = CallPlans(settings, parts["budgets"])
        super().__init__(
            settings=settings,
            holder="me",
            connections=connections,
            runs=RunCaches(self.store, InlineExecutor()),
            passages=Passages(self.store, settings),
            admission=Admission(ask, sure_s=10),
            leads=Leads(self.store, InlineExecutor()),
            answers=Answers(
                self.store,
                settings,
                InlineExecutor(),
                linger_s=lambda: 0.0,
                wait_for=Calls.wait_for,
            ),
            version_gate=VersionGate(self.store, "me"),
            storage=StorageWatch(self.store, settings),
            reports=Reports(self.store, Telemetry()),
            **parts,
        )

    def report_to(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.reports = Reports(self.store, telemetry)

    def _answer(self, request: LLMRequest) -> Any:
        return self.answer(request)

    def write(
        self,
        texts: Iterable[str],
        *,
        seal: bool = True,
        columns: Sequence[dict[str, Any]] = (),
        **options: Any,
    ) -> None:
        chunks = [Chunk(text=t, document=f"d{i}", document_index=i) for i, t in enumerate(texts)]
        for number, own in enumerate(columns):
            chunks[number] = structs.replace(chunks[number], columns=own)
        per_chunk = self.spec.branches_per_chunk
        for number, shard in enumerate(pack(chunks, branches_per_chunk=per_chunk, **options)):
            self.store.put_shard(ShardId(RUN, 0, number), shard)
        if seal:
            self.store.seal_stage(StageId(RUN, 0))

    def process(self, stage: int = 0) -> None:
        """Process a stage to its end, as workers do."""
        stage_id = StageId(RUN, stage)
        retry = self.store.run(RUN).retry if stage == 0 else frozenset()
        if retry:
            self.store.open_shards(stage_id, window=1_000)
        for number in itertools.count():
            if number >= self.store.stage(stage_id).shards:
                break
            shard_id = stage_id.shard(number)
            if retry:
                reset_retried_shard(self.store, shard_id, retry)
            for position in range(self.store.shard(shard_id).count):
                with suppress(BranchFailed):
                    run_branch(self, shard_id.branch(position))
            collect(self, [], shard_id)
            self.pack()
        again = ("aggregate", 0)
        if stage and again in self.publisher.sent:
            # Calls that follow each other have ended.
            self.publisher.sent.remove(again)
            aggregate(self, StageId(RUN, 0))
            if self.store.run(RUN).has_ended:
                return
        aggregate(self, stage_id)
        if self.pack():
            # The last partition has published it again.
            aggregate(self, stage_id)

    def pack(self) -> bool:
        """Pack the partitions whose messages were published; return whether there were any."""
        packs: list[PartitionId] = getattr(self.publisher, "packs", [])
        has_any = bool(packs)
        while packs:
            pack_partition(self, packs.pop(0))
        return has_any

    @property
    def result(self) -> StoredResult:
        values = stored_values(self.store, RUN)
        assert values is not None
        aggregates = {
            group: structs.replace(one, value=values.value(one), held=None)
            for group, one in values.stored.aggregates.items()
        }
        return structs.replace(values.stored, aggregates=aggregates)
