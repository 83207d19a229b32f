"""The prompt caches of the mock providers.

A prefix is cached once the first request with it has been processed: one that is sent at the same
time pays in full. Each read renews an entry.
Sources: https://platform.openai.com/docs/guides/prompt-caching and
https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING

from billing.ledger import count_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AutomaticCache", "MarkedCache"]

_SHORTEST, _STEP, _ROUTED_BY = 1_024, 128, 256
_BYTES_PER_TOKEN = 4
_MACHINES = 8
_MOST_PER_MINUTE, _MINUTE_S = 15, 60.0
# A cache looks at so many blocks before a mark for an earlier entry.
_LOOKBACK = 20


class _Entries:
    """Prefixes with the time from which they can be read, and until which."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all: dict[bytes, tuple[float, float]] = {}

    def read(self, key: bytes, lasts_s: float) -> bool:
        """Say whether an entry can be read, and renew it."""
        now = self._clock()
        ready_at, until = self._all.get(key, (0.0, 0.0))
        if not ready_at <= now < until:
            return False
        self._all[key] = (ready_at, max(until, now + lasts_s))
        return True

    def write(self, key: bytes, lasts_s: float, after_s: float) -> None:
        """Keep an entry that can be read ``after_s`` from now."""
        now = self._clock()
        ready_at, until = self._all.get(key, (0.0, 0.0))
        is_live = now < until
        ready_at = min(ready_at, now + after_s) if is_live else now + after_s
        self._all[key] = (ready_at, max(until, now + after_s + lasts_s))


class AutomaticCache:
    """OpenAI's: prefixes from 1,024 tokens in steps of 128, on the machine that a request is sent to.

    The first 256 tokens and ``prompt_cache_key`` decide on the machine; what is more than 15 requests
    a minute with the same ones goes to further machines.

    Args:
        clock: Returns monotonic seconds.
        lasts_s: How long an entry is kept after it was last used.
    """

    def __init__(self, clock: Callable[[], float], lasts_s: float) -> None:
        self._clock = clock
        self._lasts_s = lasts_s
        self._entries = _Entries(clock)
        self._sent: dict[bytes, deque[float]] = {}

    def read(self, prompt: bytes, cache_key: str, after_s: float) -> int:
        """Return how many tokens of a prompt are cached; cache it ``after_s`` from now."""
        tokens = count_tokens(prompt)
        if tokens < _SHORTEST:
            return 0
        machine = self._machine(prompt, cache_key)
        steps = range(_SHORTEST, tokens + 1, _STEP)
        digest = hashlib.blake2b(machine, digest_size=16)
        keys, done = {}, 0
        for length in steps:
            digest.update(prompt[done : length * _BYTES_PER_TOKEN])
            done = length * _BYTES_PER_TOKEN
            keys[length] = digest.digest()
        found = 0
        for length, key in keys.items():
            if self._entries.read(key, self._lasts_s):
                found = length
            self._entries.write(key, self._lasts_s, after_s)
        return found

    def _machine(self, prompt: bytes, cache_key: str) -> bytes:
        head = prompt[: _ROUTED_BY * _BYTES_PER_TOKEN]
        route = hashlib.blake2b(head + b"\0" + cache_key.encode(), digest_size=8).digest()
        sent, now = self._sent.setdefault(route, deque()), self._clock()
        while sent and sent[0] <= now - _MINUTE_S:
            sent.popleft()
        sent.append(now)
        overflow = (len(sent) - 1) // _MOST_PER_MINUTE
        return ((int.from_bytes(route, "big") + overflow) % _MACHINES).to_bytes(1, "big")


class MarkedCache:
    """Anthropic's: prefixes that end with a marked block."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._entries = _Entries(clock)

    def use(
        self,
        blocks: Sequence[bytes],
        marks: dict[int, float],
        *,
        shortest: int,
        after_s: float,
    ) -> tuple[int, dict[float, int]]:
        """Return the tokens that are read, and those that are written, by how long they are kept.

        Args:
            blocks: The blocks of a prompt in their order.
            marks: How long, in seconds, a prefix is kept, by the number of its last block.
            shortest: Tokens of the shortest prefix that is cached.
            after_s: Seconds until what is written can be read.
        """
        digest, size, keys, ends = hashlib.blake2b(digest_size=16), 0, [], []
        for block in blocks:
            # Blocks are apart: the same text in other blocks is another prefix.
            digest.update(len(block).to_bytes(8, "big") + block)
            size += len(block)
            keys.append(digest.digest())
            ends.append(-(-size // _BYTES_PER_TOKEN))
        used = {at: lasts_s for at, lasts_s in sorted(marks.items()) if ends[at] >= shortest}
        if not used:
            return 0, {}
        first = max(0, min(used) - _LOOKBACK)
        read = -1
        for at in range(first, max(used) + 1):
            if self._entries.read(keys[at], used.get(at, max(used.values()))):
                read = at
        before = ends[read] if read >= 0 else 0
        written: dict[float, int] = {}
        is_read = before
        for at, lasts_s in used.items():
            self._entries.write(keys[at], lasts_s, after_s)
            if ends[at] > before:
                written[lasts_s] = written.get(lasts_s, 0) + ends[at] - before
                before = ends[at]
        return is_read, written
