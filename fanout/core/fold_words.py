"""The words by which the calls of the fold ``refine`` are told, and tell, what they write."""

from __future__ import annotations

__all__ = ["NOTHING_TO_ADD", "SCRATCHPAD"]

# What a call writes in place of an answer that would be the same as before.
NOTHING_TO_ADD = "NOTHING TO ADD"
# The line between an answer and the notes for the next call.
SCRATCHPAD = "SCRATCHPAD"
