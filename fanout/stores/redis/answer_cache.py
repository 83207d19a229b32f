"""Kept answers in the Redis store, and the leases of the calls for them.

``{prefix}:answers`` has the counters, ``{prefix}:answers:N`` the generations (see
``fanout.stores.redis.answer_scripts``), and ``{prefix}:asking:KEY`` the lease of a call: the token of the
process that asks, or ``!`` and how it failed, or ``free``. Large answers are files where blobs are: those
of a generation are in a folder as that of a run, and ``{prefix}:run:answers-NAME`` says that it is in use,
so the sweep of files deletes the folder once the generation is gone.
"""

from __future__ import annotations

import re
import secrets
import time
import zlib
from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import RedisError

from fanout.core.errors import LostDataError, StorageError
from fanout.core.kept_answers import AnswerFound, CacheStats, KeptAnswer, SharedFailure
from fanout.policy.answer_room import is_crowded, room_bytes
from fanout.stores.blobs.base import Reference
from fanout.stores.redis import answer_scripts
from fanout.stores.redis.base import translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.kept_answers import AnswerCounts, AnswerRequest, AnswerSettled

__all__ = ["FREE_S", "RedisAnswers", "generations", "leases"]

# Seconds for which nobody waits for an answer after a call for it has failed, or others may take its failure.
FREE_S = 30.0
_GENERATIONS = 4
# A script blocks the server while it runs: a call for this many answers takes about 1 ms.
_AT_ONCE = 200
# Shorter ones are not worth the time of the compression.
_COMPRESSED_BYTES = 512
# The most that an answer expands to: a few bytes can expand until they fill a reader's memory.
_MOST_BYTES = 32_000_000
# Larger ones are files, where there are files.
_FILE_BYTES = 16_000
# No answer may take more of the room than this share.
_LARGEST_SHARE = 1 / 16
_MEMORY_S = 10.0
_MEGABYTE = 1_000_000
# The name of a generation, and how the value of a file begins.
_NAME_CHARS = 8
_FILE = re.compile(rb"@([0-9a-f]{8}):\d+(?=@)")

# Replies that have no answer.
_PLAIN = {
    b"ask": AnswerFound("ask"),
    b"wait": AnswerFound("wait"),
    b"free": AnswerFound("free"),
}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeptAnswer).decode
_decode_failure = msgspec.json.Decoder(SharedFailure).decode


def _packed(answer: KeptAnswer) -> bytes:
    data = _encode(answer)
    return data if len(data) < _COMPRESSED_BYTES else zlib.compress(data, 1)


def _unpacked(blob: bytes) -> KeptAnswer | None:
    """Return a kept answer; None if it is damaged."""
    try:
        if not blob.startswith(b"{"):
            inflater = zlib.decompressobj()
            blob = inflater.decompress(blob, _MOST_BYTES)
            if not inflater.eof:
                return None
        return _decode(blob)
    except (zlib.error, msgspec.MsgspecError, RecursionError):
        return None


