"""The fleet's shared state in the Redis store: heartbeats, locks, notes and versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from fanout.stores import codec
from fanout.stores.redis import fleet_scripts
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.core.fleet_records import Totals, WorkerRecord

__all__ = ["RedisFleet"]

# Seconds that a silent process is remembered, as the server may be unreachable for so long.
_REMEMBERED_S = 3_600
# More than one, as an expired run may still be among the active ones.
_SOME_RUNS = 20
# What stands at a prefix of prompts: a call with it is under way, or has been answered.
_LED, _WARM = b"1", b"2"


class RedisFleet(RedisBase):
    """The fleet's state that belongs to no run."""

    @translated
    def beat(self, holder: str, *, ttl_s: float) -> None:
        """Send the heartbeat of a holder of begun branches, once per third of ``ttl_s``.

        A beat that is late by another third was delayed, mostly because the server was unreachable
        for all holders. Then the holders that were alive at its previous beat stay alive for
        ``ttl_s`` more.

        Args:
            holder: The unique name of a process; a restarted process needs a new one.
            ttl_s: Seconds without a beat after which a holder counts as dead.
        """
        self._call(fleet_scripts.BEAT, [self._holders], [holder, ttl_s, _REMEMBERED_S])

    @translated
    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """Take or renew a lock for ``ttl_s`` seconds; return whether ``holder`` has it."""
        return bool(
            self._call(fleet_scripts.LOCK, [f"{self._prefix}:lock:{name}"], [holder, ttl_s])
        )

    @translated
    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """Write a short-lived note, such as the answer of a check."""
        self._redis.set(f"{self._prefix}:note:{key}", note, ex=ttl_s)

    @translated
    def take_note(self, key: str) -> bytes | None:
        """Remove and return a note, or return None if there is none yet."""
        return cast("bytes | None", self._redis.getdel(f"{self._prefix}:note:{key}"))

    @translated
    def claim_prefixes(
        self, keys: Sequence[str], *, lasts_s: int
    ) -> list[Literal["first", "warm", "wait"]]:
        """Ask for each prefix of prompts whether to be the first to call with it.

        Args:
            keys: What names the prefixes.
            lasts_s: Seconds until another process may be the first.

        Returns:
            ``first``; ``warm``, if a call with it has been answered; ``wait``, if one is under way.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.set(self._prefix_key(key), _LED, nx=True, ex=lasts_s)
                pipe.get(self._prefix_key(key))
            replies = pipe.execute()
        return [
            "first" if was_set else "warm" if value == _WARM else "wait"
            for was_set, value in zip(replies[::2], replies[1::2], strict=True)
        ]

    @translated
    def note_prefixes(self, answered: Mapping[str, bool], *, lasts_s: int) -> None:
        """Note for prefixes whether a call with them has been answered; if not, another may be first.

        Args:
            answered: By the key of the prefix.
            lasts_s: Seconds for which the provider keeps them.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for key, is_answered in answered.items():
                if is_answered:
                    pipe.set(self._prefix_key(key), _WARM, ex=lasts_s)
                else:
                    pipe.delete(self._prefix_key(key))
            pipe.execute()

    def _prefix_key(self, key: str) -> str:
        return f"{self._prefix}:prefix:{key}"

    @property
    def _workers(self) -> tuple[str, str]:
        return f"{self._prefix}:workers", f"{self._prefix}:worker-records"

    @translated
    def worker_alive(self, worker: WorkerRecord, *, ttl_s: float) -> None:
        """Write a worker's record; it counts as alive for the next ``ttl_s`` seconds."""
        # The end of its ttl and the time of the record must come from one clock.
        record = codec.encode_worker(worker, ttl_s)
        self._call(fleet_scripts.ALIVE, self._workers, [worker.name, record, ttl_s, _REMEMBERED_S])

    @translated
    def worker_gone(self, name: str) -> None:
        """Remove the record of a worker that has stopped."""
        known, records = self._workers
        with self._redis.pipeline() as pipe:
            pipe.zrem(known, name)
            pipe.hdel(records, name)
            pipe.execute()

    def workers(self) -> list[WorkerRecord]:
        """Return the live workers, by name."""
        return self.known_workers()[0]

    @translated
    def known_workers(self) -> tuple[list[WorkerRecord], list[WorkerRecord]]:
        """Return the live workers, and those that have vanished without a farewell of late, by name."""
        known, records = self._workers
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(known, 0, -1, withscores=True)
            pipe.hgetall(records)
            time, until, stored = pipe.execute()
        now = seconds(time)
        live: list[WorkerRecord] = []
        vanished: list[WorkerRecord] = []
        for name, lapses in sorted(until):
            if name in stored:
                of = live if lapses > now else vanished
                of.append(codec.decode_worker(stored[name], lapses))
        return live, vanished

    @translated
    def count_dropped(self, messages: int) -> None:
        """Count messages that a worker has refused and dropped."""
        self._redis.hincrby(self._totals, "dropped", messages)

    @translated
    def totals(self) -> Totals:
        """Return the counters of the fleet since its store was new."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._totals)
            pipe.hgetall(self._run_totals)
            return codec.decode_totals(*pipe.execute())

    @translated
    def claim_wire(self, version: int, *, holder: str, ttl_s: float) -> int:
        """Ask as a worker to use the wire format ``version``; return the version of the fleet.

        If they are equal, the holder counts as a process of that version for ``ttl_s`` seconds. A
        fleet changes to another version when no process uses the old one and no run of the old one
        is active.

        Args:
            version: The wire version of the worker's messages and records.
            holder: The unique name of the process; a restarted process needs a new one.
            ttl_s: Seconds after which a silent holder counts as gone.
        """
        keys = [self._wire, f"{self._wire}:holders", self._active]
        args = [version, holder, ttl_s, self._run("")]
        return int(self._call(fleet_scripts.CLAIM_WIRE, keys, args))

    @translated
    def wire_for(self, version: int, *, needs_room: bool = False) -> int:
        """Return the wire version that a client must use; ``version`` if that is right.

        A client claims no version: its runs name theirs, and workers of another version refuse
        them. Without workers, the versions of the active runs count.

        Args:
            version: The client's wire version.
            needs_room: Whether to raise BrokerError if the server is full.
        """
        if needs_room:
            self._redis.set(f"{self._prefix}:note:room", "", px=1)
        spoken = self.wire()
        if spoken == version:
            return version
        holders = f"{self._wire}:holders"
        if spoken is not None and self._redis.zcount(holders, self.now(), "+inf"):
            return spoken
        for wire in self._wires_of_runs():
            needed = spoken if wire is None else wire
            if needed is not None and needed != version:
                return needed
        return version

    def _wires_of_runs(self) -> list[int | None]:
        """Return the versions of some active runs: every client checks the earlier runs."""
        some = cast("list[bytes]", self._redis.srandmember(self._active, _SOME_RUNS))
        with self._redis.pipeline(transaction=False) as pipe:
            for run_id in some:
                pipe.hmget(self._run(run_id.decode(errors="replace")), "status", "wire")
            found = pipe.execute(raise_on_error=False)
        fields = (each for each in found if isinstance(each, list))
        return [codec.decode_wire(wire) for status, wire in fields if status is not None]

    @translated
    def release_wire(self, holder: str) -> None:
        """Remove a process from those that use the fleet's wire version."""
        self._redis.zrem(f"{self._wire}:holders", holder)

    @translated
    def wire(self) -> int | None:
        """Return the fleet's wire version; None if no worker has claimed one."""
        version = cast("bytes | None", self._redis.get(self._wire))
        return None if version is None else int(version)

    @translated
    def now(self) -> float:
        """Return the server's time, in seconds since the epoch: all machines share that clock."""
        return seconds(self._redis.time())

    @translated
    def ping(self) -> None:
        """Make sure that the store answers. Raises BrokerError."""
        self._redis.ping()

    def close(self) -> None:
        """Release connections."""
        self._redis.close()
