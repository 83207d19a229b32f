"""Model strings: the adapter that a name selects, and its context window."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING

from fanout.core import redaction as secrets
from fanout.core.errors import ModelError
from fanout.llm.base import LLM
from fanout.llm.callables import CallableLLM, is_registered, load_callable, resolve_callable
from fanout.llm.fake import FakeLLM
from fanout.llm.prices import window_of

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = [
    "LOCAL_CONTEXT_TOKENS",
    "context_tokens",
    "known_context_tokens",
    "make_llm",
    "require_model",
]

LOCAL_CONTEXT_TOKENS = 2048
_SAFE_CONTEXT_TOKENS = 8192

_FORMS = (
    "openai/NAME, anthropic/NAME, gemini/NAME, litellm/PROVIDER/NAME, local, fake, or "
    "package.module:function"
)
# Model names that imply their provider.
_FAMILIES = {"gpt": "openai", "o1": "openai", "o3": "openai", "o4": "openai", "claude": "anthropic",
             "gemini": "gemini"}  # fmt: skip


def make_llm(model: str, *, settings: Settings, concurrency: int = 32) -> LLM:
    """Return the model of a model string.

    Call this on the asyncio loop of the model's calls.

    Args:
        model: ``openai/NAME``, ``anthropic/NAME``, ``gemini/NAME``, ``litellm/PROVIDER/NAME``,
            ``local``, ``fake``,
            ``package.module:function``, or what ``register_callable`` returned.
        settings: The folder of the local model's weights, the functions that may be imported, and
            the longest answer.
        concurrency: Calls that may be in flight at once.

    Raises:
        ModelError: There is no such model, it is not allowed, or a package or variable that it
            needs is missing.
    """
    # The keys of the model may be new in the environment.
    secrets.learn()
    _refuse_address(model)
    provider, slash, name = model.partition("/")
    if slash and name and provider in _PROVIDERS:
        return _PROVIDERS[provider](name, concurrency, settings)
    if model == "local":
        from fanout.llm.local import LocalLLM

        return LocalLLM(settings.cache_dir, concurrency=concurrency)
    if model == "fake" or model.startswith("fake?"):
        return FakeLLM.from_model(model)
    if model.startswith("callable:"):
        return _wrap(resolve_callable(model), concurrency)
    if ":" in model and not slash:
        return _wrap(load_callable(model, allowed=settings.allowed_callables), concurrency)
    raise _unknown(model)


def require_model(model: str) -> None:
    """Check that a model string names a model, as far as that is known without its package or key.

    Raises:
        ModelError: It names none.
    """
    _refuse_address(model)
    provider, slash, name = model.partition("/")
    if model.startswith("fake?"):
        FakeLLM.from_model(model)
    elif slash:
        if not name or provider not in _PROVIDERS:
            raise _unknown(model)
    elif ":" not in model and model not in ("local", "fake"):
        raise _unknown(model)


def _refuse_address(model: str) -> None:
    if "://" in model:
        # litellm would send the provider's key to an address in the name.
        raise ModelError(
            "a model's name holds no address: set OPENAI_BASE_URL or the like where the workers run"
        )


def _unknown(model: str) -> ModelError:
    return ModelError(f"unknown model {model!r};{_hint(model)} a model is one of: {_FORMS}")


def _openai(name: str, concurrency: int, settings: Settings) -> LLM:
    from fanout.llm.openai import OpenAILLM

    return OpenAILLM(name, concurrency=concurrency, max_output_kb=settings.max_output_kb)


def _anthropic(name: str, concurrency: int, settings: Settings) -> LLM:
    from fanout.llm.anthropic import AnthropicLLM

    return AnthropicLLM(name, concurrency=concurrency, max_output_kb=settings.max_output_kb)


def _gemini(name: str, concurrency: int, settings: Settings) -> LLM:
    from fanout.llm.gemini import GeminiLLM

    return GeminiLLM(name, concurrency=concurrency, max_output_kb=settings.max_output_kb)


def _litellm(name: str, _concurrency: int, _settings: Settings) -> LLM:
    from fanout.llm.litellm import LiteLLM

    return LiteLLM(name)


# Adapters are imported on first use: their dependencies are slow to import.
_PROVIDERS = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini, "litellm": _litellm}


def _wrap(found: object, concurrency: int) -> LLM:
    if isinstance(found, LLM) and not isinstance(found, type):
        return found
    return CallableLLM(found, concurrency=concurrency)  # type: ignore[arg-type]


def _hint(model: str) -> str:
    for family, provider in _FAMILIES.items():
        if model.startswith(family):
            return f" did you mean {provider}/{model}?"
    given, slash, name = model.partition("/")
    near = get_close_matches(given, _PROVIDERS, n=1) if slash and name else []
    return f" did you mean {near[0]}/{name}?" if near and near[0] != given else ""


def context_tokens(model: str) -> int:
    """Return the context window of a model in tokens; a safe guess if it is unknown."""
    return known_context_tokens(model) or _SAFE_CONTEXT_TOKENS


def known_context_tokens(model: str) -> int | None:
    """Return the context window of a model in tokens, or None if it is unknown."""
    if is_registered(model):
        # A fake that the caller gave directly has its own.
        own = getattr(resolve_callable(model), "context_tokens", None)
        return None if own is None else int(own)
    return _own_window(model) or window_of(model)


@lru_cache(maxsize=256)
def _own_window(model: str) -> int | None:
    if model == "local":
        return LOCAL_CONTEXT_TOKENS
    if model == "fake" or model.startswith("fake?"):
        return FakeLLM.from_model(model).context_tokens
    return None
