"""Publishes the branches whose calls batches have answered, or that no longer wait for batches."""

from __future__ import annotations

import asyncio
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.broker.publisher import Publisher
    from fanout.stores import RedisStore

__all__ = ["ReadyBranches"]

_AT_ONCE = 500
# The most branches of a run that wait for their turn to be processed before further results are landed:
# each has its result in the server.
_MOST_BEHIND = 4_000
_LOOK_AGAIN_S = 0.25


class ReadyBranches:
    """Publishes ready branches; safe to share between threads.

    A process that dies in between publishes some of them twice: the second message finds its branch
    under way, or ended.
    """

    def __init__(self, store: RedisStore, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
        self._lock = Lock()

    def publish_all(self) -> int:
        """Publish all ready branches; return how many. Raises BrokerError."""
        count = 0
        with self._lock:
            while True:
                some = self._store.ready_branches(_AT_ONCE)
                if not some:
                    return count
                branches = self._store.still_ready(some)
                self._publisher.mixed_branches(branches)
                self._store.published(some)
                count += len(branches)

    async def publish(self) -> None:
        """Publish all ready branches from a coroutine."""
        await asyncio.to_thread(self.publish_all)

    async def wait_for_room(self, run_ids: set[str]) -> None:
        """Wait while too many messages of these runs wait for their turn."""
        behind = await asyncio.to_thread(self._store.messages_behind, run_ids)
        while behind > _MOST_BEHIND:
            await asyncio.sleep(_LOOK_AGAIN_S)
            behind = await asyncio.to_thread(self._store.messages_behind, run_ids)
