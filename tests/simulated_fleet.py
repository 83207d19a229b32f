"""A fleet in one process, in which something happens at a chosen step of what leads to an aggregate.

A step is a command to the server, a message that is published, a member of a chord that is counted, or a
message that is acknowledged; those within branches do not count. At a step the process may die, hang until
the run is over, or send its command twice; or another process cancels or deletes the run. Messages come
again as they do from a broker, chords are counted as Celery counts them, and the reaper sweeps when nothing
is left to do.

The server is a real one. Seconds pass only while all wait, and only for what the fleet waits for: messages
that are for later, the reaper, and the leases of partitions.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

import workers.reduce.clustering
import workers.reduce.frontier
import workers.reduce.groups
import workers.reduce.refining
from fanout.core.errors import UnknownRunError
from fanout.core.ids import BranchId, PartitionId, ShardId, StageId
from fanout.core.records import Chunk, RunStatus
from fanout.policy.packing import pack
from fanout.runs.branch_groups import known_groups
from fanout.runs.enqueue import close_input, delete, open_stage
from fanout.runs.reaper import Reaper
from fanout.runs.result_values import stored_values
from fanout.runs.retried_runs import retry_failed
from fanout.runs.stored_aggregates import stored_aggregate
from fanout.stores import RedisStore
from fanout.stores.functions import FunctionsClient
from tests.fakes import RUN, Clock, FakeContext, run_branch
from workers.branch.delivery_ends import BranchGone
from workers.branch.execution import BranchFailed
from workers.reduce.group_packing import LEASE_S
from workers.reduce.groups import pack_partition
from workers.reduce.items import TooEarlyError
from workers.reduce.stages import aggregate, collect, expand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pytest

__all__ = ["EVENTS", "Fleet", "HungError", "small_parts"]

# What happens at a step.
EVENTS = ("kill", "hang", "twice", "cancel", "delete")
MAP = StageId(RUN, 0)
# As a fleet has it whose tests kill workers.
_STALL_S = 2.0
# Seconds without any step after which a run hangs for ever.
_HUNG_S = 300
_WAIT_S = 90.0


class KilledError(BaseException):
    """In place of a kill: what is to run at the end of a block has no effect."""


class HungError(Exception):
    """A run does not end."""


class _Message(NamedTuple):
    """A message of the broker: a task, and the chord that counts it."""

    task_id: str
    task: str
    of: Any
    chord: str | None = None
    callback: _Message | None = None
    wait_s: float = 0.0


class _Process:
    """What takes the steps: it may be dead."""

    def __init__(self, *, counts: bool) -> None:
        self.counts = counts
        self.is_dead = False


class _Steps(threading.local):
    """Counts the steps of the processes, each of which has a thread while it processes a message."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.process = _Process(counts=False)

    def take(self, what: str) -> None:
        """Take a step, or die in place of it."""
        if self.process.is_dead:
            raise KilledError
        if self.process.counts:
            self._fleet.at_step(what)

    @contextmanager
    def of(self, process: _Process) -> Iterator[None]:
        """Have all steps be those of a process."""
        before, self.process = self.process, process
        try:
            yield
        finally:
            self.process = before

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count no steps."""
        before, self.process.counts = self.process.counts, False
        try:
            yield
        finally:
            self.process.counts = before


class _Client(FunctionsClient):
    """A client whose commands are steps."""

    def __init__(self, pool: redis.ConnectionPool, fleet: Fleet) -> None:
        super().__init__(connection_pool=pool)
        self.steps, self.fleet = fleet.steps, fleet

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.steps.take(str(args[0]))
        reply = super().execute_command(*args, **options)
        if self.fleet.is_lost():
            # The reply did not arrive, and the client has asked again.
            reply = super().execute_command(*args, **options)
        return reply

    def pipeline(self, *args: Any, **options: Any) -> Any:
        pipe = super().pipeline(*args, **options)
        execute = pipe.execute

        def stepped(*given: Any, **named: Any) -> Any:
            self.steps.take("pipeline")
            return execute(*given, **named)

        pipe.execute = stepped  # type: ignore[method-assign]
        return pipe


class _Publisher:
    """Publishes to the fleet's queue, and sets the sizes of chords."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def _send(self, messages: Iterable[_Message]) -> None:
        for message in messages:
            self._fleet.steps.take(f"publish {message.task}")
            self._fleet.queue.append(message)

    def expand(self, stage_id: StageId, shards: Iterable[int]) -> None:
        some = map(stage_id.shard, shards)
        self._send(_Message(one.expand_task_id, "expand", one) for one in some)

    def shard_chord(self, shard_id: ShardId, positions: Any) -> None:
        self._set_size(shard_id.group_id, len(positions))
        self.branches(shard_id, positions)

    def branches(self, shard_id: ShardId, positions: Iterable[int]) -> None:
        done, group = _collect(shard_id), shard_id.group_id
        some = map(shard_id.branch, sorted(positions))
        self._send(_Message(one.task_id, "branch", one, group, done) for one in some)

    def mixed_branches(self, branches: Iterable[BranchId]) -> None:
        for one in branches:
            self.branches(one.shard_id, [one.position])

    def collect(self, shard_id: ShardId) -> None:
        self._send([_collect(shard_id)])

    def aggregate(self, stage_id: StageId) -> None:
        self._send([_aggregate(stage_id)])

    def pack(self, partitions: Iterable[PartitionId], *, wait_s: float = 0.0) -> None:
        some = list(partitions)
        self._send(_Message(one.pack_task_id, "pack", one, wait_s=wait_s) for one in some)

    def seal(self, stage_id: StageId, *, shards: int) -> None:
        self._set_size(stage_id.group_id, shards + 1)
        done, group = _aggregate(stage_id), stage_id.group_id
        self._send([_Message(stage_id.seal_task_id, "seal", stage_id, group, done)])

    def _set_size(self, group: str, size: int) -> None:
        self._fleet.steps.take("size of a chord")
        self._fleet.chords.set_size(group, size)

    def forget_chord(self, of: StageId | ShardId) -> None:
        self._fleet.steps.take("forget a chord")
        self._fleet.chords.forget(of.group_id)

    def forget_run(self, run_id: str, shards: object) -> None:
        self._fleet.steps.take(f"forget {run_id} of {shards} shards")
        self._fleet.chords.forget_all()
        self._fleet.queue.clear()


