"""Follow a run until it has ended, and say why it does not move."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fanout.cli.session import half_stopped
from fanout.core.errors import BrokerError, FanoutError
from fanout.core.records import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.cli.progress import Follower
    from fanout.client.run import Run
    from fanout.runs.status import Status

__all__ = ["enqueue_monitor", "follow"]

# Time without progress before the client asks the server why, and between two such questions.
_STANDSTILL_S = 5.0
# A run that is stopped ends within a second or so, where a worker ends it: without one nobody does
# while the client waits. The workers of embedded runs are the client's own, and may be starting.
_UNTENDED_S = 5.0
_UNENDED_S = 60.0
_LAST_LOOK_S = 1.0
_STOPPED = {RunStatus.CANCELLED, RunStatus.FAILED}
_AT_WORK = {RunStatus.ENQUEUING, RunStatus.RUNNING, RunStatus.REDUCING}


def follow(
    run: Run,
    progress: Follower,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    has_own_worker: bool = False,
) -> Status:
    """Show the progress of a run until it has ended; cancel it if it should stop.

    Args:
        run: The run.
        progress: What shows it.
        should_stop: Called several times a second.
        has_own_worker: Whether a worker of this process does the work.

    Returns:
        The last status: of a run that has ended, or was cancelled and is ended by nobody for now.

    Raises:
        BrokerError: The server did not answer for too long; the run goes on.
    """
    look_why = _Standstill(run, progress)
    ending = _Ending(run, has_own_worker=has_own_worker)

    def on_progress(status: Status) -> None:
        progress.show(status)
        look_why(status)
        if should_stop():
            run.cancel()
            ending.see(status)

    def on_away(error: BrokerError) -> None:
        if error.is_refusal:
            # The server answers, and refuses to store that the run stops; the rest goes on.
            progress.refused(str(error))
        else:
            progress.away()
        if should_stop():
            ending.miss(error)

    try:
        return run.wait(on_progress=on_progress, on_away=on_away)
    except _UnendedError as unended:
        progress.close()
        progress.unended(str(unended))
        return unended.status
    finally:
        progress.close()


class _UnendedError(Exception):
    """Nobody ends a run that was cancelled."""

    def __init__(self, why: str, status: Status) -> None:
        super().__init__(why)
        self.status = status


class _Ending:
    """Gives up a run that was cancelled, and that nobody ends: one signal must end the client."""

    def __init__(self, run: Run, *, has_own_worker: bool) -> None:
        self._run = run
        self._has_own_worker = has_own_worker
        self._is_stopped = False
        self._at: tuple[int, int] | None = None
        self._since = 0.0

    def see(self, status: Status) -> None:
        """Raise _UnendedError if the run has not moved for too long since it was cancelled."""
        self._is_stopped = True
        if status.status.has_ended:
            return
        waited_s = self._waited_s((status.done, status.workers))
        has_worker = self._has_own_worker or status.workers > 0
        if waited_s < (_UNENDED_S if has_worker else _UNTENDED_S):
            return
        if self._has_own_worker:
            raise _UnendedError(half_stopped(self._run.run_id), status)
        does = "the workers have not ended it yet" if has_worker else "no worker is there to end it"
        raise _UnendedError(
            f"run {self._run.run_id} is stopped, but {does}: it ends as cancelled as soon as one does; "
            f"`fanout results {self._run.run_id}` gives what has finished",
            status,
        )

    def miss(self, error: BrokerError) -> None:
        """Raise BrokerError if the server has not answered for too long since the first signal."""
        if self._waited_s((-1, -1)) < _UNTENDED_S:
            return
        how = f"could not be stopped, and goes on: `fanout cancel {self._run.run_id}` stops it"
        if self._is_stopped:
            how = f"is stopped: `fanout results {self._run.run_id}` gives what has finished"
        raise BrokerError(f"{error}; run {self._run.run_id} {how}") from error

    def _waited_s(self, at: tuple[int, int]) -> float:
        now = time.monotonic()
        if at != self._at:
            self._at, self._since = at, now
        return now - self._since


class _Standstill:
    """Finds out why a run makes no progress: refused writes, or a model whose calls wait."""

    def __init__(self, run: Run, progress: Follower) -> None:
        self._run = run
        self._progress = progress
        self._at: tuple[RunStatus, int] | None = None
        self._due_at = 0.0
        # The model whose calls wait, or last waited.
        self._held = ""

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        at = (status.status, status.done)
        if at != self._at:
            if self._at is not None:
                self._progress.refused(None)
                # Branches of a run that is stopped end without an answer.
                if not status.is_stopping and status.status not in _STOPPED:
                    self._progress.held(self._held, None)
            self._at, self._due_at = at, now + _STANDSTILL_S
        elif now >= self._due_at and status.status in _AT_WORK:
            self._due_at = now + _STANDSTILL_S
            self._progress.refused(self._run.write_problem())
            found = self._run.held_model()
            if found is not None:
                self._held = found[0]
            self._progress.held(self._held, None if found is None else found[1])


@contextmanager
def enqueue_monitor(progress: Follower) -> Iterator[Callable[[Callable[[], Run]], None]]:
    """Give a function that starts a thread, which says why the client cannot enqueue a run."""
    has_ended = threading.Event()
    threads: list[threading.Thread] = []

    def watch(find: Callable[[], Run]) -> None:
        while not has_ended.wait(_STANDSTILL_S):
            with suppress(FanoutError):
                progress.refused(find().write_problem())

    def begin(find: Callable[[], Run]) -> None:
        threads.append(threading.Thread(target=watch, args=(find,), daemon=True))
        threads[-1].start()

    try:
        yield begin
    finally:
        has_ended.set()
        for thread in threads:
            # It may still wait for an answer that is no longer needed.
            thread.join(_LAST_LOOK_S)
