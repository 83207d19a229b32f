"""The steps that the branches of a worker process take at the server, and how far each branch is."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.system.threads import ReadyThreads
from workers.context.batches import Batches
from workers.context.claim_releases import ClaimReleases
from workers.context.progress import BranchTracker

if TYPE_CHECKING:
    from fanout.core.ids import BranchId
    from fanout.stores import BeginRequest
    from workers.context.connections import Connections
    from workers.context.event_loop import LoopThread
    from workers.context.inflight import InFlight
    from workers.context.progress import TrackedBranch

__all__ = ["BranchSteps"]

# With more calls in flight than this, ended branches wait this long, and are written together.
_MANY_IN_FLIGHT = 64
_LINGER_S = 0.01
# One for each kind of step that branches share: begin, record, feed, settle.
_THREADS = 4


class BranchSteps:
    """Begins, records and feeds branches in batches; knows which of them are under way.

    Args:
        connections: The stores and the publisher.
        loop: The loop that branches run on.
        in_flight: The calls in flight.
        step_s: Seconds that a step at the server may take.

    Attributes:
        begin: Begins a branch.
        record: Records the outcome of a branch.
        feed: Publishes the branch that takes the place of an ended one.
        threads: The threads that the batches run in.
        progress: How far each branch is.
        releases: Releases the claims of deliveries that ended without an outcome.
        alone: Held by a branch that may have killed its worker: these run one at a time.
        ended: Number of branches that this worker has ended; its prefork children count nothing.
    """

    def __init__(
        self, connections: Connections, loop: LoopThread, in_flight: InFlight, *, step_s: float
    ) -> None:
        store = connections.store
        self._fail_fast_store = connections.fail_fast_store
        self._publisher = connections.publisher
        self._loop = loop
        self._in_flight = in_flight
        self.threads = ReadyThreads(_THREADS, "fanout-store")
        self.begin = Batches(store.begin_all, self.threads, abandoned=self._release_abandoned)
        self.record = Batches(store.record_all, self.threads, self.linger_s)
        self.feed = Batches(self._publish, self.threads)
        self.progress = BranchTracker(step_s=step_s)
        self.releases = ClaimReleases(self._fail_fast_store.release_claim)
        self.alone = asyncio.Lock()
        self.ended = 0
        self._lock = threading.Lock()

    def linger_s(self) -> float:
        """Return how many seconds an ended branch waits for others, to be written with them.

        With many calls in flight others end soon, and no further call waits for this one.
        """
        return _LINGER_S if self._in_flight.count >= _MANY_IN_FLIGHT else 0.0

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

    def _publish(self, following: list[tuple[BranchId, int]]) -> list[None]:
        """Publish branches, each with its feed, that take the place of ended ones."""
        self._publisher.mixed_branches(following)
        return [None] * len(following)

    def close(self) -> None:
        """End the threads of the batches."""
        self.threads.shutdown(cancel_futures=True)
