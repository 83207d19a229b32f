"""How a prompt has passages: ``{context}``, in the room that there is."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.passage_uses import PassageUse
from fanout.core.tokens import utf8_bytes
from fanout.inputs.fences import FENCE_BYTES, OwnText, blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.retrieval.passages import Passage

__all__ = ["NO_PASSAGE", "Context", "context_of", "named", "rendered", "room_bytes"]

# What a prompt says where nothing was found.
NO_PASSAGE = "[no passage was found]"
# What it says above passages whose texts it has not.
_WITHOUT_TEXTS = "[the passages that were found, without their texts]"
_CUT = " [...]"
_BETWEEN = "\n\n"
# A shorter piece of a passage says nothing.
_LEAST_BYTES = 80
# Tokens for an answer without a limit, at most; and the part of a window that passages may take where
# what is known of it is a guess.
_ANSWER_TOKENS = 1_024
_SAFE = 0.9


class Context(NamedTuple):
    """The passages of a prompt.

    Attributes:
        text: What stands for ``{context}``: where texts have fences, each passage has its own.
        uses: The passages that were found, best first.
    """

    text: str
    uses: tuple[PassageUse, ...]


def rendered(passage: Passage, text: str) -> str:
    """Return a passage as prompts have it: its id in brackets, where it is from, and its text."""
    place = " > ".join(filter(None, (passage.source, passage.title)))
    return f"[{passage.id}]{place and f' {place}:'} {text.strip()}"


def named(uses: Sequence[PassageUse]) -> str:
    """Return what a prompt says of passages whose texts are not there: their ids, and where they are from."""
    shown = [f"[{use.id}] {use.source}".strip() for use in uses if use.share > 0]
    return "\n".join([_WITHOUT_TEXTS, *shown]) if shown else NO_PASSAGE


def room_bytes(
    window_tokens: int, *, bytes_per_token: float, prompt_bytes: int, max_tokens: int | None
) -> int:
    """Return how many bytes of passages fit into the window of a model.

    Args:
        window_tokens: The tokens of a prompt and its answer together.
        bytes_per_token: The bytes of a token, as far as that is known.
        prompt_bytes: The rest of the prompt, with the system prompt.
        max_tokens: The longest answer; None is not known.
    """
    answer = min(_ANSWER_TOKENS, window_tokens // 4) if max_tokens is None else max_tokens
    tokens = int(window_tokens * _SAFE) - answer - ceil(prompt_bytes / bytes_per_token)
    return max(0, int(tokens * bytes_per_token))


def context_of(passages: Sequence[Passage], room: int, *, is_fenced: bool = False) -> Context:
    """Return the passages for a prompt with so many bytes of room, the best ones first.

    The last one that fits in part is cut; those after it are left out. If ``is_fenced``, fences take room.
    """
    texts: list[str] = []
    between = len(_BETWEEN) + FENCE_BYTES * is_fenced
    uses: list[PassageUse] = []
    left = room
    for passage in passages:
        text, share = _fitted(passage, left - between)
        # The one after a cut passage is no better than what was cut of it.
        left = 0 if share < 1 else left - utf8_bytes(text) - between
        texts += filter(None, [text])
        score = None if passage.score is None else round(passage.score, 4)
        use = PassageUse(
            id=passage.id, source=passage.source, title=passage.title, score=score, share=share
        )
        uses.append(use)
    return Context(blocks("passage", texts) if texts else OwnText(NO_PASSAGE), tuple(uses))


def _fitted(passage: Passage, room: int) -> tuple[str, float]:
    """Return as much of a passage as fits, as a prompt has it, and which part of its text that is."""
    whole = rendered(passage, passage.text)
    return (whole, 1.0) if utf8_bytes(whole) <= room else _cut(passage, room)


def _cut(passage: Passage, room: int) -> tuple[str, float]:
    """Return the beginning of a passage that fits, and which part of its text that is."""
    text = passage.text.strip()
    frame = utf8_bytes(rendered(passage, _CUT))
    if room - frame < _LEAST_BYTES:
        return "", 0.0
    kept = text.encode("utf-8", "replace")[: room - frame].decode("utf-8", "ignore")
    # At the end of a word, where the last one is not very long.
    words = kept.rsplit(None, 1)[0]
    if len(words) > len(kept) // 2:
        kept = words
    return rendered(passage, kept + _CUT), round(len(kept) / max(1, len(text)), 3)
