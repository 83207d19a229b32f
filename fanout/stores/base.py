"""The seam to the run store: where inputs, outcomes and the state of runs live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.core.rate_limits import LimitState, Rates, Slot
    from fanout.core.records import ErrorKind, Outcome, RunStatus, Shard
    from fanout.core.state import (
        Begun,
        End,
        Grant,
        Parked,
        Recorded,
        RunRecord,
        Sealed,
        ShardState,
        StageProgress,
        StageRecord,
        StageWindow,
        Start,
        Totals,
        WorkerRecord,
    )
    from fanout.policy.admission import Lanes
    from fanout.policy.outages import Standing

__all__ = ["ALONE_AFTER", "MOST_WINDOWS", "Branches", "Fleet", "Runs", "Stages", "Store"]

# A branch that was begun so often without an end is begun again only alone: when its worker dies,
# it is known which branch it was.
ALONE_AFTER = 2

# How many times the window may be open, with the shards that drain: a few slow calls of each must
# not keep the workers idle, and what has ended of a shard that is open is not compressed yet.
MOST_WINDOWS = 8


class Runs(Protocol):
    """The runs: what they are asked for, their status, their aggregate."""

    def create_run(
        self,
        run_id: str,
        *,
        spec: str,
        created_at: float,
        deadline_at: float | None = None,
        wire: int | None = None,
    ) -> None:
        """Remember a new run in status ``enqueuing``; ``spec`` is its JSON.

        ``wire`` is the version of the wire format that it is written in.
        """

    def spec(self, run_id: str) -> str:
        """Return the JSON of the run's spec. Raises UnknownRunError."""

    def run(self, run_id: str) -> RunRecord:
        """Return the state of a run. Raises UnknownRunError."""

    def runs(self, prefix: str = "") -> Iterator[RunRecord]:
        """Yield the runs that have not expired and whose ids begin so, the newest first."""

    def active_runs(self) -> list[str]:
        """Return the runs that have not ended."""

    def set_status(self, run_id: str, status: RunStatus, *, stage: int | None = None) -> bool:
        """Move a run that has not ended to ``status``; say whether it was moved.

        The stage only rises: a task that is delivered again does not take it back.
        """

    def end_run(
        self, run_id: str, status: RunStatus, *, ended_at: float, error: str | None = None
    ) -> bool:
        """Give a run its final status; say whether this call did. The first end stands."""

    def halt(self, run_id: str, status: RunStatus, *, error: str | None = None) -> bool:
        """Let no further call start; the run will end with ``status``. The first halt stands."""

    def pause(self, run_id: str) -> bool:
        """Let no further branch begin until ``unpause``; say whether this call did."""

    def unpause(self, run_id: str) -> bool:
        """Let branches begin again; say whether this call did. Those parked stay so."""

    def reopen_run(self, run_id: str, *, retry: frozenset[ErrorKind]) -> bool:
        """Take a run that has ended back to ``running``; say whether this call did.

        Its aggregate is dropped, and what its reduce stages hold, but not what they consumed. Its
        shards may be opened again, and each be taken back once to what did not fail by a kind in
        ``retry``.
        """

    def begin_delete(self, run_id: str) -> list[int]:
        """Have a run be unknown from now on, so that nothing is written of it any more.

        Also of one whose deletion has begun before and has not ended: it is among the active runs
        until ``delete_run`` has been carried out.

        Returns:
            How many shards each of its stages has.

        Raises:
            UnknownRunError: There is no such run.
        """

    def delete_run(self, run_id: str) -> None:
        """Forget all there is of a run. Raises UnknownRunError."""

    def sweep_files(self, *, everything: bool = False) -> int:
        """Delete the files of runs that are gone, where blobs are kept as files.

        Args:
            everything: Those of all other runs, too: the store itself is about to end.

        Returns:
            Of how many runs.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """

    def storage_problem(self, *, is_worker: bool = False) -> str | None:
        """Return why files cannot be kept from here, in one line; None where they can.

        A worker registers a storage that nobody has registered yet: see
        fanout.stores.blobs.marker. Raises BrokerError.
        """

    def put_result(self, run_id: str, result: bytes) -> None:
        """Write the run's aggregate; the first one stands."""

    def result(self, run_id: str) -> bytes | None:
        """Return the run's aggregate, or None where there is none."""