def _collect(shard_id: ShardId) -> _Message:
    stage_id = shard_id.stage_id
    done, group = _aggregate(stage_id), stage_id.group_id
    return _Message(shard_id.collect_task_id, "collect", shard_id, group, done)


def _aggregate(stage_id: StageId) -> _Message:
    return _Message(stage_id.aggregate_task_id, "aggregate", stage_id)


class _Chords:
    """Counts the members of chords as Celery's backend does: each once, also if it returns again."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._returned: dict[str, set[str]] = {}
        self._completed: set[str] = set()

    def set_size(self, group: str, size: int) -> None:
        self._sizes[group] = size
        self._completed.discard(group)

    def returned(self, group: str, task_id: str) -> bool:
        """Count a member; return whether the callback is due."""
        if group in self._completed:
            return False
        members = self._returned.setdefault(group, set())
        members.add(task_id)
        return len(members) == self._sizes.get(group)

    def completed(self, group: str) -> None:
        self._completed.add(group)
        self._returned.pop(group, None)
        self._sizes.pop(group, None)

    def forget(self, group: str) -> None:
        self._completed.discard(group)
        self._returned.pop(group, None)
        self._sizes.pop(group, None)

    def forget_all(self) -> None:
        self._sizes.clear()
        self._returned.clear()
        self._completed.clear()


class _OwnLock:
    """A lock that each process has for itself."""

    def __init__(self) -> None:
        self._local = threading.local()

    def take(self) -> bool:
        if getattr(self._local, "is_taken", False):
            return False
        self._local.is_taken = True
        return True

    def give_back(self) -> None:
        self._local.is_taken = False


@contextmanager
def small_parts(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have trees begin after few answers, and partitions have few groups, so that small runs suffice."""
    with patch.context() as within:
        within.setattr(workers.reduce.frontier, "SHOWN_PARTS", 6)
        within.setattr(workers.reduce.clustering, "SHOWN_PARTS", 6)
        within.setattr(workers.reduce.refining, "SHOWN_PARTS", 6)
        within.setattr(workers.reduce.groups, "MOST_BRANCHES", 12)
        within.setattr(workers.reduce.groups, "_PACKING", _OwnLock())
        yield


