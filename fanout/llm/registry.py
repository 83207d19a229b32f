"""Model strings: which adapter a name means, and how much it can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core import redaction as secrets
from fanout.core.errors import ModelError
from fanout.llm.base import LLM
from fanout.llm.callables import CallableLLM, is_registered, load_callable, resolve_callable
from fanout.llm.fake import FakeLLM

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["LOCAL_CONTEXT_TOKENS", "context_tokens", "make_llm"]

LOCAL_CONTEXT_TOKENS = 2048
_SAFE_CONTEXT_TOKENS = 8192

# Context windows in tokens as the providers' model pages give them, longest prefix first.
_CONTEXT_TOKENS = {
    "openai/gpt-5": 272_000,
    "openai/gpt-4.1": 1_000_000,
    "openai/gpt-4o": 128_000,
    "openai/gpt-4-turbo": 128_000,
    "openai/o": 200_000,
    "anthropic/claude": 200_000,
}

_FORMS = (
    "openai/NAME, anthropic/NAME, litellm/PROVIDER/NAME, local, fake, or package.module:function"
)
# How people call models of which the provider is plain.
_FAMILIES = {"gpt": "openai", "o1": "openai", "o3": "openai", "o4": "openai", "claude": "anthropic"}


def make_llm(model: str, *, settings: Settings, concurrency: int = 32) -> LLM:
    """Return the model of a model string.

    To be called on the asyncio loop that its calls will be made on.

    Args:
        model: ``openai/NAME``, ``anthropic/NAME``, ``litellm/PROVIDER/NAME``, ``local``, ``fake``,
            ``package.module:function``, or what ``register_callable`` returned.
        settings: Where the local model keeps its weights, which functions may be imported, and how
            long an answer may be.
        concurrency: Calls that may be in flight at once.

    Raises:
        ModelError: There is no such model, it may not be used, or what it needs is not installed
            or not set.
    """
    # A model may have come with keys of its own.
    secrets.learn()
    if "://" in model:
        # litellm would send the provider's key to an address in a name.
        raise ModelError(
            "a model's name holds no address: set OPENAI_BASE_URL or the like where the workers run"
        )
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
    raise ModelError(f"unknown model {model!r};{_hint(model)} a model is one of: {_FORMS}")


def _openai(name: str, concurrency: int, settings: Settings) -> LLM:
    from fanout.llm.openai import OpenAILLM

    return OpenAILLM(name, concurrency=concurrency, max_output_kb=settings.max_output_kb)


def _anthropic(name: str, concurrency: int, settings: Settings) -> LLM:
    from fanout.llm.anthropic import AnthropicLLM

    return AnthropicLLM(name, concurrency=concurrency, max_output_kb=settings.max_output_kb)


def _litellm(name: str, _concurrency: int, _settings: Settings) -> LLM:
    from fanout.llm.litellm import LiteLLM

    return LiteLLM(name)


# Each adapter is imported when it is used: what they need is slow to import.
_PROVIDERS = {"openai": _openai, "anthropic": _anthropic, "litellm": _litellm}


def _wrap(found: object, concurrency: int) -> LLM:
    if isinstance(found, LLM) and not isinstance(found, type):
        return found
    return CallableLLM(found, concurrency=concurrency)  # type: ignore[arg-type]


def _hint(model: str) -> str:
    for family, provider in _FAMILIES.items():
        if model.startswith(family):
            return f" did you mean {provider}/{model}?"
    return ""


def context_tokens(model: str) -> int:
    """Return the context window of a model in tokens; a safe guess where it is not known."""
    if model == "local":
        return LOCAL_CONTEXT_TOKENS
    if is_registered(model):
        # Of a fake that was passed as it is.
        return int(getattr(resolve_callable(model), "context_tokens", _SAFE_CONTEXT_TOKENS))
    if model.startswith("fake?"):
        return FakeLLM.from_model(model).context_tokens
    for prefix, tokens in _CONTEXT_TOKENS.items():
        if model.removeprefix("litellm/").startswith(prefix):
            return tokens
    return _SAFE_CONTEXT_TOKENS
