"""The plan of the LLM aggregate: which answers go into which call, and the text of its prompt.

The calls are branches of further stages. If the answers of a group do not fit one prompt, each call
reduces some of them, and the next stage reduces the results of these calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.aggregators.base import place
from fanout.core.errors import SpecError
from fanout.core.marks import mark_of
from fanout.core.tokens import BYTES_PER_TOKEN, estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.aggregators.base import Item

__all__ = ["Part", "leaf_parts", "plan", "render_input", "room_tokens"]

# With less room, truncated answers would be too short to reduce.
_LEAST_ROOM = 64
# The lines that render_input puts before the parts.
_PREAMBLE_TOKENS = 80
_SEPARATOR = "\n\n"
# 60 bits of a hash of all answers: too many to guess, and few tokens.
_TAG_LENGTH = 12
_SAMPLE_FENCE = f"=== {'0' * _TAG_LENGTH}"
# The rest of the window is for the chat template, and for errors of the estimate.
_SAFETY = 0.85


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a reduce call: an answer, or the partial reduction of several.

    Attributes:
        group: Its group.
        text: Its text in the prompt; empty for failed branches.
        count: The number of answers in it.
        failed: The number of its branches without an answer.
    """

    group: str
    text: str
    count: int = 1
    failed: int = 0


def leaf_parts(items: Iterable[Item]) -> Iterator[Part]:
    """Yield each branch as a part; a line with its origin precedes an answer."""
    for item in items:
        if item.output is None:
            yield Part(group=item.group, text="", count=0, failed=1)
        else:
            # A name with line breaks could forge further lines of the prompt.
            shown = " ".join(place(item).split())
            yield Part(group=item.group, text=f"[{shown}]\n{item.output.strip()}")


def room_tokens(*, context_tokens: int, template_tokens: int, answer_tokens: int) -> int:
    """Return how many estimated tokens of answers fit one prompt.

    Raises:
        SpecError: Too few fit.
    """
    room = int(context_tokens * _SAFETY) - template_tokens - answer_tokens - _PREAMBLE_TOKENS
    if room < _LEAST_ROOM:
        raise SpecError(
            f"the context window of {context_tokens:,} tokens leaves no room for answers besides "
            f"the prompt ({template_tokens:,}) and the aggregate ({answer_tokens:,}); raise it, "
            "or lower aggregate_max_tokens",
            field="context_tokens",
        )
    return room


def plan(
    parts: Sequence[Part],
    *,
    room_tokens: int,
    level: int,
    bytes_per_token: float = BYTES_PER_TOKEN,
) -> list[list[Part]]:
    """Pack the parts of one group, in order, into few prompts.

    At level 0 a long answer may have a prompt of its own, and it is truncated only if it is longer
    than a prompt. At higher levels the parts are reductions, and each prompt but the last holds at
    least two of them, truncated if necessary. So each level has at most half as many parts as the
    previous one, and the tree ends.

    Args:
        parts: The parts of one group.
        room_tokens: The tokens that fit one prompt.
        level: 0 if the parts are the answers of branches, more if they are reductions.
        bytes_per_token: For what a prompt says of an answer that was cut.
    """
    missing = sum(part.failed for part in parts if not part.text)
    shown = [part for part in parts if part.text]
    if not shown:
        return []
    bins = _pack(shown, room_tokens, 2 if level else 1, bytes_per_token)
    if missing:
        bins[0] = [*bins[0], Part(group=parts[0].group, text="", count=0, failed=missing)]
    return bins


def _pack(
    parts: Sequence[Part], room_tokens: int, least: int, bytes_per_token: float
) -> list[list[Part]]:
    bins: list[list[Part]] = [[]]
    used = 0
    for part in parts:
        size = _size(part)
        if used + size > room_tokens and len(bins[-1]) >= least:
            bins.append([])
            used = 0
        bins[-1].append(part)
        used += size
    return [_fit(some, room_tokens, bytes_per_token) for some in bins]


def _fit(parts: list[Part], room_tokens: int, bytes_per_token: float) -> list[Part]:
    """Truncate the longest parts of one prompt, by as little as makes all parts fit."""
    sizes = [_size(part) for part in parts]
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


def _size(part: Part) -> int:
    return estimate_tokens(_fenced(part.text, _SAMPLE_FENCE) + _SEPARATOR)


def _cut(part: Part, most: int, bytes_per_token: float) -> Part:
    total = estimate_tokens(part.text)
    shown, whole = (round(n * BYTES_PER_TOKEN / bytes_per_token) for n in (most, total))
    mark = f"\n[... cut: {shown:,} of {whole:,} tokens are shown]"
    room = most - estimate_tokens(_fenced(mark, _SAMPLE_FENCE) + _SEPARATOR)
    keep = len(part.text) * max(room, 1) // total
    # Bytes are not spread evenly over a text: shorten it until it fits.
    while keep > 1 and estimate_tokens(part.text[:keep]) > room:
        keep = keep * 9 // 10
    return msgspec.structs.replace(part, text=part.text[:keep] + mark)


def render_input(parts: Sequence[Part], *, level: int) -> str:
    """Return the value of ``{input}``: the parts, each after a fence line. For ``level`` see plan.

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
