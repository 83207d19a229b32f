"""What one worker process has: the store, the publisher, the models and the loop they run on."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from fanout.broker.app import PATIENT_S, connect_broker, make_store
from fanout.broker.inspection import Messages
from fanout.broker.publisher import Publisher
from fanout.core.errors import StoredDataError
from fanout.core.spec import RunSpec
from fanout.inputs.prompts import Template
from fanout.llm import make_llm
from fanout.system.threads import ReadyThreads
from workers.context.batches import Batches, Kept
from workers.context.claim_releases import Releases
from workers.context.common_failures import Alike
from workers.context.event_loop import new_event_loop
from workers.context.inflight import InFlight
from workers.context.limiter import Limiter
from workers.context.progress import Progress
from workers.context.storage_watch import StorageWatch
from workers.context.version_gate import VersionGate
from workers.telemetry.base import make_telemetry
from workers.telemetry.log_filters import quiet_clients
from workers.telemetry.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fanout.core.ids import BranchId, StageId
    from fanout.core.records import RunStatus
    from fanout.llm import LLM
    from fanout.stores import BeginRequest, RedisStore
    from workers.context.app import WorkerApp
    from workers.context.progress import Standing

__all__ = ["WorkerContext"]

# Calls in flight above which those that have ended are written together, and how long they wait.
_MANY_IN_FLIGHT = 64
_LINGER_S = 0.01

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_CACHED_SHARDS = 32
_CACHED_SPECS = 64
# One for each kind of step that branches share: begin, record, feed, settle.
_THREADS = 4
# Load what branches need.
_LOADERS = 4
# Whatever else blocks, now and then.
_OTHERS = 8
# What a branch asks of the server takes moments; of one that stands still for so many visibility
# timeouts, while the server answers, nothing is to be expected.
_STEP_LEASES = 2


class WorkerContext:
    """One per worker process; made on first use, so that prefork children get their own.

    Branches are coroutines on its loop; what they need of the server is done in its threads.
    """

    def __init__(self, app: WorkerApp, *, concurrency: int) -> None:
        self.settings = settings = app.settings
        # A prefork child begins branches in the name of its parent, which sees it die.
        self.holder = app.holder
        # An outcome in hand was paid for: it waits for the server as long as that takes.
        # For the storage not so long: another worker may see it, and has the branch then.
        self.store: RedisStore = make_store(
            settings, is_patient=True, storage_away_s=settings.visibility_timeout_s
        )
        # Branches that may be what killed their worker are processed one at a time.
        self.alone = asyncio.Lock()
        self._stopping = threading.Event()
        self._closers: list[Callable[[], None]] = []
        self._before_hand_back: list[Callable[[], None]] = []
        self.publisher = Publisher(app, patience_s=PATIENT_S)
        self.backend: Any = app.backend
        # For what the broker is told of branches that have ended, however long it is away.
        self.broker = connect_broker(settings, is_patient=True)
        self.messages = Messages(connect_broker(settings))
        self._concurrency = concurrency
        self._quiets_clients = app.owns_process
        # For what must not wait: whoever watches or beats.
        self.watched: RedisStore = make_store(settings)
        self.version_gate = VersionGate(self.watched, self.holder)
        self.releases = Releases(self.watched.unbegin)
        self.storage = StorageWatch(self.watched, settings)
        self.reports = Reports(self.watched, make_telemetry(settings, self.watched.run))
        self._in_flight = InFlight(self.watched)
        self.alike = Alike(self.store)
        self.wait = self._in_flight.wait
        self.limiter = Limiter(self.watched, sleep=self.wait)
        # Those that are made; their connections live on the loop.
        self.models: dict[str, LLM] = {}
        self._making = asyncio.Lock()
        # Caches per runtime: two servers may know runs of the same id.
        self.template = lru_cache(maxsize=_CACHED_SPECS * 8)(self._load_template)
        self.threads = ReadyThreads(_THREADS, "fanout-store")
        self.begin = Batches(self.store.begin_all, self.threads, abandoned=self._take_back)
        self.record = Batches(self.store.record_all, self.threads, self.linger_s)
        self.feed = Batches(self._publish, self.threads)
        # Of their own: where inputs cannot be had, outcomes of other runs are still written.
        self._loaders = ReadyThreads(_LOADERS, "fanout-load")
        self.specs = Kept(self._load_spec, self._loaders, size=_CACHED_SPECS)
        self.indices = Kept(self.store.indices, self._loaders, size=_CACHED_SHARDS * 8)
        self.shards = Kept(self.store.shard, self._loaders, size=_CACHED_SHARDS)
        self.progress = Progress(step_s=_STEP_LEASES * settings.visibility_timeout_s)
        self.loop = new_event_loop()
        # What the loop would start by itself when it first needs it.
        self._others = ReadyThreads(_OTHERS, "fanout-other")
        self.loop.set_default_executor(self._others)
        self._thread = threading.Thread(target=self._run_loop, name="fanout-loop", daemon=True)
        self._thread.start()

    def linger_s(self) -> float:
        """Return how long a branch that has ended waits for others, to be written with them.

        Where many are in flight the next call does not wait for it, and there soon are others.
        """
        return _LINGER_S if self._in_flight.count >= _MANY_IN_FLIGHT else 0.0

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        # uvloop has threads of its own for names, and ends the process where it gets none later.
        self.loop.create_task(_look_up_a_name())
        self.loop.run_forever()

    def let_go(self, standing: Standing) -> None:
        """Leave a branch that stands still to others: they may begin it. Raises BrokerError."""
        if standing.token:
            self.watched.unbegin(standing.branch_id, token=standing.token, counts=True)
        if standing.task is not None:
            self.loop.call_soon_threadsafe(standing.task.cancel)

    def _take_back(self, start: BeginRequest) -> None:
        """Take a begin back whose branch was left to others while it was under way.

        It may have been done after all, behind whatever was to undo it: nobody else could begin the
        branch for as long as this process lives.
        """
        with suppress(RuntimeError):  # the threads have ended, and so does this holder
            self.threads.submit(self.releases.now, start.branch_id, start.token, counts=False)

    def _publish(self, following: list[tuple[BranchId, int]]) -> list[None]:
        """Publish the branches, with their feed, that take the place of some that have ended."""
        self.publisher.mixed_branches(following)
        return [None] * len(following)

    async def call_for(
        self, run_id: str, coroutine: Coroutine[Any, Any, _T], *, has_deadline: bool
    ) -> _T:
        """Make a call of a run. Raises CallStoppedError where it is ended early."""
        return await self._in_flight.call(run_id, coroutine, has_deadline=has_deadline)

    @property
    def is_handing_back(self) -> bool:
        """Whether this process stops, and no longer waits for what is in flight."""
        return self._stopping.is_set()

    def hand_back_waiting(self) -> None:
        """Have branches that only wait, for a model that fails for instance, go back at once."""
        self.loop.call_soon_threadsafe(self._in_flight.hand_back_waiting)

    def before_hand_back(self, callback: Callable[[], None]) -> None:
        """Have something done before this process hands back what is in flight."""
        self._before_hand_back.append(callback)

    def hand_back(self) -> None:
        """End the calls in flight, so that their branches go back to the queue."""
        for callback in self._before_hand_back:
            callback()
        self._stopping.set()
        self.loop.call_soon_threadsafe(self._in_flight.hand_back)

    def wait_for(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop, and wait for it in this thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def model(self, name: str) -> LLM:
        """Return the model, one per process, which may have to be made.

        Raises:
            ModelError: It cannot be used.
        """
        llm = self.models.get(name)
        if llm is not None:
            return llm
        async with self._making:
            if name not in self.models:
                self.models[name] = make_llm(
                    name, settings=self.settings, concurrency=self._concurrency
                )
                if self._quiets_clients:
                    # Their packages may have been imported only now.
                    quiet_clients()
            return self.models[name]

    def _load_spec(self, run_id: str) -> RunSpec:
        try:
            return RunSpec.model_validate_json(self.store.spec(run_id))
        except ValidationError as error:
            # Without what it found there: that is prompts.
            fields = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
            raise StoredDataError(
                f"the worker does not understand this run's {fields or 'spec'}: it may be of "
                "another version of fanout than the client"
            ) from None

    def _load_template(self, stage_id: StageId, aspect: str | None) -> Template:
        spec = self.specs.get(stage_id.run_id)
        if stage_id.stage:
            return Template.parse(spec.aggregate_prompt or "{input}", field="aggregate_prompt")
        return Template.parse(spec.prompts[aspect])

    def end_run(self, run_id: str, status: RunStatus, *, error: str | None = None) -> None:
        """Give a run its final status, and report that where this is the first."""
        if self.store.end_run(run_id, status, ended_at=self.store.now(), error=error):
            self.reports.run_ended(run_id)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have something done when the runtime is closed."""
        self._closers.append(callback)

    def close(self) -> None:
        """Close the models' connections, the loop and the store."""
        self.reports.close()
        for closer in self._closers:
            closer()
        for llm in self.models.values():
            self.wait_for(llm.aclose())
        self.models.clear()
        self.wait_for(self._in_flight.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self.threads.shutdown(cancel_futures=True)
        self._loaders.shutdown(cancel_futures=True)
        self._others.shutdown(wait=False, cancel_futures=True)
        self.store.close()
        self.watched.close()
        self.broker.close()
        self.messages.close()


async def _look_up_a_name() -> None:
    with suppress(OSError):
        await asyncio.get_running_loop().getaddrinfo("localhost", None)
