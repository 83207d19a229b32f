"""The branches of the Redis store that wait for an identical call of the batch lane.

Keys under ``{prefix}:batches``: ``:asked`` has of each key of an answer the call that leads, as ``task
item``, and when its end was seen; ``:joined:KEY`` the calls that follow, the first one first; ``:followed``
the keys that have followers.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from fanout.stores.redis.answer_cache import FREE_S, generations, leases
from fanout.stores.redis.base import run_keys, translated
from fanout.stores.redis.gathered import RedisGathered
from fanout.stores.redis.join_scripts import WAKE_JOINED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["RedisJoined"]

# A script blocks the server while it runs: for this many keys, or branches, it takes about 1 ms.
_AT_ONCE = 200
_WOKEN_AT_ONCE = 500
_PAGE = 1_000
NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})


class RedisJoined(RedisGathered):
    """The calls that lead, and those that follow."""

    @translated
    def joined_keys(self, cursors: tuple[int, int]) -> tuple[tuple[int, int], list[str]]:
        """Return a page of the keys of answers that calls lead or follow, those with followers first.

        Args:
            cursors: Those that the last page came with; zeros to begin.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.sscan(self._batches("followed"), cursors[0], count=_PAGE)
            pipe.hscan(self._batches("asked"), cursors[1], count=_PAGE)
            (followed_at, followed), (asked_at, asked) = pipe.execute()
        keys = dict.fromkeys(key.decode() for key in [*followed, *asked])
        return (int(followed_at), int(asked_at)), list(keys)

    @translated
    def wake_joined(
        self,
        epoch: int,
        keys: Sequence[str],
        *,
        most: int,
        grace_s: float,
        elsewhere: Mapping[str, str] = NOWHERE,
    ) -> int | None:
        """Make followers ready that no longer wait, and forget the leaders that have ended.

        Args:
            epoch: Of the leadership of this process.
            keys: Some of ``joined_keys``.
            most: The most branches to make ready.
            grace_s: Seconds for which an answer may be on its way after its branch has ended.
            elsewhere: ``answers_ended`` of the database that has the answers, if it is another one.

        Returns:
            How many are ready; None if another process leads.
        """
        names = [self._batches(part) for part in ("leader", "asked", "followed")]
        names += [self._ready, *generations(self._prefix)]
        woken = 0
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            while (left := min(_WOKEN_AT_ONCE, most - woken)) > 0:
                args: list[Any] = [epoch, self._ttl_s, run_keys(self._prefix), self._joined_prefix]
                args += [grace_s, left, leases(self._prefix), round(1_000 * FREE_S)]
                for key in some:
                    args += [key, elsewhere.get(key, "")]
                answer = cast("int | None", self._call(WAKE_JOINED, names, args))
                if answer is None:
                    return None
                woken += answer
                if answer < left:
                    break
        return woken
