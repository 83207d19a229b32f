"""Submitting runs, and following them: ``Client`` and ``Run``."""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.broker import Preflight, make_app, make_store
from fanout.chords import Publisher
from fanout.embedded import EmbeddedFleet, InProcessFleet
from fanout.enqueue import Enqueuer, checked_documents, retry_failed
from fanout.errors import BrokerError, ModelError, WaitTimeoutError
from fanout.results import Output, Result, Status, StoredResult
from fanout.runs import RunStatus, Usage, branch_ref
from fanout.settings import load_settings
from fanout.shards import shard_chunk
from fanout.spec import RunSpec, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self

    from fanout.runs import Document, ErrorKind, Outcome, Shard
    from fanout.settings import Settings
    from fanout.stores import Store

__all__ = ["Client", "Run"]

# Crockford's base 32: no letter that reads like a digit.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 8
_FIRST_POLL_S = 0.01
_LAST_POLL_S = 0.25
_PREFLIGHT_S = 600.0


class Client:
    """Submits runs to a fleet and follows them. Safe to share between threads.

    Args:
        broker_url: The Redis server of the fleet; ``FANOUT_BROKER_URL`` where it is None. Where
            neither is given, a fleet of one worker is embedded: it ends with the client.
        concurrency: Branches in flight of the embedded worker; of no effect otherwise.

    Raises:
        SettingsError: A ``FANOUT_*`` variable is wrong.
        BrokerError: No broker answers.
    """

    def __init__(self, broker_url: str | None = None, *, concurrency: int | None = None) -> None:
        self._settings = load_settings(broker_url=broker_url)
        self._concurrency = concurrency or self._settings.concurrency
        self._lock = threading.Lock()
        self._fleet: EmbeddedFleet | InProcessFleet | None = None
        self._wire: _Wire | None = None
        if self._settings.broker_url is not None:
            self._wire = _Wire(self._settings)

    @property
    def is_embedded(self) -> bool:
        """Whether the fleet is this client's own."""
        return self._settings.broker_url is None

    @property
    def broker_url(self) -> str | None:
        """The server, with its credentials; None while an embedded one is not started yet."""
        return self._fleet.broker_url if self._fleet is not None else self._settings.broker_url

    def _connected(self, model: str | None = None) -> _Wire:
        # Two threads that submit their first runs at once share one fleet.
        with self._lock:
            if self._wire is None:
                if model is None:
                    raise BrokerError("no run was submitted yet, and no broker is configured")
                self._fleet = self._start_fleet(model)
                settings = load_settings(broker_url=self._fleet.broker_url)
                self._wire = _Wire(settings)
            return self._wire

    def _start_fleet(self, model: str) -> EmbeddedFleet | InProcessFleet:
        if model.startswith("callable:"):
            return InProcessFleet.acquire(concurrency=self._concurrency)
        return EmbeddedFleet(concurrency=self._concurrency)

    def submit(
        self,
        spec: RunSpec | Mapping[str, Any],
        documents: Iterable[str | Mapping[str, object] | Document] | None = None,
        *,
        on_bad_document: Callable[[str, str], None] | None = None,
        on_created: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Split the input, publish it, and return the run.

        Reading, splitting and publishing go on while workers process the first branches.

        Args:
            spec: What to do.
            documents: The input, where it is not in files; read lazily.
            on_bad_document: Called with name and reason of each document that cannot be used.
            on_created: Called with the run's id as soon as there is a run.
            should_stop: Asked before each shard; True ends the reading and cancels the run.

        Raises:
            SpecError: A field is wrong, or a prompt has an unknown name.
            InputError: There is no usable document at all.
            ModelError: The model cannot be used; found out before anything is enqueued.
            BrokerError: The broker cannot be reached.
        """
        spec = spec if isinstance(spec, RunSpec) else make_spec(**spec)
        source = checked_documents(spec, documents)
        wire = self._connected(spec.model)
        wire.preflight(spec.model, check=self._check_fleet, wait=self.is_embedded)
        run_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
        wire.store.create_run(run_id, spec=spec.model_dump_json(), created_at=time.time())
        if on_created is not None:
            on_created(run_id)
        enqueuer = Enqueuer(wire.store, wire.publisher, on_bad_document, should_stop)
        enqueuer.enqueue(run_id, spec, source, max_workers=self._cap(spec))
        return self.run(run_id)

    def _cap(self, spec: RunSpec) -> int | None:
        """Return ``max_workers``, or None where the embedded worker cannot exceed it anyway."""
        is_alone = isinstance(self._fleet, EmbeddedFleet)
        if spec.max_workers is not None and is_alone and self._concurrency <= spec.max_workers:
            return None
        return spec.max_workers

    def run(self, run_id: str) -> Run:
        """Return a run by its id. Raises UnknownRunError."""
        wire = self._connected()
        wire.store.run(run_id)
        return Run(run_id, wire.store, wire.publisher, self._check_fleet)

    def runs(self) -> Iterator[Run]:
        """Yield the runs that have not expired, the newest first."""
        wire = self._connected()
        for record in wire.store.runs():
            yield Run(record.run_id, wire.store, wire.publisher, self._check_fleet)

    def workers(self) -> dict[str, int]:
        """Return the concurrency of each live worker, by name."""
        return self._connected().store.workers()

    def _check_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.check()

    def close(self) -> None:
        """Release connections, and stop an embedded fleet. Safe to call twice."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Wire:
    """The connections of a client: the store and the queues of one broker."""

    def __init__(self, settings: Settings) -> None:
        self.store: Store = make_store(settings)
        self.store.ping()
        self._app = make_app(settings)
        self.publisher = Publisher(self._app)

    def preflight(self, model: str, *, check: Callable[[], None], wait: bool) -> None:
        """Have a worker say whether the model can be used, as it is there that it is called.

        Without a live worker there is nobody to ask; the run then waits for one, unless ``wait``
        says that one is about to come.
        """
        if not wait and not self.store.workers():
            return
        note = f"preflight-{secrets.token_hex(8)}"
        self.publisher.preflight(model, note)
        for _ in _polls(time.monotonic() + _PREFLIGHT_S):
            answer = self.store.take_note(note)
            if answer is not None:
                break
            check()
            if not wait and not self.store.workers():
                return
        else:
            raise ModelError(f"no worker answered within {_PREFLIGHT_S:.0f} s about model {model}")
        verdict = msgspec.json.decode(answer or b"{}", type=Preflight)
        if verdict.message is not None:
            raise ModelError(verdict.message, kind=verdict.kind)

    def close(self) -> None:
        self._app.close()
        self.store.close()


class Run:
    """One run: a handle that any process with the broker's URL can make.

    Attributes:
        run_id: The run's name.
    """

    def __init__(
        self, run_id: str, store: Store, publisher: Publisher, check: Callable[[], None]
    ) -> None:
        self.run_id = run_id
        self._store = store
        self._publisher = publisher
        self._check = check

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    @property
    def spec(self) -> RunSpec:
        """What the run was asked to do."""
        return RunSpec.model_validate_json(self._store.spec(self.run_id))

    def status(self) -> Status:
        """Return where the run is. Raises UnknownRunError."""
        run = self._store.run(self.run_id)
        stages = [self._store.stage(self.run_id, stage) for stage in range(run.last_stage + 1)]
        branches = stages[0]
        return Status(
            run_id=self.run_id,
            status=run.status,
            total=branches.total,
            done=branches.done,
            succeeded=branches.succeeded,
            failed=branches.failed,
            errors=branches.errors,
            usage=_total_usage([stage.usage for stage in stages if stage.done]),
            created_at=run.created_at,
            elapsed_s=(run.ended_at or time.time()) - run.created_at,
            stage=run.stage,
            error=run.error,
            workers=len(self._store.workers()),
        )

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        on_progress: Callable[[Status], None] | None = None,
    ) -> Status:
        """Wait until the run has ended, and return its status.

        Args:
            timeout_s: Seconds to wait at most; None is for ever.
            on_progress: Called with the status several times a second.

        Raises:
            WaitTimeoutError: The run had not ended; it goes on.
            EmbeddedError: The embedded fleet has stopped.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in _polls(until):
            if on_progress is None:
                ended = self._store.run(self.run_id).has_ended
            else:
                status = self.status()
                on_progress(status)
                ended = status.status.has_ended
            if ended:
                return self.status()
            self._check()
        raise WaitTimeoutError(f"run {self.run_id} has not ended within {timeout_s} s; it goes on")

    def result(self) -> Result:
        """Return what the run has given so far; all of it once it has ended."""
        status = self.status()
        aggregated, notes = self.aggregate()
        return Result(
            run_id=self.run_id,
            status=status.status,
            branches=list(self.outcomes()),
            aggregated=aggregated,
            notes=notes,
            reduce_errors=self._stored_result().errors,
            usage=status.usage,
            error=status.error,
            elapsed_s=status.elapsed_s,
        )

    def aggregate(self) -> tuple[Any, list[str]]:
        """Return the aggregate, by group where the run has groups, and the aggregator's notes.

        The aggregate is None where there is none, or none yet.
        """
        stored = self._stored_result()
        values = {group: one.value for group, one in stored.aggregates.items()}
        notes = [
            f"{group}: {note}" if group else note
            for group, one in stored.aggregates.items()
            for note in one.notes
        ]
        return (values or None) if self.spec.group_by else values.get(""), notes

    def _stored_result(self) -> StoredResult:
        data = self._store.result(self.run_id)
        if data is None:
            return StoredResult()
        return msgspec.json.decode(data, type=StoredResult)

    def outcomes(self) -> Iterator[Output]:
        """Yield the branches that have ended, in input order, holding one shard at a time."""
        spec = self.spec
        for number in range(self._store.stage(self.run_id, 0).shards):
            outcomes = self._store.outcomes(self.run_id, 0, number)
            if outcomes:
                shard = self._store.shard(self.run_id, 0, number)
                for _, outcome in sorted(outcomes.items()):
                    yield _output(spec, shard, outcome)

    def cancel(self) -> bool:
        """Stop the run: no further call is made, what has finished is kept.

        Returns:
            Whether this call stopped it; False where it had ended or was stopped before.
        """
        return self._store.halt(self.run_id, RunStatus.CANCELLED)

    def retry_failed(self, kinds: Iterable[ErrorKind] | None = None) -> int:
        """Process the failed branches of a run that has ended again, and redo its aggregate.

        Args:
            kinds: Only those that failed in these ways; None is all.

        Returns:
            How many branches are processed again.

        Raises:
            RunError: The run has not ended.
        """
        wanted = None if kinds is None else frozenset(kinds)
        return retry_failed(self._store, self._publisher, self.run_id, wanted)

    def delete(self) -> None:
        """Forget the run and all its records. Raises UnknownRunError."""
        self._store.delete_run(self.run_id)


def _polls(until: float | None) -> Iterator[None]:
    """Yield at once, then after waits that grow, until the monotonic clock is past ``until``."""
    wait_s = _FIRST_POLL_S
    while True:
        yield
        if until is not None and time.monotonic() >= until:
            return
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, _LAST_POLL_S)


def _total_usage(usages: list[Usage]) -> Usage:
    def total(name: str) -> Any:
        values = [getattr(usage, name) for usage in usages]
        return None if not values or None in values else sum(values)

    return Usage(
        calls=sum(usage.calls for usage in usages),
        input_tokens=total("input_tokens"),
        output_tokens=total("output_tokens"),
        cost_usd=total("cost_usd"),
    )


def _output(spec: RunSpec, shard: Shard, outcome: Outcome) -> Output:
    ref = branch_ref(outcome.index, spec.aspect_names, spec.samples)
    chunk = shard_chunk(shard, outcome.index, spec.branches_per_chunk)
    return Output(
        index=outcome.index,
        document=chunk.document,
        document_index=chunk.document_index,
        chunk=ref.chunk,
        position=chunk.position,
        start=chunk.start,
        end=chunk.end,
        aspect=ref.aspect,
        sample=ref.sample,
        output=outcome.output,
        kind=outcome.kind,
        message=outcome.message,
        attempts=outcome.attempts,
        usage=outcome.usage,
        elapsed_s=outcome.elapsed_s,
        columns=chunk.columns,
    )