class Stages(Protocol):
    """The stages of a run and their shards: inputs, counts, which are in flight."""

    def stage(self, run_id: str, stage: int) -> StageRecord:
        """Return the counts of a stage; all 0 where there is no such stage."""

    def reopen_shard(
        self,
        run_id: str,
        stage: int,
        number: int,
        *,
        kept: dict[int, Outcome],
        dropped: list[Outcome],
    ) -> bool:
        """Take a shard back to the outcomes ``kept``; uncount those ``dropped``.

        What calls consumed stays counted. Once for each time that the run is reopened: later calls
        change nothing.

        Returns:
            Whether this call did it.
        """

    def is_finished(self, run_id: str, stage: int, number: int) -> bool:
        """Say whether a shard is compacted."""

    def put_shard(self, run_id: str, stage: int, number: int, shard: Shard) -> bool:
        """Write the input of the next shard of a stage and count it; one that is there stays.

        Returns:
            Whether the stage takes shards: not once it is sealed, or its run is halted or over.

        Raises:
            UnknownRunError: There is no such run.
        """

    def shard(self, run_id: str, stage: int, number: int) -> Shard:
        """Return the input of a shard. Raises UnknownRunError where it has expired."""

    def indices(self, run_id: str, stage: int, number: int) -> range:
        """Return the stage-wide indices of a shard's branches. Raises UnknownRunError.

        They outlive its input, so that what became of it can be recorded without that.
        """

    def set_lanes(self, run_id: str, stage: int, lanes: Lanes) -> None:
        """Set how a stage's ``max_workers`` is spread, before its first shard is opened."""

    def seal_stage(self, run_id: str, stage: int) -> Sealed:
        """Let a stage take no more shards: those that it has are all. Raises UnknownRunError."""

    def open_shards(
        self,
        run_id: str,
        stage: int,
        *,
        window: int,
        finished: int | None = None,
        draining: tuple[int, int] | None = None,
    ) -> list[Grant]:
        """Close the shard ``finished``, if any, and open shards until ``window`` are in flight.

        Args:
            run_id: The run.
            stage: The stage.
            window: How many; a stage with lanes has its own.
            finished: A shard that is over.
            draining: A shard of which few branches have not ended, and how many: it does not count
                any more, and needs no more lanes than that. ``MOST_WINDOWS`` windows are the most
                that are open in all.
        """

    def start_shard(self, run_id: str, stage: int, number: int, *, published: int) -> bool:
        """Remember that the first ``published`` branches of a shard are being published.

        Returns:
            Whether this call was the first to say so.
        """

    def advance_shard(self, run_id: str, stage: int, number: int, *, published: int) -> None:
        """Remember that as many branches of a shard, from the first, are published, if not more."""

    def progress(self, run_id: str, stage: int) -> StageProgress:
        """Return how far the shards of a stage are."""

    def window(self, run_id: str, stage: int) -> StageWindow:
        """Return how much of a stage is in flight; all 0 where there is no such stage."""

    def shard_state(self, run_id: str, stage: int, number: int) -> ShardState:
        """Return what there is of a shard. Raises UnknownRunError."""

    def incomplete(self, run_id: str, stage: int) -> list[int]:
        """Return the shards of a stage that have fewer outcomes than branches."""

    def adopt(self, run_id: str, stage: int, numbers: Iterable[int]) -> None:
        """Take shards back among those that are being processed, if they are not.

        Of a stage with lanes, as many as there are lanes for.
        """

    def healed(self, run_id: str, stage: int, number: int | None = None) -> None:
        """Count that a shard, or the stage itself, was healed."""


class Branches(Protocol):
    """The branches of a shard: who makes the call, and how it ended."""

    def take_parked(self, run_id: str) -> list[Parked]:
        """Take away the branches that were not begun because the run is, or was, paused."""

    def begin(self, start: Start) -> Begun:
        """Ask whether a branch may make its call, and count it.

        While its holder is alive, nobody else may begin the branch until it is given up: its
        message may come to a second worker although the first has not died, after the server was
        away for instance. A holder is taken for dead only by one that has said since that it is
        alive itself.
        """

    def begin_all(self, starts: Sequence[Start]) -> list[Begun]:
        """Begin several branches, in as few steps as can be; return the answers in order."""

    def unbegin(
        self,
        run_id: str,
        stage: int,
        number: int,
        position: int,
        *,
        token: str,
        counts: bool = False,
    ) -> None:
        """Take a begin back: the delivery was handed back without a call's end, or died.

        Where there is nothing of it, nothing is done.

        Args:
            run_id: The run.
            stage: The stage.
            number: The shard.
            position: The branch in it.
            token: Of the begin; that of another delivery stays.
            counts: Whether it was a begin all the same: what stands still everywhere must end.
        """

    def record(self, end: End) -> Recorded:
        """Write the outcome of a branch; the first one stands and is counted once."""

    def record_all(self, ends: Sequence[End]) -> list[Recorded]:
        """Write several outcomes, in as few steps as can be; return what became of each."""

    def outcomes(self, run_id: str, stage: int, number: int) -> dict[int, Outcome]:
        """Return the outcomes of a shard so far, by position."""

    def compact(self, run_id: str, stage: int, number: int, outcomes: dict[int, Outcome]) -> None:
        """Replace the outcomes of a finished shard by one compressed blob."""