class Fleet:
    """A fleet with one run.

    Args:
        pool: Connections to the server, whose database is emptied.
        answer: Answers calls.
        texts: What the branches are about.
        event: What happens; see EVENTS.
        at: At which step; None for none.
        shard_branches: Branches of a shard.
        columns: The columns of each chunk, by its number.
        spec: The fields of the job.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool,
        *,
        answer: Callable[[Any], Any],
        texts: list[str],
        event: str = "kill",
        at: int | None = None,
        shard_branches: int = 6,
        columns: Callable[[int], dict[str, str]] = lambda _: {},
        spec: dict[str, Any],
    ) -> None:
        self._clock = Clock()
        self._leases_end = LEASE_S
        self._event, self._at = event, at
        self.step = 0
        self.what = ""
        self.steps = _Steps(self)
        self.queue: deque[_Message] = deque()
        self.chords = _Chords()
        self.asked: Counter[str] = Counter()
        self.heals = 0
        self._is_lost = False
        self._answer = answer
        self._fields = spec
        self._server = redis.Redis(connection_pool=pool)
        self._server.flushdb()
        self._store = RedisStore(_Client(pool, self))
        self._publisher: Any = _Publisher(self)
        self._hung: threading.Event | None = None
        self._goes_on = threading.Event()
        self._hung_thread: threading.Thread | None = None
        self._reaper = self._new_reaper()
        self._context = self._new_context()
        run_spec = self._context.spec
        self._store.create_run(RUN, spec=run_spec.model_dump_json(), created_at=1.0)
        chunks = (
            Chunk(text=text, document=f"d{at}", document_index=at, columns=columns(at))
            for at, text in enumerate(texts)
        )
        shards = pack(
            chunks,
            branches_per_chunk=run_spec.branches_per_chunk,
            max_branches=shard_branches,
        )
        groups = partial(known_groups, RUN, run_spec)
        open_stage(self._store, self._publisher, MAP, shards, groups)  # type: ignore[arg-type]

    def _new_context(self) -> Any:
        context: Any = FakeContext(publisher=self._publisher, store=self._store, **self._fields)
        context.messages = SimpleNamespace(task_ids=self.task_ids, give_turns=lambda: 0)
        context.connections = replace(context.connections, messages=context.messages)

        def answered(request: Any) -> Any:
            self.asked[request.prompt] += 1
            return self._answer(request)

        context.answer = answered
        return context

    def _new_reaper(self) -> Reaper:
        messages = SimpleNamespace(task_ids=self.task_ids, give_turns=lambda: 0)
        return Reaper(
            self._store,
            self._publisher,
            messages,  # type: ignore[arg-type]
            stall_s=_STALL_S,
            clock=self._clock,
        )

    def task_ids(self) -> dict[str, set[str]]:
        """Return the tasks that have a message; none is a step."""
        return {RUN: {message.task_id for message in self.queue}}

    # What happens at a step.

    def at_step(self, what: str) -> None:
        """Count a step, and let happen what is to happen at it."""
        self.step += 1
        if self.step != self._at:
            return
        self.what = what
        if self._event == "kill":
            self.steps.process.is_dead = True
            raise KilledError
        if self._event == "hang":
            self._hang()
        elif self._event == "twice":
            self._is_lost = True
        else:
            with self.steps.of(_Process(counts=False)):
                self._by_another()

    def is_lost(self) -> bool:
        """Return whether the reply to the last command is lost."""
        is_lost, self._is_lost = self._is_lost, False
        return is_lost

    def _by_another(self) -> None:
        with suppress(UnknownRunError):
            if self._event == "delete":
                delete(self._store, self._publisher, RUN)
                return
            self._store.halt(RUN, RunStatus.CANCELLED)
            if not self._store.run(RUN).has_ended:
                close_input(self._store, self._publisher, RUN)

    def _hang(self) -> None:
        if self._hung is None:
            # Of a client, whose steps are not those of a thread of its own.
            return
        self._hung.set()
        assert self._goes_on.wait(_WAIT_S)

    # How messages are processed.

    def drain(self) -> None:
        """Process all messages until the run has ended; raise HungError if it does not."""
        self._process_all()
        if self._hung_thread is not None:
            self._goes_on.set()
            self._hung_thread.join(_WAIT_S)
            assert not self._hung_thread.is_alive()
            self._hung_thread = None
            self._process_all()

    def _process_all(self) -> None:
        quiet_s = 0
        while True:
            if self.queue and not self._all_wait():
                quiet_s = 0
                self._deliver(self.queue.popleft())
            elif self._is_over() and not self.queue:
                return
            elif quiet_s >= _HUNG_S:
                raise HungError(self._state())
            else:
                quiet_s += 1
                self._pass_second()
                self.heals += self._reaper.sweep()

    def _all_wait(self) -> bool:
        """Whether all messages are for later; those that are not come first."""
        self.queue = deque(sorted(self.queue, key=lambda one: one.wait_s > 0))
        return self.queue[0].wait_s > 0

    def _pass_second(self) -> None:
        self._clock.now += 1
        if self._clock.now >= self._leases_end:
            self._leases_end += LEASE_S
            if leases := self._server.keys("*:leases"):
                self._server.delete(*leases)
        self.queue = deque(one._replace(wait_s=max(0.0, one.wait_s - 1)) for one in self.queue)

    def _is_over(self) -> bool:
        try:
            return self._store.run(RUN).has_ended and not self._store.active_runs()
        except UnknownRunError:
            return not self._store.active_runs()

    def _state(self) -> str:
        run = self._store.run(RUN)
        stages = {n: self._store.progress(StageId(RUN, n)) for n in range(run.stage + 2)}
        return f"at step {self._at} ({self.what}): {run} {stages} {self.queue}"

    def _deliver(self, message: _Message) -> None:
        if self._event != "hang" or self._at is None or self.step >= self._at:
            self._process(message)
            return
        self._hung = threading.Event()
        ended = threading.Event()
        errors: list[BaseException] = []

        def process() -> None:
            try:
                self._process(message)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=process, daemon=True)
        thread.start()
        while not ended.wait(0.0005):
            if self._hung.is_set():
                # Its lease ends, and another process gets its message.
                self._hung_thread = thread
                self.queue.append(message)
                self._context = self._new_context()
                return
        if errors:
            raise errors[0]

    def _process(self, message: _Message) -> None:
        process = _Process(counts=message.task != "branch")
        try:
            with self.steps.of(process):
                if self._performed(message):
                    self._return(message)
                self.steps.take("acknowledge")
        except KilledError:
            # Its lease ends; what the process had in memory is gone.
            self.queue.append(message)
            self._context = self._new_context()

    def _performed(self, message: _Message) -> bool:
        """Do a task; return whether its chord counts it."""
        context, of = self._context, message.of
        try:
            if message.task == "branch":
                with suppress(BranchFailed):
                    run_branch(context, of)
            elif message.task == "seal":
                self._store.run(of.run_id)
            else:
                _TASKS[message.task](context, of)
        except (TooEarlyError, UnknownRunError, BranchGone):
            return False
        return message.chord is not None

    def _return(self, message: _Message) -> None:
        assert message.chord is not None
        assert message.callback is not None
        self.steps.take("count a member")
        if not self._store_has_run():
            return
        if self.chords.returned(message.chord, message.task_id):
            self.steps.take("publish a callback")
            self.queue.append(message.callback)
            self.steps.take("complete a chord")
            self.chords.completed(message.chord)

    def _store_has_run(self) -> bool:
        with self.steps.uncounted(), suppress(UnknownRunError):
            self._store.run(RUN)
            return True
        return False

    # What clients do, and see.

    def retry(self) -> None:
        """Retry the failed branches, as a client that may die, too: then no message comes again.

        If it dies before it has reopened the run, its user gives the command again.
        """
        # That of the last message.
        self._hung = None
        with suppress(UnknownRunError):
            try:
                with self.steps.of(_Process(counts=True)):
                    retry_failed(self._store, self._publisher, RUN, None)
            except KilledError:
                if self._store.run(RUN).has_ended:
                    retry_failed(self._store, self._publisher, RUN, None)

    @property
    def status(self) -> RunStatus | None:
        """The status of the run; None if it is gone."""
        try:
            return self._store.run(RUN).status
        except UnknownRunError:
            return None

    def keys(self) -> list[str]:
        """Return the keys of the run."""
        return sorted(key.decode() for key in self._server.keys(f"*{RUN}*"))

    def account(self) -> dict[str, Any]:
        """Return what the run has come to: its aggregates with all that is said about them, and its calls."""
        run = self._store.run(RUN)
        values = stored_values(self._store, RUN)
        base = run.base_stage
        numbers = [0, *range(base + 1, run.stage + 1)]
        stages = [self._store.stage(StageId(RUN, number)) for number in numbers]
        found: dict[str, Any] = {
            "status": run.status,
            "error": run.error,
            "stages": [(one.total, one.done, one.succeeded, dict(one.errors)) for one in stages],
            "asked": self.asked,
        }
        if values is not None:
            made = stored_aggregate(values, self._context.spec)
            found["value"] = made.value()
            found["coverage"] = made.coverage()
            found["sources"] = made.sources()
            found["notes"] = made.notes()
            found["errors"] = values.stored.all_errors
        return found


_TASKS: dict[str, Callable[[Any, Any], object]] = {
    "expand": expand,
    "collect": lambda context, shard_id: collect(context, [], shard_id),
    "aggregate": aggregate,
    "pack": pack_partition,
}