class RedisAnswers(RedisBlobReferences):
    """Kept answers. Where one cannot be read, a call is made instead."""

    _memory_at = float("-inf")
    _memory: tuple[int, int] = (0, 0)

    @property
    def _answers(self) -> list[str]:
        return [f"{self._prefix}:answers", *generations(self._prefix)]

    def _lease(self, key: bytes) -> str:
        return leases(self._prefix) + key.hex()

    @property
    def _answer_files(self) -> str:
        return self._run("answers-")

    @translated
    def find_answers(
        self, requests: Sequence[AnswerRequest], *, token: str, ttl_s: int, lease_s: float
    ) -> list[AnswerFound]:
        """Return kept answers, or who asks for them; reply in order.

        Args:
            requests: The answers.
            token: The process, for the leases of what it is to ask.
            ttl_s: Seconds for which an answer is kept.
            lease_s: Seconds for which others wait without a sign of life: see ``renew_leases``.
        """
        replies: list[AnswerFound] = []
        for start in range(0, len(requests), _AT_ONCE):
            some = requests[start : start + _AT_ONCE]
            keys, before = self._answers, leases(self._prefix)
            args: list[Any] = [ttl_s, round(1_000 * lease_s), token]
            for one in some:
                name = one.key.hex()
                keys.append(before + name)
                args += (name, one.how)
            found = self._call(answer_scripts.FIND_ANSWERS, keys, args)
            replies += [self._found(one, held) for one, held in zip(some, found, strict=True)]
        again = [at for at, one in enumerate(replies) if one.verdict == "hit" and not one.answer]
        if again:
            # What cannot be read is asked for anew.
            anew = [msgspec.structs.replace(requests[number], how="anew") for number in again]
            asked = self.find_answers(anew, token=token, ttl_s=ttl_s, lease_s=lease_s)
            for number, reply in zip(again, asked, strict=True):
                replies[number] = reply
        return replies

    def _found(self, request: AnswerRequest, held: bytes) -> AnswerFound:
        plain = _PLAIN.get(held)
        if plain is not None:
            return plain
        if held.startswith(b"!"):
            try:
                return AnswerFound("failed", failure=_decode_failure(held[1:]))
            except (msgspec.MsgspecError, RecursionError):
                return AnswerFound("free")
        # After the time and the cost.
        blob = held.split(b" ", 2)[-1]
        if blob.startswith(b"@"):
            loaded = self._loaded(request.key, blob)
            return AnswerFound("hit", None if loaded is None else _unpacked(loaded))
        return AnswerFound("hit", _unpacked(blob))

    def _loaded(self, key: bytes, blob: bytes) -> bytes | None:
        """Return the file of an answer; None if it is not there, or not for this process."""
        found = _FILE.match(blob)
        reference = found and Reference.decode(blob[found.end() :])
        if found is None or reference is None or reference.root != self._blobs.root:
            # The server's data must not make a process read elsewhere.
            return None
        try:
            return self._blobs.load(_file(found[1].decode(), key), reference.encode())
        except (LostDataError, StorageError):
            return None

    @translated
    def settle_answers(
        self, settled: Sequence[AnswerSettled], *, token: str, ttl_s: int, limit_mb: int
    ) -> list[bool]:
        """Keep answers, and end the leases for them; return which answers are kept.

        None is while the server has little memory left; then older answers make room, too.

        Args:
            settled: What came of the calls.
            token: The process that has the leases.
            ttl_s: Seconds for which an answer is kept.
            limit_mb: The most megabytes that all answers may take.
        """
        used, most = self._server_memory()
        is_full = is_crowded(used_bytes=used, most_bytes=most)
        room = 0 if is_full else room_bytes(limit_mb * _MEGABYTE, most_bytes=most)
        if is_full:
            self.shrink_answers()
        are_kept: list[bool] = []
        for start in range(0, len(settled), _AT_ONCE):
            some = settled[start : start + _AT_ONCE]
            # No two generations have the same name: the files of one go with it.
            new_name = secrets.token_hex(_NAME_CHARS // 2)
            blobs = [self._blob(one, room) for one in some]
            name = self._young_name(new_name) if any(map(self._is_file, blobs)) else new_name
            values = [self._value(one, blob, name) for one, blob in zip(some, blobs, strict=True)]
            keys, before = self._answers, leases(self._prefix)
            args: list[Any] = [ttl_s, room, token, round(1_000 * FREE_S), new_name]
            args += [self._answer_files, int(self._blobs.root is not None)]
            for one, value in zip(some, values, strict=True):
                end = "left" if one.end == "kept" and value is None else one.end
                failure = one.failure and b"!" + _encode(one.failure)
                key = one.key.hex()
                keys.append(before + key)
                args += (key, end, value or failure or b"")
            self._call(answer_scripts.SETTLE_ANSWERS, keys, args)
            are_kept += [value is not None for value in values]
        return are_kept

    def _blob(self, settled: AnswerSettled, room: int) -> bytes | None:
        """Return an answer as it is kept; None if it is not to be kept."""
        if settled.answer is None or settled.end != "kept":
            return None
        blob = _packed(settled.answer)
        is_too_large = len(blob) > room * _LARGEST_SHARE or len(blob) > _MOST_BYTES
        return None if is_too_large else blob

    def _is_file(self, blob: bytes | None) -> bool:
        return blob is not None and self._blobs.root is not None and len(blob) > _FILE_BYTES

    def _young_name(self, new_name: str) -> str:
        """Return the name of the youngest generation; ``new_name`` if the next answer begins one."""
        counters, *generations = self._answers
        numbers = range(_GENERATIONS)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(counters, "young", *(f"name:{number}" for number in numbers))
            for generation in generations:
                pipe.exists(generation)
            (young, *names), *are_there = pipe.execute()
        number = int(young) if young in (b"1", b"2", b"3") else 0
        name = names[number]
        return name.decode() if name and are_there[number] else new_name

    def _value(self, settled: AnswerSettled, blob: bytes | None, name: str) -> bytes | None:
        """Return the value of an answer, without the time; None if it is not kept."""
        if blob is None or settled.answer is None:
            return None
        if self._is_file(blob):
            try:
                held = self._keep(f"answers-{name}", _file(name, settled.key), blob)
            except StorageError:
                return None
            blob = f"@{name}:{len(blob)}".encode() + held
        cost = settled.answer.usage.cost_usd
        return b" %b %b" % (b"?" if cost is None else repr(cost).encode(), blob)

    def _server_memory(self) -> tuple[int, int]:
        """Return what the server uses and its limit, in bytes, as of some seconds ago; 0 if unknown."""
        now = time.monotonic()
        if now - self._memory_at > _MEMORY_S:
            self._memory_at = now
            try:
                info: dict[str, Any] = self._redis.info("memory")
                self._memory = (int(info["used_memory"]), int(info["maxmemory"]))
            except (RedisError, KeyError, ValueError, TypeError):
                # It may not be asked.
                self._memory = (0, 0)
        return self._memory

    @translated
    def renew_leases(self, keys: Sequence[bytes], *, token: str, lease_s: float) -> int:
        """Show that the calls for these answers go on; return how many leases this process has."""
        leases = [self._lease(key) for key in keys]
        return int(self._call(answer_scripts.RENEW_LEASES, leases, [token, round(1_000 * lease_s)]))

    @translated
    def answers_ended(self, keys: Sequence[str]) -> dict[str, str]:
        """Return which of some answers are ``kept``, and whose calls have ``failed`` for others, too.

        Args:
            keys: Keys of answers, in hex.
        """
        _, *generations = self._answers
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                for generation in generations:
                    pipe.hexists(generation, key)
                pipe.getrange(leases(self._prefix) + key, 0, 0)
            answers = pipe.execute()
        step = _GENERATIONS + 1
        ended = {}
        for number, key in enumerate(keys):
            *kept, lease = answers[number * step : (number + 1) * step]
            if any(kept):
                ended[key] = "kept"
            elif lease == b"!":
                ended[key] = "failed"
        return ended

    @translated
    def shrink_answers(self) -> int:
        """Delete the oldest generation of answers; return how many it had."""
        return int(self._call(answer_scripts.SHRINK_ANSWERS, self._answers, [self._answer_files]))

    @translated
    def clear_answers(self) -> int:
        """Delete all kept answers and their figures; return how many there were."""
        return int(self._call(answer_scripts.CLEAR_ANSWERS, self._answers, [self._answer_files]))

    @translated
    def count_answers(self, counts: AnswerCounts, *, ttl_s: int) -> None:
        """Count calls that were made, and answers that branches have got of each other."""
        counters, *_ = self._answers
        figures = {"hits": counts.hits, "misses": counts.misses, "saved": counts.saved_usd}
        with self._redis.pipeline(transaction=False) as pipe:
            for name, by in figures.items():
                pipe.hincrbyfloat(counters, name, by)
            pipe.expire(counters, 2 * ttl_s)
            answers = pipe.execute(raise_on_error=False)
        for (name, by), answer in zip(figures.items(), answers, strict=False):
            if isinstance(answer, Exception):
                # A counter that is not a number begins anew.
                self._redis.hset(counters, name, by)

    @translated
    def cache_stats(self) -> CacheStats:
        """Return the figures of the cache."""
        counters, *generations = self._answers
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(counters)
            for generation in generations:
                pipe.exists(generation)
            raw, *are_there = pipe.execute()
        fields = {name.decode(): _number(value) for name, value in raw.items()}

        def held(of: str) -> list[float]:
            # The counters of a generation that has expired are there until it is begun anew.
            values = (
                fields.get(f"{of}:{at}", 0.0) for at, is_there in enumerate(are_there) if is_there
            )
            return [value for value in values if value]

        return CacheStats(
            answers=max(0, int(sum(held("count")))),
            bytes=max(0, int(sum(held("bytes")))),
            hits=int(fields.get("hits", 0)),
            misses=int(fields.get("misses", 0)),
            kept=int(fields.get("kept", 0)),
            evicted=int(fields.get("evicted", 0)),
            saved_usd=fields.get("saved", 0.0),
            since=min(held("begun"), default=None),
        )


def generations(prefix: str) -> list[str]:
    """Return the keys of the hashes with kept answers."""
    return [f"{prefix}:answers:{number}" for number in range(_GENERATIONS)]


def leases(prefix: str) -> str:
    """Return how the keys of leases begin, before the key of the answer in hex."""
    return f"{prefix}:asking:"


def _number(value: bytes) -> float:
    try:
        number = float(value)
    except ValueError:
        return 0.0
    return number if isfinite(number) else 0.0


def _file(generation: str, key: bytes) -> str:
    return f"answers-{generation}/s0/{key.hex()}"
