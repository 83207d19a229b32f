"""What the names of models say about them."""

from __future__ import annotations

__all__ = ["ANY_MODEL", "READER_MODEL", "takes_seed"]

# The function that reads a document; a run in which workers read has it as its model.
READER_MODEL = "fanout.inputs.reader:read"
# The name under which a price of a job holds for all models that have none of their own.
ANY_MODEL = "*"


def takes_seed(model: str) -> bool:
    """Say whether calls of a model may have a seed; Anthropic's API refuses one."""
    return not model.startswith("anthropic/")
