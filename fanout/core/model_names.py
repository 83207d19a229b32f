"""What the names of models say about them."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["ANY_MODEL", "READER_MODEL", "has_fences", "keeps_answers", "takes_seed"]

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
    return _is_real(model) or _is_fake_with("fence=1", model)


def keeps_answers(model: str) -> bool:
    """Say whether answers of a model are kept: see ``fanout.llm.base.identity_of``.

    Those of a function are not, and those of ``fake`` only if it is ``fake?cache=1``.
    """
    return _is_real(model) or _is_fake_with("cache=1", model)


def _is_real(model: str) -> bool:
    return model == "local" or model.startswith(_PROVIDERS)


def _is_fake_with(option: str, model: str) -> bool:
    name, _, options = model.partition("?")
    return name == "fake" and option in options.split("&")
