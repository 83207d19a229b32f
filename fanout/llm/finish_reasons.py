"""The meaning of providers' finish reasons: complete, truncated, filtered, or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from fanout.llm.base import LLMReply

__all__ = ["ending", "is_clear", "require_answer", "require_complete"]

_MAX_SHOWN = 40
# The words of OpenAI, Anthropic, Gemini, Cohere, Bedrock, Mistral, Zhipu, TGI, vLLM, SGLang and
# llama.cpp, from their references, in lower case.
_COMPLETE = frozenset(
    {
        "stop", "end_turn", "stop_sequence", "eos", "eos_token", "end", "done", "normal",
        "complete", "completed", "finished", "success", "tool_calls", "tool_call", "tool_use",
        "function_call", "stop_token", "end_of_text", "stopped",
        # Gemini's word for none.
        "finish_reason_unspecified",
    }
)  # fmt: skip
_TRUNCATED = frozenset(
    {
        "length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length",
        "max_new_tokens", "model_length", "model_context_window_exceeded", "token_limit", "limit",
        "max_output_reached", "max_tokens_reached", "context_length", "context_window_exceeded",
        "incomplete",
    }
)  # fmt: skip
_FILTERED = frozenset(
    {
        "content_filter", "content_filtered", "refusal", "safety", "recitation", "blocklist",
        "prohibited_content", "spii", "image_safety", "language", "guardrail_intervened",
        "error_toxic", "moderation", "filtered", "sensitive", "image_prohibited_content",
        "image_recitation", "model_armor",
    }
)  # fmt: skip
# The server failed, and may fail for any prompt: vLLM, SGLang, OpenRouter, DeepSeek, Zhipu.
_FAILED = frozenset(
    {
        "error", "abort", "aborted", "cancelled", "canceled", "failed", "failure", "timeout",
        "insufficient_system_resource", "server_error", "internal_error", "network_error",
    }
)  # fmt: skip
_KNOWN = _COMPLETE | _TRUNCATED | _FILTERED | _FAILED


def ending(finish_reason: str | None) -> ErrorKind | None:
    """Return the kind of error for a finish reason; None if the answer is complete.

    No finish reason means a complete answer. Any other word means that the generation failed, as an
    answer that may be incomplete must not pass for a whole one: see is_clear.
    """
    if not finish_reason or finish_reason in _COMPLETE:
        return None
    word = _word(finish_reason)
    if word in _COMPLETE:
        return None
    if word in _TRUNCATED:
        return ErrorKind.TRUNCATED
    return ErrorKind.CONTENT_FILTER if word in _FILTERED else ErrorKind.SERVER_ERROR


def is_clear(finish_reason: str | None) -> bool:
    """Say whether a finish reason says how the generation ended.

    It does not if it is unknown, or one of those with which a model may end a whole answer as well as a
    part: ``OTHER`` and ``MALFORMED_FUNCTION_CALL`` (Gemini), ``pause_turn`` (Anthropic). They tell of
    this answer, and not of an outage.
    """
    return not finish_reason or finish_reason in _COMPLETE or _word(finish_reason) in _KNOWN


def _word(finish_reason: str) -> str:
    return finish_reason.strip().lower()


def require_complete(reply: LLMReply) -> None:
    """Raise LLMError if an answer is truncated, filtered, or failed."""
    kind = ending(reply.finish_reason)
    if kind is None:
        return
    if kind is ErrorKind.TRUNCATED:
        message = (
            f"the answer was cut off ({_shown_reason(reply)}): raise max_tokens (split_max_tokens where a "
            "model splits, aggregate_max_tokens for a reduce), or ask for less"
        )
    elif kind is ErrorKind.CONTENT_FILTER:
        message = "the provider refused to answer"
    else:
        message = f"the generation failed ({_shown_reason(reply)})"
    raise LLMError(
        kind,
        message,
        usage=reply.usage,
        finish_reason=reply.finish_reason,
        is_own=not is_clear(reply.finish_reason),
    )


def require_answer(reply: LLMReply, content: Any = None) -> None:
    """Raise LLMError if a server failed or refused, or if its answer is empty or no text.

    An answer that was cut off is one, and so is one whose end is not clear: the caller may accept
    them. A server that sends nothing, and no reason why, has failed.

    Args:
        reply: What was read.
        content: What stood in the server's reply where the answer should be.
    """
    kind = ending(reply.finish_reason)
    is_unclear = not is_clear(reply.finish_reason) and bool(reply.text.strip())
    if kind is not ErrorKind.TRUNCATED and not is_unclear:
        require_complete(reply)
    if not reply.text.strip() and kind is None:
        kind = ErrorKind.INVALID_OUTPUT if reply.finish_reason else ErrorKind.SERVER_ERROR
        is_text = content is None or isinstance(content, (str, list))
        message = f"the answer is {'empty' if is_text else 'no text'} ({_shown_reason(reply)})"
        raise LLMError(kind, message, usage=reply.usage, finish_reason=reply.finish_reason)


def _shown_reason(reply: LLMReply) -> str:
    return f"finish reason {str(reply.finish_reason)[:_MAX_SHOWN]}"
