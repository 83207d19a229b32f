"""The prompts of the LLM aggregate: the parts that they have, and their text.

The calls are branches of further stages. If the answers of a group do not fit one prompt, each call
reduces some of them, and the next stage reduces the results of these calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.aggregators.base import place
from fanout.aggregators.coverage import Tally
from fanout.aggregators.sources import PREAMBLE_TOKENS, Place
from fanout.core.citations import ID_CHARS
from fanout.core.errors import SpecError
from fanout.core.marks import mark_of
from fanout.core.tokens import BYTES_PER_TOKEN, estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.aggregators.base import Item

__all__ = ["Part", "fitted", "leaf_part", "part_tokens", "render_input", "room_tokens"]

# With less room, truncated answers would be too short to reduce.
_LEAST_ROOM = 64
_SEPARATOR = "\n\n"
# 60 bits of a hash of all answers: too many to guess, and few tokens.
_TAG_LENGTH = 12
_SAMPLE_FENCE = f"=== {'0' * _TAG_LENGTH}"
_SAMPLE_CITED = f"{_SAMPLE_FENCE} [s-{'0' * ID_CHARS}]"
# The rest of the window is for the chat template, and for errors of the estimate.
_SAFETY = 0.85
_NOTHING = Tally()


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a reduce call: an answer, or the partial reduction of several.

    Attributes:
        group: Its group.
        text: Its text in the prompt; empty for failed branches.
        count: The number of answers in it.
        failed: The number of its branches without an answer.
        key: Where it is from: see ``fanout.aggregators.nodes``.
        tally: What is behind it.
        place: Of an answer of a branch in a job with ``sources``: where it is from.
        sources: Of a reduction in such a job: the places that it cites, by id.
    """

    group: str
    text: str
    count: int = 1
    failed: int = 0
    key: int = 0
    tally: Tally = Tally()
    place: Place | None = None
    sources: dict[str, Place] = {}


def leaf_part(
    item: Item, *, key: int = 0, tally: Tally = _NOTHING, place_of: Place | None = None
) -> Part:
    """Return a branch as a part; a line with its origin precedes its answer.

    With the place of a source, that line has other brackets than the ids that are to be cited.
    """
    if item.output is None:
        return Part(group=item.group, text="", count=0, failed=1, key=key, tally=tally)
    # A name with line breaks could forge further lines of the prompt.
    shown = " ".join(place(item).split())
    line = f"[{shown}]" if place_of is None else f"({shown})"
    text = f"{line}\n{item.output.strip()}"
    return Part(group=item.group, text=text, key=key, tally=tally, place=place_of)


def room_tokens(*, context_tokens: int, template_tokens: int, answer_tokens: int) -> int:
    """Return how many estimated tokens of answers fit one prompt.

    Raises:
        SpecError: Too few fit.
    """
    room = int(context_tokens * _SAFETY) - template_tokens - answer_tokens - PREAMBLE_TOKENS
    if room < _LEAST_ROOM:
        raise SpecError(
            f"the context window of {context_tokens:,} tokens leaves no room for answers besides "
            f"the prompt ({template_tokens:,}) and the aggregate ({answer_tokens:,}); raise it, "
            "or lower aggregate_max_tokens",
            field="context_tokens",
        )
    return room


def fitted(parts: list[Part], room_tokens: int, bytes_per_token: float) -> list[Part]:
    """Return the parts of one prompt, of which the longest are cut by as little as makes all fit."""
    sizes = [part_tokens(part) for part in parts]
    limit = room_tokens
    left = room_tokens
    for done, size in enumerate(sorted(sizes)):
        # The longer parts share the room that the shorter ones do not need.
        limit = left // (len(sizes) - done)
        if size > limit:
            break
        left -= size
    return [
        part if size <= limit else _cut(part, limit, bytes_per_token)
        for part, size in zip(parts, sizes, strict=True)
    ]


def part_tokens(part: Part) -> int:
    """Return how many estimated tokens of a prompt a part takes."""
    fence = _SAMPLE_FENCE if part.place is None else _SAMPLE_CITED
    return estimate_tokens(_fenced(part.text, fence) + _SEPARATOR)


def _cut(part: Part, most: int, bytes_per_token: float) -> Part:
    total = estimate_tokens(part.text)
    shown, whole = (round(n * BYTES_PER_TOKEN / bytes_per_token) for n in (most, total))
    mark = f"\n[... cut: {shown:,} of {whole:,} tokens are shown]"
    room = most - part_tokens(msgspec.structs.replace(part, text=mark))
    keep = len(part.text) * max(room, 1) // total
    # Bytes are not spread evenly over a text: shorten it until it fits.
    while keep > 1 and estimate_tokens(part.text[:keep]) > room:
        keep = keep * 9 // 10
    return msgspec.structs.replace(part, text=part.text[:keep] + mark)


def render_input(parts: Sequence[Part], *, level: int) -> str:
    """Return the value of ``{input}``: the parts, each after a fence line. For ``level`` see NodePacker.

    The same line ends the last part, so that each part costs only one line: short answers are many.
    No text can contain the fence, which is derived from a hash of all texts. The same parts give
    the same prompt.
    """
    count = sum(part.count for part in parts)
    failed = sum(part.failed for part in parts)
    head = []
    if level:
        head.append(f"(These are partial results, made from {count:,} answers.)")
    if failed:
        total = count + failed
        head.append(f"({failed:,} of {total:,} answers are missing, because their calls failed.)")
    texts = [part.text for part in parts if part.text]
    fence = _fence_of(texts)
    head.append(f"(Each begins below a line {fence} and ends at the next; all between is content.)")
    return _SEPARATOR.join([*head, *(_fenced(text, fence) for text in texts), fence])


def _fence_of(texts: Sequence[str]) -> str:
    return f"=== {mark_of(*texts, length=_TAG_LENGTH)}"


def _fenced(text: str, fence: str) -> str:
    return f"{fence}\n{text}"
