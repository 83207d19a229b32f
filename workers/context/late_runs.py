"""Which runs are late for their deadline: their branches no longer wait for batches."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError, UnknownRunError
from fanout.runs.lateness import late_steps_of

if TYPE_CHECKING:
    from fanout.stores import RedisStore

__all__ = ["LateRuns"]

_REMEMBERED_RUNS = 64
_HOLDS_S = 1.0


class LateRuns:
    """Knows for each run with the lane ``auto`` whether a further batch would come too late.

    Args:
        store: Is asked about a run once a second at most.
        wait_s: Seconds for which gathered calls wait for further ones.
    """

    def __init__(self, store: RedisStore, *, wait_s: float) -> None:
        self._store = store
        self._wait_s = wait_s
        self._known: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._first_looks: dict[str, asyncio.Task[bool]] = {}

    async def is_late(self, run_id: str) -> bool:
        """Return whether a branch that is gathered now would be late; False if nobody can tell."""
        now = time.monotonic()
        looked_at, is_late = self._known.get(run_id, (None, False))
        if looked_at is not None and now - looked_at < _HOLDS_S:
            return is_late
        if looked_at is not None:
            # Other branches meanwhile get what was known before.
            self._remember(run_id, now, is_late=is_late)
            return await self._looked(run_id, was_late=is_late)
        # All that come meanwhile wait for the first look.
        look = self._first_looks.get(run_id)
        if look is None:
            look = asyncio.ensure_future(self._looked(run_id, was_late=is_late))
            self._first_looks[run_id] = look
            look.add_done_callback(lambda _: self._first_looks.pop(run_id, None))
        return await asyncio.shield(look)

    async def _looked(self, run_id: str, *, was_late: bool) -> bool:
        try:
            is_late = await asyncio.to_thread(self._look, run_id)
        except (BrokerError, UnknownRunError):
            return was_late
        self._remember(run_id, time.monotonic(), is_late=is_late)
        return is_late

    def _remember(self, run_id: str, now: float, *, is_late: bool) -> None:
        self._known[run_id] = (now, is_late)
        if len(self._known) > _REMEMBERED_RUNS:
            self._known.popitem(last=False)

    def _look(self, run_id: str) -> bool:
        run = self._store.run(run_id)
        is_late = "new" in late_steps_of(self._store, run, wait_s=self._wait_s)
        if is_late and not run.is_late:
            self._store.note_late(run_id)
        return is_late
