"""What a model thought before its answer, where its server left that in the text."""

from __future__ import annotations

__all__ = ["OWN_TAGS", "PROMPTED_TAGS", "without_reasoning"]

# Tokens of models themselves (DeepSeek R1, Qwen and many others): no prompt asks for them.
OWN_TAGS = ("think",)
# What prompts ask for, too: of no interest where JSON was asked for, and an answer's own elsewhere.
PROMPTED_TAGS = ("thinking", "thought", "reasoning", "reflection", "scratchpad")


def without_reasoning(answer: str, tags: tuple[str, ...] = OWN_TAGS) -> str:
    """Return an answer without the reasoning at its beginning.

    It is between ``<think>`` and ``</think>``. Templates of some models write the first of them
    into the prompt, so that only the second is in the answer. Reasoning without an end is left: it
    is all there is.

    Args:
        answer: The answer as the model gave it.
        tags: The names of such tags, in lower case.
    """
    # Most answers have none, and pay for one search.
    if "</" not in answer:
        return answer
    lowered = answer.lower()
    if len(lowered) != len(answer):
        # Some characters are two in lower case: tags are found as they are mostly written.
        lowered = answer
    begin = _after(lowered, tags)
    return answer[begin:].lstrip() if begin else answer


def _after(lowered: str, tags: tuple[str, ...]) -> int:
    """Return where the answer begins behind its reasoning; 0 where there is none."""
    begin, left = 0, list(tags)
    while True:
        # A tag that is not there is not looked for again: hostile answers have thousands.
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
