"""Wakes the branches that wait for the answer of an identical call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.stores import RedisStore

__all__ = ["JoinedCalls"]

# The most branches that are made ready on one beat.
_AT_ONCE = 4_000
# Seconds until an answer is taken for lost whose branch has ended.
_GRACE_S = 10.0


class JoinedCalls:
    """Looks at a part of the calls that others follow on each beat, and at all of them in turn.

    Args:
        store: The calls.
        answers: The kept answers; None if the store has them. An embedded run has a database of its own.
    """

    def __init__(self, store: RedisStore, answers: RedisStore | None = None) -> None:
        self._store = store
        self._answers = answers
        self._cursors = (0, 0)

    def wake(self, epoch: int) -> int:
        """Make branches ready whose answer is there, or will not come; return how many.

        Raises:
            BrokerError: The server does not answer.
        """
        cursors, keys = self._store.joined_keys(self._cursors)
        if not keys:
            self._cursors = cursors
            return 0
        elsewhere = self._answers.answers_ended(keys) if self._answers is not None else {}
        woken = self._store.wake_joined(
            epoch, keys, most=_AT_ONCE, grace_s=_GRACE_S, elsewhere=elsewhere
        )
        woken = woken or 0
        if woken < _AT_ONCE:
            # Else some of these may have further followers.
            self._cursors = cursors
        return woken
