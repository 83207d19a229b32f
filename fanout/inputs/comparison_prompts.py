"""The prompts by which a model compares two answers, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import SpecError
from fanout.core.tokens import estimate_tokens
from fanout.inputs.fences import block

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["comparison_frame", "comparison_prompt", "comparison_room", "fitted", "winner_of"]

_HEAD = """You compare two answers{to_task}. Judge them by {criteria}"""
_TAIL = """Write your reasons first, in a few short sentences about both answers and the criteria. Then \
name the winner: A or B, or tie if neither is better. Which answer comes first says nothing about it, and \
longer is not better."""
_WINNERS = {"A": 1, "B": -1, "tie": 0}
# The rest of the window is for the chat template, and for errors of the estimate.
_SAFETY = 0.85
_LEAST_ROOM = 64
_MARK_TOKENS = 8


def comparison_frame(criteria: Sequence[str], *, has_task: bool) -> str:
    """Return a prompt without its answers and task."""
    return comparison_prompt(criteria, "" if has_task else None, "", "")


def comparison_prompt(
    criteria: Sequence[str], task: str | None, first: str, second: str, *, is_fenced: bool = True
) -> str:
    """Return the prompt by which a model compares two answers.

    What the prompts of one task share comes first.

    Args:
        criteria: What makes an answer better.
        task: What the answers are to; None if they are to different tasks.
        first: The answer that is called A.
        second: The answer that is called B.
        is_fenced: Whether fences stand around task and answers, which these cannot forge; else plain tags.
    """
    head = _HEAD.replace("{to_task}", "" if task is None else " to a task")
    if len(criteria) == 1:
        head = head.replace("{criteria}", f"this criterion:\n\n{criteria[0]}")
    else:
        listed = "\n".join(f"{number}. {one}" for number, one in enumerate(criteria, 1))
        head = head.replace("{criteria}", f"these criteria:\n\n{listed}")
    texts = {} if task is None else {"task": task}
    texts |= {"answer_A": first, "answer_B": second}
    around = block if is_fenced else _tagged
    blocks = [around(name, text) for name, text in texts.items()]
    return "\n\n".join([head, *blocks, _TAIL])


def _tagged(name: str, text: str) -> str:
    return f"<{name}>\n{text}\n</{name}>"


def comparison_room(*, context_tokens: int, frame_tokens: int, answer_tokens: int) -> int:
    """Return how many estimated tokens of answers and task fit a prompt.

    Raises:
        SpecError: Too few fit.
    """
    room = int(context_tokens * _SAFETY) - frame_tokens - answer_tokens
    if room < _LEAST_ROOM:
        raise SpecError(
            f"the context window of {context_tokens:,} tokens leaves no room for two answers besides "
            f"the criteria ({frame_tokens:,}) and the verdict ({answer_tokens:,}); raise it, or lower "
            "aggregate_max_tokens",
            field="context_tokens",
        )
    return room


def fitted(texts: Sequence[str], room_tokens: int) -> list[str]:
    """Return texts of which the longest are cut, by as little as makes all fit together."""
    sizes = [estimate_tokens(text) for text in texts]
    if sum(sizes) <= room_tokens:
        return list(texts)
    limit = left = room_tokens
    for done, size in enumerate(sorted(sizes)):
        # Longer ones share the room that shorter ones do not need.
        limit = left // (len(sizes) - done)
        if size > limit:
            break
        left -= size
    return [
        text if size <= limit else _cut(text, limit)
        for text, size in zip(texts, sizes, strict=True)
    ]


def _cut(text: str, most_tokens: int) -> str:
    room = max(1, most_tokens - _MARK_TOKENS)
    keep = len(text) * room // estimate_tokens(text)
    # Bytes are not spread evenly over a text: shorten it until it fits.
    while keep > 1 and estimate_tokens(text[:keep]) > room:
        keep = keep * 9 // 10
    return f"{text[:keep]}\n[... cut]"


def winner_of(verdict: str) -> int:
    """Return the verdict of a call: 1 for the first answer, -1 for the second, 0 for a tie."""
    return _WINNERS[msgspec.json.decode(verdict)["winner"]]
