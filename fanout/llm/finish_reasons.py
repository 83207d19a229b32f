"""The meaning of providers' finish reasons: complete, truncated, filtered, or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from fanout.llm.base import LLMReply

__all__ = ["ending", "require_answer", "require_complete"]

_MAX_SHOWN = 40
# The words of OpenAI, Anthropic, Gemini, Cohere, Bedrock, Mistral, TGI and llama.cpp, lower case.
_COMPLETE = frozenset(
    {
        "stop", "end_turn", "stop_sequence", "eos", "eos_token", "end", "done", "normal",
        "complete", "completed", "finished", "success", "tool_calls", "tool_call", "tool_use",
        "function_call",
    }
)  # fmt: skip
_TRUNCATED = frozenset(
    {
        "length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length",
        "max_new_tokens", "model_length", "model_context_window_exceeded", "token_limit", "limit",
    }
)  # fmt: skip
_FILTERED = frozenset(
    {
        "content_filter", "content_filtered", "refusal", "safety", "recitation", "blocklist",
        "prohibited_content", "spii", "image_safety", "language", "guardrail_intervened",
        "error_toxic",
    }
)  # fmt: skip


def ending(finish_reason: str | None) -> ErrorKind | None:
    """Return the kind of error for a finish reason; None if the answer is complete.

    No finish reason means a complete answer. An unknown word means that the generation failed.
    """
    word = (finish_reason or "stop").strip().lower()
    if word in _COMPLETE:
        return None
    if word in _TRUNCATED:
        return ErrorKind.TRUNCATED
    return ErrorKind.CONTENT_FILTER if word in _FILTERED else ErrorKind.SERVER_ERROR


def require_complete(reply: LLMReply) -> None:
    """Raise LLMError if an answer is truncated, filtered, or failed."""
    kind = ending(reply.finish_reason)
    if kind is None:
        return
    if kind is ErrorKind.TRUNCATED:
        message = (
            f"the answer was cut off ({_shown_reason(reply)}): raise max_tokens, or ask for less"
        )
    elif kind is ErrorKind.CONTENT_FILTER:
        message = "the provider refused to answer"
    else:
        message = f"the generation failed ({_shown_reason(reply)})"
    raise LLMError(kind, message, usage=reply.usage)


def require_answer(reply: LLMReply) -> None:
    """Raise LLMError if an answer is incomplete or empty."""
    require_complete(reply)
    if not reply.text.strip():
        message = f"the answer is empty ({_shown_reason(reply)})"
        raise LLMError(ErrorKind.INVALID_OUTPUT, message, usage=reply.usage)


def _shown_reason(reply: LLMReply) -> str:
    return f"finish reason {str(reply.finish_reason)[:_MAX_SHOWN]}"
