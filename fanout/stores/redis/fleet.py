"""What processes tell one another through the Redis store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from fanout.stores import codec
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from fanout.core.state import Totals, WorkerRecord

__all__ = ["RedisFleet"]

# Who has fallen silent is remembered for an hour, as the server may be away for so long.
_REMEMBERED_S = 3_600
# A run that expired may still be among the active ones: one would not do.
_SOME_RUNS = 20


class RedisFleet(RedisBase):
    """What processes tell one another, apart from any run."""

    @translated
    def beat(self, holder: str, *, ttl_s: float) -> None:
        """Say that the holder of begun branches is alive; to be said each third of ``ttl_s``.

        One that is late by another third was held up, and mostly so were all others, by the server
        being away: then those that were alive at its last beat are alive for ``ttl_s`` more.

        Args:
            holder: Names a process; not one that had the same name before.
            ttl_s: Seconds after which a silent holder is taken for dead.
        """
        self._beat(keys=[self._holders], args=[holder, ttl_s, _REMEMBERED_S])

    @translated
    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """Take or keep a lock for ``ttl_s`` seconds; say whether ``holder`` has it."""
        return bool(self._lock(keys=[f"{self._prefix}:lock:{name}"], args=[holder, ttl_s]))

    @translated
    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """Leave a short-lived note, such as the answer of a check."""
        self._redis.set(f"{self._prefix}:note:{key}", note, ex=ttl_s)

    @translated
    def take_note(self, key: str) -> bytes | None:
        """Take a note away, or return None where there is none yet."""
        return cast("bytes | None", self._redis.getdel(f"{self._prefix}:note:{key}"))

    @property
    def _workers(self) -> tuple[str, str]:
        return f"{self._prefix}:workers", f"{self._prefix}:worker-records"

    @translated
    def worker_alive(self, worker: WorkerRecord, *, ttl_s: float) -> None:
        """Say that a worker is there, for the next ``ttl_s`` seconds."""
        # Until when it is known, and when it said so, must be read off one clock.
        record = codec.encode_worker(worker, ttl_s)
        self._alive(keys=self._workers, args=[worker.name, record, ttl_s, _REMEMBERED_S])

    @translated
    def worker_gone(self, name: str) -> None:
        """Say that a worker has stopped."""
        known, records = self._workers
        with self._redis.pipeline() as pipe:
            pipe.zrem(known, name)
            pipe.hdel(records, name)
            pipe.execute()

    @translated
    def workers(self) -> list[WorkerRecord]:
        """Return the live workers, by name."""
        known, records = self._workers
        with self._redis.pipeline() as pipe:
            pipe.time()
            pipe.zrange(known, 0, -1, withscores=True)
            pipe.hgetall(records)
            time, until, said = pipe.execute()
        now = seconds(time)
        live = ((name, lapses) for name, lapses in until if lapses > now and name in said)
        return [codec.decode_worker(said[name], lapses) for name, lapses in sorted(live)]

    @translated
    def count_dropped(self, messages: int) -> None:
        """Count messages that a worker has refused and dropped."""
        self._redis.hincrby(self._totals, "dropped", messages)

    @translated
    def totals(self) -> Totals:
        """Return what the fleet has done so far."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._totals)
            pipe.hgetall(self._run_totals)
            return codec.decode_totals(*pipe.execute())

    @translated
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
        keys = [self._wire, f"{self._wire}:holders", self._active]
        args: list[Any] = [version, holder, ttl_s, self._run("")]
        return int(cast("int", self._claim_wire(keys=keys, args=args)))

    @translated
    def wire_for(self, version: int, *, needs_room: bool = False) -> int:
        """Return the version that a client must speak; ``version`` where that is right.

        A client claims nothing: its runs say their version, and a worker that cannot speak it
        refuses them. Where no worker speaks, those of the active runs count.

        Args:
            version: What the client speaks.
            needs_room: Raise BrokerError where the server is full.
        """
        if needs_room:
            self._redis.set(f"{self._prefix}:note:room", "", px=1)
        spoken = self.wire()
        if spoken == version:
            return version
        if spoken is not None and self._speakers():
            return spoken
        for wire in self._wires_of_runs():
            needed = spoken if wire is None else wire
            if needed is not None and needed != version:
                return needed
        return version

    def _speakers(self) -> int:
        now = seconds(self._redis.time())
        return self._redis.zcount(f"{self._wire}:holders", now, "+inf")

    def _wires_of_runs(self) -> list[int | None]:
        """Return the versions of some active runs: each client has looked at those before it."""
        some = cast("list[bytes]", self._redis.srandmember(self._active, _SOME_RUNS))
        with self._redis.pipeline(transaction=False) as pipe:
            for run_id in some:
                pipe.hmget(self._run(run_id.decode(errors="replace")), "status", "wire")
            found = pipe.execute(raise_on_error=False)
        fields = (each for each in found if isinstance(each, list))
        return [codec.decode_wire(wire) for status, wire in fields if status is not None]

    @translated
    def release_wire(self, holder: str) -> None:
        """Say that a process does not speak the fleet's version of the wire format any more."""
        self._redis.zrem(f"{self._wire}:holders", holder)

    @translated
    def wire(self) -> int | None:
        """Return the version of the wire format that the fleet speaks; None: nobody ever spoke."""
        version = cast("bytes | None", self._redis.get(self._wire))
        return None if version is None else int(version)

    @translated
    def now(self) -> float:
        """Return the time, in seconds since the epoch, by the one clock that all machines share."""
        return seconds(self._redis.time())

    @translated
    def ping(self) -> None:
        """Make sure that the store answers. Raises BrokerError."""
        self._redis.ping()

    def close(self) -> None:
        """Release connections."""
        self._redis.close()
