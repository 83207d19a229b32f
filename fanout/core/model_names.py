"""The names of models that fanout itself gives a run."""

from __future__ import annotations

__all__ = ["READER_MODEL"]

# The function that reads a document; a run in which workers read has it as its model.
READER_MODEL = "fanout.inputs.reader:read"
