"""Prompts without their fences, for models that answer by what they are asked."""

from __future__ import annotations

import re

__all__ = ["bare", "fenced_texts"]

_BLOCK = re.compile(r"<(\w+) id=(\w+)>\n(.*?)\n</\1 id=\2>", re.DOTALL)


def bare(prompt: str) -> str:
    """Return a prompt with the texts of its blocks in place of these."""
    return _BLOCK.sub(r"\3", prompt)


def fenced_texts(prompt: str) -> list[str]:
    """Return the texts between fences."""
    return [text for _, _, text in _BLOCK.findall(prompt)]
