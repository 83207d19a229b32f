"""What processes tell one another through the memory store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from fanout.stores.memory.base import MemoryBase

if TYPE_CHECKING:
    from fanout.core.state import Totals, WorkerRecord

__all__ = ["MemoryFleet"]


class MemoryFleet(MemoryBase):
    """See ``fanout.stores.base.Fleet``."""

    def beat(self, holder: str, *, ttl_s: float) -> None:
        """See Store."""
        with self._lock:
            now = time.monotonic()
            until = self._holders.get(holder)
            if until is not None and now > until - ttl_s / 3:
                for other, other_until in self._holders.items():
                    if other_until >= until - ttl_s:
                        self._holders[other] = now + ttl_s
            self._holders[holder] = now + ttl_s

    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """See Store."""
        with self._lock:
            other, until = self._locks.get(name, (holder, 0.0))
            if other != holder and until > time.monotonic():
                return False
            self._locks[name] = (holder, time.monotonic() + ttl_s)
            return True

    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """See Store."""
        self._notes[key] = (note, time.monotonic() + ttl_s)

    def take_note(self, key: str) -> bytes | None:
        """See Store."""
        note, until = self._notes.pop(key, (None, 0.0))
        return note if until > time.monotonic() else None

    def worker_alive(self, worker: WorkerRecord, *, ttl_s: float) -> None:
        """See Store."""
        worker = msgspec.structs.replace(worker, seen_at=time.time())
        self._workers[worker.name] = (worker, time.monotonic() + ttl_s)

    def worker_gone(self, name: str) -> None:
        """See Store."""
        self._workers.pop(name, None)

    def workers(self) -> list[WorkerRecord]:
        """See Store."""
        now = time.monotonic()
        live = [worker for worker, until in self._workers.values() if until > now]
        return sorted(live, key=lambda worker: worker.name)

    def count_dropped(self, messages: int) -> None:
        """See Store."""
        with self._lock:
            dropped = self._totals.dropped + messages
            self._totals = msgspec.structs.replace(self._totals, dropped=dropped)

    def totals(self) -> Totals:
        """See Store."""
        return self._totals

    def claim_wire(self, version: int, *, holder: str, ttl_s: float) -> int:
        """See Store."""
        with self._lock:
            now = time.monotonic()
            is_active = any(wire in {None, self._wire} for wire in self._wires_of_runs())
            if self._wire not in {None, version} and (self._is_spoken() or is_active):
                return self._wire
            if self._wire != version:
                self._speakers.clear()
            self._wire = version
            self._speakers[holder] = now + ttl_s
            return version

    def wire_for(
        self,
        version: int,
        *,
        needs_room: bool = False,  # noqa: ARG002 - there always is
    ) -> int:
        """See Store."""
        with self._lock:
            spoken = self._wire
            if spoken in {None, version} or not self._is_spoken():
                needed = [spoken if wire is None else wire for wire in self._wires_of_runs()]
                others = (wire for wire in needed if wire not in {None, version})
                return version if spoken == version else next(others, version)
            return spoken

    def _is_spoken(self) -> bool:
        now = time.monotonic()
        return any(until > now for until in self._speakers.values())

    def _wires_of_runs(self) -> list[int | None]:
        runs = (run.record for run in self._runs.values())
        return [record.wire for record in runs if not record.has_ended]

    def release_wire(self, holder: str) -> None:
        """See Store."""
        self._speakers.pop(holder, None)

    def wire(self) -> int | None:
        """See Store."""
        return self._wire

    def now(self) -> float:
        """See Store."""
        return time.time()

    def ping(self) -> None:
        """See Store."""

    def close(self) -> None:
        """See Store."""