class Fleet(Protocol):
    """What processes tell one another, apart from any run."""

    def beat(self, holder: str, *, ttl_s: float) -> None:
        """Say that the holder of begun branches is alive; to be said each third of ``ttl_s``.

        One that is late by another third was held up, and mostly so were all others, by the server
        being away: then those that were alive at its last beat are alive for ``ttl_s`` more.

        Args:
            holder: Names a process; not one that had the same name before.
            ttl_s: Seconds after which a silent holder is taken for dead.
        """

    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """Take or keep a lock for ``ttl_s`` seconds; say whether ``holder`` has it."""

    def take_slot(self, model: str, *, rates: Rates, tokens: int) -> Slot:
        """Take the next time at which a call to a model may begin: see fanout.core.rate_limits.

        Whoever asks brings the rates; all who ask for the same model share what is used of them.
        """

    def correct_slot(self, model: str, *, rates: Rates, tokens: int) -> None:
        """Add tokens, or take some back, that a call took more than it was taken to."""

    def pause_model(self, model: str, pause_s: float) -> None:
        """Have no call to a model begin for so long: its provider has refused one."""

    def pause_of(self, model: str) -> Standing:
        """Return whether a call to a model may begin: see fanout.policy.outages.

        Who asks while it fails for everybody may be told to try: then the others are told to wait.
        """

    def trip_breaker(self, model: str) -> bool:
        """Report that a model fails for everybody; say whether all leave it alone now."""

    def close_breaker(self, model: str) -> None:
        """Have all call a model again: one of its calls has succeeded. Its pauses end too."""

    def limits(self) -> dict[str, LimitState]:
        """Return how far the limits of models are used, in seconds from now."""

    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """Leave a short-lived note, such as the answer of a check."""

    def take_note(self, key: str) -> bytes | None:
        """Take a note away, or return None where there is none yet."""

    def worker_alive(self, worker: WorkerRecord, *, ttl_s: float) -> None:
        """Say that a worker is there, for the next ``ttl_s`` seconds."""

    def worker_gone(self, name: str) -> None:
        """Say that a worker has stopped."""

    def workers(self) -> list[WorkerRecord]:
        """Return the live workers, by name."""

    def count_dropped(self, messages: int) -> None:
        """Count messages that a worker has refused and dropped."""

    def totals(self) -> Totals:
        """Return what the fleet has done so far."""

    def claim_wire(self, version: int, *, holder: str, ttl_s: float) -> int:
        """Ask as a worker to speak ``version``, and return the version that the fleet speaks.

        Where they are the same, the holder counts as one who speaks it, for ``ttl_s`` seconds. A
        fleet goes over to another version when nobody speaks the old one and no run of it is
        active.

        Args:
            version: What the asking process speaks: its messages, and its records in the store.
            holder: Names the process; not one that had the same name before.
            ttl_s: Seconds after which a silent holder is taken for gone.
        """

    def wire_for(self, version: int, *, needs_room: bool = False) -> int:
        """Return the version that a client must speak; ``version`` where that is right.

        A client claims nothing: its runs say their version, and a worker that cannot speak it
        refuses them. Where no worker speaks, those of the active runs count.

        Args:
            version: What the client speaks.
            needs_room: Raise BrokerError where the server is full.
        """

    def release_wire(self, holder: str) -> None:
        """Say that a process does not speak the fleet's version of the wire format any more."""

    def wire(self) -> int | None:
        """Return the version of the wire format that the fleet speaks; None: nobody ever spoke."""

    def now(self) -> float:
        """Return the time, in seconds since the epoch, by the one clock that all machines share."""

    def ping(self) -> None:
        """Make sure that the store answers. Raises BrokerError."""

    def close(self) -> None:
        """Release connections."""


class Store(Runs, Stages, Branches, Fleet, Protocol):
    """What a run needs remembered. Every method is safe to call twice, from any process."""
