"""The fold ``cluster`` within a group: its first nodes have answers that are alike.

All answers of a group are in memory as it is packed, so that no file is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.aggregators import Part, ScatteredTallies, Tally, nodes_of, part_tokens
from fanout.policy.clusters import Clusters, Vocabulary, WordIndex
from fanout.policy.postings import Sketches
from workers.reduce.clustering import prompts_of, words_of_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.aggregators import Node
    from fanout.policy.clusters import Sketch

__all__ = ["clustered_nodes"]


def clustered_nodes(
    parts: Sequence[Part],
    *,
    room_tokens: int,
    bytes_per_token: float,
    cites: bool,
    look: Callable[[], None],
) -> Iterator[Node]:
    """Yield the first nodes of a group, each of answers that are alike.

    Args:
        parts: All branches of the group, in the order of the input.
        room_tokens: The tokens that fit a prompt.
        bytes_per_token: See ``NodePacker``.
        cites: See ``NodePacker``.
        look: Is called after each step of a few milliseconds; what it raises ends the nodes.
    """
    scattered = ScatteredTallies()
    moved = [structs.replace(part, tally=scattered.of(part.tally)) for part in parts]
    shown = [part for part in moved if part.text]
    failed = [part for part in moved if not part.text]
    prompts = _prompts(shown, room_tokens, look)
    for at, some in enumerate(prompts, 1):
        if at == len(prompts) and failed:
            tally = Tally.total(part.tally for part in failed)
            none = Part(group=parts[0].group, text="", count=0, failed=tally.branches, tally=tally)
            some.append(none)
        yield from nodes_of(
            some, room_tokens=room_tokens, level=0, bytes_per_token=bytes_per_token, cites=cites
        )


def _prompts(parts: list[Part], room_tokens: int, look: Callable[[], None]) -> list[list[Part]]:
    """Return the answers of each prompt; each is in one."""
    sizes = list(map(part_tokens, parts))
    if sum(sizes) <= room_tokens:
        return [parts] if parts else []
    vocabulary = Vocabulary()
    for part in parts:
        vocabulary.add(words_of_part(part))
        look()
    sketches = (vocabulary.sketch(words_of_part(part)) for part in parts)
    clusters: Clusters[Sketch] = Clusters(WordIndex(), Sketches([{}]))
    found = prompts_of(sizes, sketches, clusters, WordIndex(), room_tokens, look)
    return [[parts[number] for number in some] for some in found]
