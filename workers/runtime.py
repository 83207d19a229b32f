"""What one worker process has: the store, the publisher, the models and the loop they run on."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from fanout.broker import connect_broker, make_store
from fanout.chords import Publisher
from fanout.errors import StoredDataError
from fanout.llm import make_llm
from fanout.messages import Messages
from fanout.prompts import Template
from fanout.spec import RunSpec
from workers.inflight import InFlight
from workers.limiter import Limiter
from workers.log_guard import quiet_clients
from workers.reports import Reports
from workers.telemetry import make_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from celery import Celery

    from fanout.llm import LLM
    from fanout.runs import RunStatus, Shard
    from fanout.settings import Settings
    from fanout.stores import Store

__all__ = ["Runtime"]

_T = TypeVar("_T")
_CACHED_SHARDS = 32
_CACHED_SPECS = 64


class Runtime:
    """One per worker process; made on first use, so that prefork children get their own."""

    def __init__(self, app: Celery, settings: Settings, *, concurrency: int) -> None:
        self.settings = settings
        # A prefork child begins branches in the name of its parent, which sees it die.
        self.holder: str = app.fanout_holder
        # An outcome in hand was paid for: it waits for the server as long as that takes.
        self.store: Store = make_store(settings, is_patient=True)
        # Branches that may be what killed their worker are processed one at a time.
        self.alone = threading.Lock()
        self._stopping = threading.Event()
        self._closers: list[Callable[[], None]] = []
        self.publisher = Publisher(app)
        self.messages = Messages(connect_broker(settings))
        self._concurrency = concurrency
        self._quiets_clients: bool = app.fanout_owns_process
        self._shards: OrderedDict[tuple[str, int, int], Shard] = OrderedDict()
        self._shards_lock = threading.Lock()
        # For what must not wait: whoever watches or beats.
        self.watched: Store = make_store(settings)
        self.reports = Reports(self.watched, make_telemetry(settings, self.watched.run))
        self._in_flight = InFlight(self.watched)
        self.limiter = Limiter(self.watched)
        self._models: dict[str, LLM] = {}
        self._models_lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="fanout-llm", daemon=True)
        self._thread.start()
        # Caches per runtime: two servers may know runs of the same id.
        self.spec = lru_cache(maxsize=_CACHED_SPECS)(self._load_spec)
        self.indices = lru_cache(maxsize=_CACHED_SHARDS * 8)(self.store.indices)
        self.template = lru_cache(maxsize=_CACHED_SPECS * 8)(self._load_template)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def call_for(
        self, run_id: str, coroutine: Coroutine[Any, Any, _T], *, has_deadline: bool
    ) -> _T:
        """Make a call of a run on the loop. Raises CallStoppedError where it is ended early."""
        return self.call(self._in_flight.call(run_id, coroutine, has_deadline=has_deadline))

    @property
    def is_handing_back(self) -> bool:
        """Whether this process stops, and no longer waits for what is in flight."""
        return self._stopping.is_set()

    def hand_back(self) -> None:
        """End the calls in flight, so that their branches go back to the queue."""
        self._stopping.set()
        self._loop.call_soon_threadsafe(self._in_flight.hand_back)

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop, and wait for it in this thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def model(self, name: str) -> LLM:
        """Return the model, one per process. Raises ModelError."""
        with self._models_lock:
            llm = self._models.get(name)
            if llm is None:
                llm = self.call(self._make_model(name))
                if self._quiets_clients:
                    # Their packages may have been imported only now.
                    quiet_clients()
                self._models[name] = llm
            return llm

    async def _make_model(self, name: str) -> LLM:
        # On the loop, because that is where its connections will live.
        return make_llm(name, settings=self.settings, concurrency=self._concurrency)

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

    def _load_template(self, run_id: str, stage: int, aspect: str | None) -> Template:
        spec = self.spec(run_id)
        if stage:
            return Template.parse(spec.aggregate_prompt or "{input}", field="aggregate_prompt")
        return Template.parse(spec.prompts[aspect])

    def shard(self, run_id: str, stage: int, number: int) -> Shard:
        """Return the input of a shard; a few are kept, as its branches arrive together."""
        key = (run_id, stage, number)
        # One lock for all: the branches of one shard start at once, and one of them should fetch.
        with self._shards_lock:
            shard = self._shards.get(key)
            if shard is None:
                shard = self.store.shard(run_id, stage, number)
                self._shards[key] = shard
                if len(self._shards) > _CACHED_SHARDS:
                    self._shards.popitem(last=False)
            else:
                self._shards.move_to_end(key)
            return shard

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
        with self._models_lock:
            for llm in self._models.values():
                self.call(llm.aclose())
            self._models.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.store.close()
        self.watched.close()
        self.messages.close()
