"""What the tasks of one worker process share: its connections, and parts of one purpose each."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fanout.broker.app import PATIENT_S, connect_broker, make_store
from fanout.broker.inspection import MessageReader
from fanout.broker.publisher import Publisher
from fanout.client.embedded.answers import answers_settings
from fanout.system.resources import share_free_memory
from fanout.system.threads import ReadyThreads
from workers.context.admission import Admission
from workers.context.answers import Answers
from workers.context.branch_steps import BranchSteps
from workers.context.budgets import Budgets
from workers.context.call_plans import CallPlans
from workers.context.event_loop import LoopThread
from workers.context.fleet_checks import StorageWatch, VersionGate
from workers.context.inflight import HandBack
from workers.context.leads import Leads
from workers.context.models import Models
from workers.context.passages import Passages
from workers.context.progress import ALIVE, SURE
from workers.context.run_caches import RunCaches
from workers.telemetry.reports import Reports, make_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from redis import Redis

    from fanout.core.settings import Settings
    from fanout.stores import RedisStore
    from workers.context.app import WorkerApp

__all__ = ["Connections", "WorkerContext", "make_context"]

# Threads that load what branches need.
_LOADERS = 4
# Threads that ask which branches fill prompt caches.
_ASKERS = 1
# A step at the server takes moments. If it takes this many visibility timeouts while the server
# answers, it will not end.
_STEP_LEASES = 2
# Seconds that an ending process waits for the server to take its permits back.
_GIVE_BACK_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Connections:
    """One per worker process; safe to share between threads.

    Attributes:
        store: The store for branches and stages: it waits for an unreachable server.
        fail_fast_store: The store for beats and watchers: it fails if the server is unreachable.
        answers: The store of kept answers, which fails at once, too.
        publisher: Sends tasks to the broker.
        backend: Celery's result backend.
        broker: The client that acknowledges messages of ended branches: it waits for the server.
        messages: Reads which messages the broker has.
    """

    store: RedisStore
    fail_fast_store: RedisStore
    answers: RedisStore
    publisher: Publisher
    backend: Any
    broker: Redis
    messages: MessageReader

    def close(self) -> None:
        """Close the connections."""
        self.store.close()
        self.fail_fast_store.close()
        self.answers.close()
        self.publisher.close()
        self.broker.close()
        self.messages.close()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WorkerContext:
    """One per worker process. Branches are coroutines on its loop.

    Attributes:
        settings: The worker's settings.
        holder: The name in which branches are claimed. A prefork child claims in the name of its
            parent, which sees the child die.
        connections: To the server.
        loop: The event loop that branches run on.
        models: The models, their limits and their calls in flight.
        runs: The caches of runs.
        passages: The indexes of passages that runs retrieve from.
        branches: The steps that branches share, and their progress.
        budgets: Makes the calls fit into the budgets of runs and of days.
        call_plans: What the calls of runs need.
        version_gate: Refuses a worker whose wire version differs from its fleet's.
        storage: Pauses a worker that does not see its fleet's storage.
        admission: Decides which waiting branches may make their calls next.
        leads: Decides which calls fill the prompt caches of providers for others.
        answers: The kept answers, and the calls in flight that others wait for.
        hand_back: Gives branches back when the worker stops.
        reports: Reports what has ended to telemetry.
    """

    settings: Settings
    holder: str
    connections: Connections
    loop: LoopThread
    models: Models
    runs: RunCaches
    passages: Passages
    branches: BranchSteps
    budgets: Budgets
    call_plans: CallPlans
    version_gate: VersionGate
    storage: StorageWatch
    admission: Admission
    leads: Leads
    answers: Answers
    hand_back: HandBack
    reports: Reports
    _closers: list[Callable[[], None]] = field(default_factory=list)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the context is closed."""
        self._closers.append(callback)

    def wind_up(self) -> None:
        """Send what is pending, and give back permits and budgets: the process is about to end."""
        self.reports.close()
        self._wait_for(self.admission.aclose())
        self._wait_for(self.budgets.aclose())
        self.keep_learnt()

    def keep_learnt(self) -> None:
        """Let the fleet have now what the calls of this process have shown of tokens, times and hits."""
        self._wait_for(self.models.limiter.ratios.flush())
        self._wait_for(self.answers.tell_counts())

    def _wait_for(self, ending: Coroutine[Any, Any, None]) -> None:
        """Wait for something that may be left undone if the server does not answer."""
        pending = asyncio.run_coroutine_threadsafe(ending, self.loop.event_loop)
        with suppress(TimeoutError):
            pending.result(_GIVE_BACK_S)

    def close(self) -> None:
        """Close the models, the loop, the threads and the connections."""
        self.wind_up()
        for closer in self._closers:
            closer()
        self.loop.wait_for(self.answers.aclose())
        self.loop.wait_for(self.models.aclose())
        self.loop.close()
        self.branches.close()
        self.leads.end()
        self.passages.close()
        self.runs.close()
        self.connections.close()


def _connect(app: WorkerApp, settings: Settings) -> Connections:
    """Return the connections of the calling process."""
    return Connections(
        # An outcome in hand was paid for, so its branch waits for the server without a limit. It waits
        # less for the storage: another worker may reach it, and has the branch by then.
        store=make_store(settings, is_patient=True, storage_away_s=settings.visibility_timeout_s),
        fail_fast_store=make_store(settings),
        answers=make_store(answers_settings(settings)),
        publisher=Publisher(app, patience_s=PATIENT_S),
        backend=app.backend,
        broker=connect_broker(settings, is_patient=True),
        messages=MessageReader(connect_broker(settings)),
    )


def make_context(app: WorkerApp, *, concurrency: int) -> WorkerContext:
    """Return the context of the calling process, which runs ``concurrency`` branches at a time."""
    settings = app.settings
    if app.owns_process:
        share_free_memory()
    connections = _connect(app, settings)
    watching = connections.fail_fast_store
    models = Models(connections, settings, concurrency=concurrency, quiets_clients=app.owns_process)
    loop = LoopThread()
    # A prefork child's permits are its own, not its parent's.
    process = f"{app.holder}:{os.getpid()}"
    dies_after_s = ALIVE * settings.visibility_timeout_s
    branches = BranchSteps(
        connections,
        loop,
        models.in_flight,
        step_s=_STEP_LEASES * settings.visibility_timeout_s,
    )
    budgets = Budgets(
        watching,
        models.in_flight,
        settings.day_budgets,
        process=process,
        dies_after_s=dies_after_s,
    )
    return WorkerContext(
        settings=settings,
        holder=app.holder,
        connections=connections,
        loop=loop,
        models=models,
        runs=RunCaches(connections.store, ReadyThreads(_LOADERS, "fanout-load")),
        passages=Passages(connections.store, settings),
        branches=branches,
        budgets=budgets,
        call_plans=CallPlans(settings, budgets),
        version_gate=VersionGate(watching, app.holder),
        storage=StorageWatch(watching, settings),
        admission=Admission(
            partial(watching.share_permits, process=process, dies_after_s=dies_after_s),
            sure_s=SURE * settings.visibility_timeout_s,
        ),
        leads=Leads(watching, ReadyThreads(_ASKERS, "fanout-lead")),
        answers=Answers(
            connections.answers,
            settings,
            branches.threads,
            linger_s=branches.linger_s,
            wait_for=models.in_flight.wait_for,
        ),
        hand_back=HandBack(models.in_flight, loop),
        reports=Reports(watching, make_telemetry(settings, watching.run)),
    )
