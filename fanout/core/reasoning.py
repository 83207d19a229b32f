"""Removal of a model's reasoning from an answer, for servers that leave it in the text."""

from __future__ import annotations

__all__ = ["OWN_TAGS", "PROMPTED_TAGS", "without_reasoning"]

# Special tokens of the models themselves (DeepSeek R1, Qwen and many others).
OWN_TAGS = ("think",)
# Tags that prompts request as well: they are removed before JSON, and part of any other answer.
PROMPTED_TAGS = ("thinking", "thought", "reasoning", "reflection", "scratchpad")


def without_reasoning(answer: str, tags: tuple[str, ...] = OWN_TAGS) -> str:
    """Return an answer without the reasoning at its beginning.

    Reasoning is between ``<think>`` and ``</think>``. The chat templates of some models put the
    opening tag into the prompt, so that the answer has only the closing one. Reasoning without an
    end stays, as there is no other text. ``tags`` are in lower case.
    """
    # The fast path: most answers have no tag.
    if "</" not in answer:
        return answer
    lowered = answer.lower()
    if len(lowered) != len(answer):
        # Some characters become two in lower case, which would shift the offsets.
        lowered = answer
    begin = _after(lowered, tags)
    return answer[begin:].lstrip() if begin else answer


def _after(lowered: str, tags: tuple[str, ...]) -> int:
    """Return the offset behind the reasoning; 0 if there is none."""
    begin, left = 0, list(tags)
    while True:
        # A missing tag is not searched again: a hostile answer has thousands of tags.
        ends = {tag: end for tag in left if (end := lowered.find(f"</{tag}>", begin)) >= 0}
        left = list(ends)
        if not ends:
            return begin
        tag, end = min(ends.items(), key=lambda item: item[1])
        opening = f"<{tag}>"
        opened = lowered.find(opening, begin, end)
        if opened >= 0 and lowered[begin:opened].strip():
            return begin
        begin = end + len(f"</{tag}>")
