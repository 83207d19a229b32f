"""What the names of models say about them."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["ANY_MODEL", "READER_MODEL", "has_fences", "takes_seed"]

# The function that reads a document; a run in which workers read has it as its model.
READER_MODEL = "fanout.inputs.reader:read"
# The name under which a price of a job holds for all models that have none of their own.
ANY_MODEL = "*"
_PROVIDERS = ("openai/", "anthropic/", "gemini/", "litellm/")


def takes_seed(model: str) -> bool:
    """Say whether calls of a model may have a seed; Anthropic's API refuses one."""
    return not model.startswith("anthropic/")


@lru_cache(maxsize=256)
def has_fences(model: str) -> bool:
    """Say whether prompts of a model have fences, unless the job says so: see ``fanout.inputs.fences``.

    A function gets the bare text, and so does ``fake``, unless it is ``fake?fence=1``.
    """
    if model == "local" or model.startswith(_PROVIDERS):
        return True
    name, _, options = model.partition("?")
    return name == "fake" and "fence=1" in options.split("&")
