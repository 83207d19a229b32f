"""The packing of answers into the prompts of a tree: one prompt is a node.

Where a node ends depends on the parts near its end only: of the parts at which it may end, it is the one
with the smallest key, and a key is a hash of where an answer is from. So a changed answer changes its own
node, and the others keep their parts, byte by byte: their calls are found in the cache of answers. Nodes
come one by one, so that the first calls begin while the last answers are still to come.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from fanout.aggregators.coverage import Tally
from fanout.aggregators.llm import Part, fitted, part_tokens
from fanout.aggregators.sources import spare_tokens
from fanout.core.tokens import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Node", "NodePacker", "nodes_of", "part_key"]

# A node ends where it is at least so full.
_LEAST_FULL = 0.6


def part_key(*origin: object) -> int:
    """Return the key of a part: 64 bits that say where it is from, and nothing of what it says."""
    text = "\0".join(map(str, origin)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of one prompt.

    Attributes:
        parts: The parts, cut where they do not fit; those without a text are one, the last.
        taken: How many parts it was made of.
        key: Its key, as a part of the next level.
        tally: What is behind it.
    """

    parts: list[Part]
    taken: int
    key: int
    tally: Tally = Tally()

    @property
    def count(self) -> int:
        """The number of answers in it."""
        return sum(part.count for part in self.parts)

    @property
    def failed(self) -> int:
        """The number of branches without an answer."""
        return sum(part.failed for part in self.parts)


class NodePacker:
    """Packs the parts of one group, in order, into prompts.

    At level 0 a long answer may have a prompt of its own, and it is cut only if it is longer than a
    prompt. At higher levels the parts are reductions, and each prompt but the last holds at least two of
    them, cut if necessary. So each level has at most half as many parts as the one before, and the tree
    ends.

    Args:
        room_tokens: The tokens that fit one prompt.
        level: 0 if the parts are the answers of branches, more if they are reductions.
        bytes_per_token: For what a prompt says of an answer that was cut.
        cites: Whether the prompts cite sources. Parts are then cut by less, as what is cut loses its
            citations: they get the room for the prompt's other words that these do not need.
    """

    def __init__(
        self,
        *,
        room_tokens: int,
        level: int,
        bytes_per_token: float = BYTES_PER_TOKEN,
        cites: bool = False,
    ) -> None:
        self._room = room_tokens
        self._level = level
        self._least = 2 if level else 1
        self._bytes_per_token = bytes_per_token
        self._cites = cites
        self._parts: list[Part] = []
        self._sizes: list[int] = []
        self._used = 0
        self.count = 0

    def add(self, part: Part) -> Iterator[Node]:
        """Add a part; yield the nodes that no later part can change."""
        size = part_tokens(part) if part.text else 0
        self._parts.append(part)
        self._sizes.append(size)
        self._used += size
        if not part.text:
            # No node ends here, and to look for one among all parts takes long after many failures.
            return
        # A node that ends with the last part may still get branches without an answer.
        while self._used > self._room and 0 < (end := self._end()) < len(self._parts):
            yield self._take(end)

    def finish(self) -> Iterator[Node]:
        """Yield the nodes of the parts that are left."""
        while self._used > self._room and (end := self._end()):
            yield self._take(end)
        if self._used:
            yield self._take(len(self._parts))

    def _end(self) -> int:
        """Return after how many parts the first node ends; 0 if it is not clear yet."""
        used = shown = end = 0
        least_key: int | None = None
        for at, (part, size) in enumerate(zip(self._parts, self._sizes, strict=True), 1):
            if not part.text:
                continue
            used += size
            shown += 1
            if used > self._room and end:
                break
            if shown < self._least:
                continue
            if used < _LEAST_FULL * self._room or used > self._room:
                # The best so far, if no part that follows makes it fuller, and fits.
                end = at
            elif least_key is None or part.key <= least_key:
                end, least_key = at, part.key
        return self._after_failed(end) if end else 0

    def _after_failed(self, end: int) -> int:
        """Return an end that has the branches without an answer that follow it."""
        while end < len(self._parts) and not self._parts[end].text:
            end += 1
        return end

    def _take(self, end: int) -> Node:
        parts, self._parts = self._parts[:end], self._parts[end:]
        used = sum(self._sizes[:end])
        self._used -= used
        self._sizes = self._sizes[end:]
        self.count += 1
        shown = [part for part in parts if part.text]
        missing = sum(part.failed for part in parts if not part.text)
        tally = Tally.total(part.tally for part in parts)
        room = self._room
        if self._cites and used > room:
            room += spare_tokens(
                level=self._level,
                count=sum(part.count for part in parts),
                tally=tally.with_cuts(cut=len(shown)),
                bytes_per_token=self._bytes_per_token,
            )
        made = fitted(shown, room, self._bytes_per_token)
        cut = sum(one is not whole for one, whole in zip(made, shown, strict=True))
        tally = tally.with_cuts(cut=cut)
        if missing:
            made = [*made, Part(group=parts[0].group, text="", count=0, failed=missing)]
        key = part_key(self._level, shown[-1].key)
        return Node(parts=made, taken=end, key=key, tally=tally)


def nodes_of(
    parts: Iterable[Part],
    *,
    room_tokens: int,
    level: int,
    bytes_per_token: float = BYTES_PER_TOKEN,
    cites: bool = False,
) -> Iterator[Node]:
    """Yield the nodes of all parts of one group: see NodePacker."""
    packer = NodePacker(
        room_tokens=room_tokens, level=level, bytes_per_token=bytes_per_token, cites=cites
    )
    for part in parts:
        yield from packer.add(part)
    yield from packer.finish()
