"""The steps that the branches of a worker process take at the server, and the release of their claims.

The token of a claim is the tag of its delivery. The process that took the message knows the tag even
if a child began the branch: so a parent releases the claim of a dead child, and never the claim of a
later delivery.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from fanout.core.errors import BrokerError
from fanout.system.logs import about
from fanout.system.threads import ReadyThreads
from workers.context.batches import Batches
from workers.context.progress import BranchTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import BranchId
    from fanout.core.state import BeginRequest
    from workers.context.event_loop import LoopThread
    from workers.context.inflight import InFlight
    from workers.context.progress import TrackedBranch
    from workers.context.worker_context import Connections

__all__ = ["BranchSteps", "ClaimReleases"]

# With more calls in flight than this, branches wait for others that end or begin soon, and share round
# trips with them: for a share of the time that a call lasts, within limits.
_MANY_IN_FLIGHT = 64
_END_SHARE = 0.02
_END_LINGER_S = (0.01, 0.04)
# A branch that begins keeps its place from others.
_BEGIN_SHARE = 0.005
_LONGEST_BEGIN_LINGER_S = 0.02
# Seconds over which ends are counted, to tell how long calls last.
_COUNTED_S = 1.0
# One for each kind of step that branches share: begin, record, settle, gather, both of checkpoints, and the
# finding and the keeping of answers.
_THREADS = 8
# Most runs need no more at once, and each thread has memory of its own.
_FIRST_THREADS = 4
# Seconds by which a begin of a dead process may reach the server after the release of its claim.
_LATE_S = 1.0
# The most claims to release at a time: the same thread sends the worker's heartbeats.
_AT_ONCE = 200

_log = logging.getLogger(__name__)


class BranchSteps:
    """Begins and records branches in batches; knows which of them are under way.

    Args:
        connections: The stores and the publisher.
        loop: The loop that branches run on.
        in_flight: The calls in flight.
        step_s: Seconds that a step at the server may take.
        clock: Monotonic seconds.

    Attributes:
        begin: Begins a branch.
        record: Records the outcome of a branch.
        checkpoint: Writes how far a branch of several calls is.
        gather: Gathers the next call of a branch for a batch.
        prepared: Returns what a batch has answered to such a call.
        last_checkpoint: Returns how far such a branch was, for its next delivery.
        threads: The threads that the batches run in.
        progress: How far each branch is.
        releases: Releases the claims of deliveries that ended without an outcome.
        alone: Held by a branch that may have killed its worker: these run one at a time.
        ended: Number of branches that this worker has ended; its prefork children count nothing.
    """

    def __init__(
        self,
        connections: Connections,
        loop: LoopThread,
        in_flight: InFlight,
        *,
        step_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        store = connections.store
        self._fail_fast_store = connections.fail_fast_store
        self._loop = loop
        self._in_flight = in_flight
        self.threads = ReadyThreads(_THREADS, "fanout-store", first=_FIRST_THREADS)
        self.begin = Batches(
            store.begin_all, self.threads, self.begin_linger_s, self._release_abandoned
        )
        self.record = Batches(store.record_all, self.threads, self.linger_s)
        self.checkpoint = Batches(store.checkpoint_all, self.threads, self.linger_s)
        self.last_checkpoint = Batches(store.checkpoints, self.threads)
        self.gather = Batches(store.gather_all, self.threads, self.linger_s)
        self.prepared = Batches(store.prepared, self.threads)
        self.progress = BranchTracker(step_s=step_s)
        self.releases = ClaimReleases(self._fail_fast_store.release_claim)
        self.alone = asyncio.Lock()
        self.ended = 0
        self._lock = threading.Lock()
        self._clock = clock
        # When ends were last counted, how many there were, and the time of a call that followed from them.
        self._counted = clock(), 0
        self._known_call_s = 0.0

    def linger_s(self) -> float:
        """Return how many seconds an ended branch waits for others, to be written with them.

        With many calls in flight others end soon, and no further call waits for this one.
        """
        if self._in_flight.count < _MANY_IN_FLIGHT:
            return 0.0
        shortest_s, longest_s = _END_LINGER_S
        return min(longest_s, max(shortest_s, _END_SHARE * self._call_s()))

    def begin_linger_s(self) -> float:
        """Return how many seconds a branch waits for others, to be begun with them."""
        if self._in_flight.count < _MANY_IN_FLIGHT:
            return 0.0
        return min(_LONGEST_BEGIN_LINGER_S, _BEGIN_SHARE * self._call_s())

    def _call_s(self) -> float:
        """Return how many seconds a call lasts: about as long as it takes as many branches to end.

        It is 0 until that is known, and counted anew each second.
        """
        now, (since, before) = self._clock(), self._counted
        if now - since >= _COUNTED_S:
            ended = max(1, self.ended - before)
            self._counted = now, self.ended
            self._known_call_s = self._in_flight.count * (now - since) / ended
        return self._known_call_s

    def count_ended(self) -> None:
        """Count a branch that has ended with an outcome; any thread may call this."""
        with self._lock:
            self.ended += 1

    def release_stuck(self, branch: TrackedBranch) -> None:
        """Let other workers begin a branch that makes no progress. Raises BrokerError."""
        if branch.token:
            self._fail_fast_store.release_claim(branch.branch_id, token=branch.token, counts=True)
        if branch.task is not None:
            self._loop.call_soon(branch.task.cancel)

    def _release_abandoned(self, start: BeginRequest) -> None:
        """Release the claim of a branch that was cancelled while its begin was under way.

        The server may carry out the begin after the release: then no other worker could begin the
        branch while this process lives.
        """
        with suppress(RuntimeError):  # the threads have ended, and so does this holder
            self.threads.submit(self.releases.now, start.branch_id, start.token, counts=False)

    def close(self) -> None:
        """End the threads of the batches."""
        self.threads.shutdown(cancel_futures=True)


class _ReleaseClaim(Protocol):
    def __call__(self, branch_id: BranchId, /, *, token: str, counts: bool) -> None: ...


class ClaimReleases:
    """Releases the claims of deliveries that ended in this process without an outcome.

    While a claim stands and its holder lives, no other worker begins the branch. Each claim is released
    twice: the second time when its begin can no longer be under way.

    Safe to share between threads. If the process ends earlier, its claims end with it.

    Args:
        release_claim: See ``RedisStore.release_claim``; it fails at once if the server is unreachable.
        clock: Monotonic seconds.
    """

    def __init__(
        self, release_claim: _ReleaseClaim, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._release_claim = release_claim
        self._clock = clock
        self._lock = threading.Lock()
        # Whether the begin still counts, and when the claim was first released.
        self._pending: dict[tuple[BranchId, str], tuple[bool, float | None]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def later(self, branch_id: BranchId, token: str, *, counts: bool) -> None:
        """Release a claim at the next ``again``.

        Args:
            branch_id: The branch.
            token: The token of the claim; claims of other deliveries stay.
            counts: Whether the begin still counts as a delivery.
        """
        with self._lock:
            self._pending.setdefault((branch_id, token), (counts, None))

    def now(self, branch_id: BranchId, token: str, *, counts: bool) -> bool:
        """Release a claim now, or later if the server refuses; return whether it is released."""
        self.later(branch_id, token, counts=counts)
        return self._release(branch_id, token)

    def again(self) -> None:
        """Release pending claims until the server refuses; called every few seconds."""
        with self._lock:
            some = list(self._pending)[:_AT_ONCE]
        for branch_id, token in some:
            if not self._release(branch_id, token):
                return

    def _release(self, branch_id: BranchId, token: str) -> bool:
        with self._lock:
            # Moved to the end: a claim that the server always refuses holds up no other.
            counts, first = self._pending.pop((branch_id, token), (False, None))
            self._pending[branch_id, token] = (counts, first)
        sent_at = self._clock()
        try:
            self._release_claim(branch_id, token=token, counts=counts)
        except BrokerError as error:
            _log.warning("a claim is not given up yet: %s", error, extra=about(branch_id))
            return False
        with self._lock:
            if first is not None and sent_at - first >= _LATE_S:
                self._pending.pop((branch_id, token), None)
            elif first is None:
                self._pending[branch_id, token] = (counts, self._clock())
        return True
