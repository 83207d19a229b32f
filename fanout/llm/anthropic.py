"""The adapter of Anthropic's Messages API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind, Usage
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.finish_reasons import require_answer
from fanout.llm.http_errors import refused_in_success
from fanout.llm.http_model import DEFAULT_OUTPUT_KB, HttpModel
from fanout.llm.reply_bodies import content_text, text_or_none
from fanout.llm.usage import token_count

if TYPE_CHECKING:
    from fanout.llm.http_client import HttpReply

__all__ = ["AnthropicLLM"]

_VERSION = "2026-10-21"
# The version above refuses a temperature; the previous one accepts it if the model does.
# Source: https://platform.claude.com/docs/en/api/migration-2026-10-21
_VERSION_HEADER = "anthropic-version"
_WITH_TEMPERATURE = {_VERSION_HEADER: "2023-06-01"}
_NOT_FOUND = 404
# The API requires a limit: the model's own, from Anthropic's model pages, longest prefix first.
_MAX_TOKENS = {
    "claude-3-7": 64_000,
    "claude-3-5": 8_192,
    "claude-3-": 4_096,
    "claude-2": 4_096,
    "claude-instant": 4_096,
    "claude-opus-4-0": 32_000,
    "claude-opus-4-1": 32_000,
    "claude-opus-4-2025": 32_000,
}
# Every later model allows at least this many.
_DEFAULT_MAX_TOKENS = 32_000

_encode = msgspec.json.Encoder().encode


class AnthropicLLM(HttpModel):
    """A model behind Anthropic's Messages API: see HttpModel."""

    def __init__(
        self, name: str, *, concurrency: int = 32, max_output_kb: int = DEFAULT_OUTPUT_KB
    ) -> None:
        key = os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")
        super().__init__(
            name,
            provider="ANTHROPIC",
            base_url=os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com",
            key=key or "",
            headers={_VERSION_HEADER: _VERSION},
            concurrency=concurrency,
            max_output_kb=max_output_kb,
        )
        known = (limit for prefix, limit in _MAX_TOKENS.items() if name.startswith(prefix))
        self._max_tokens = next(known, _DEFAULT_MAX_TOKENS)
        self._is_version_given = _VERSION_HEADER in self._headers
        self._url = self._http.url("v1/messages")

    async def check(self) -> None:
        """See LLM."""
        if not self._key:
            raise ModelError(
                "ANTHROPIC_API_KEY is not set; set it where the workers run", kind=ErrorKind.AUTH
            )
        # The list of models omits aliases; this endpoint resolves them.
        reply = await self._ask(f"v1/models/{self._http.quoted(self._name)}")
        details = reply.error_details()
        is_of_model = details.message.lower().startswith("model")
        if reply.status == _NOT_FOUND and "not_found_error" in details.codes and is_of_model:
            raise self._refused(reply)

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        if request.seed is not None:
            raise LLMError(ErrorKind.BAD_REQUEST, "anthropic takes no seed: leave it out")
        is_older = request.temperature is not None and not self._is_version_given
        headers = _WITH_TEMPERATURE if is_older else None
        reply = await self._http.post(self._url, self._body(request), headers=headers)
        if not reply.is_success and self._learns_format(reply, request):
            reply = await self._http.post(self._url, self._body(request), headers=headers)
        if not reply.is_success:
            raise self._error(reply)
        return _reply(_message(reply, self._key))

    def _body(self, request: LLMRequest) -> bytes:
        native = self._native(request, "anthropic")
        chat = request.messages(in_words=native is None)
        system = chat.pop(0)["content"] if chat[0]["role"] == "system" else None
        format_ = {"type": "json_schema", "schema": native.schema} if native else None
        options = {
            "max_tokens": request.max_tokens or self._max_tokens,
            "system": system,
            "temperature": request.temperature,
            "stop_sequences": list(request.stop) or None,
            "output_config": {"format": format_} if format_ else None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return _encode({"model": self._name, "messages": chat, **given})


def _message(reply: HttpReply, key: str) -> dict[str, Any]:
    """Return the message in a success reply. Raises LLMError if the reply has none."""
    try:
        content = reply.json()
    except ValueError as error:
        raise _no_message(str(error)) from None
    if isinstance(content, dict) and "content" in content:
        return content
    problem = refused_in_success(content, headers=reply.headers, secrets=(key,))
    raise problem or _no_message("it has no content")


def _no_message(reason: str) -> LLMError:
    # A server that is starting may answer so, or a proxy in front of it.
    return LLMError(ErrorKind.SERVER_ERROR, f"the reply is not a message: {reason}")


def _reply(message: dict[str, Any]) -> LLMReply:
    reply = LLMReply(
        text=content_text(message["content"]) or "",
        usage=_usage(message.get("usage")),
        model=text_or_none(message.get("model")),
        response_id=text_or_none(message.get("id")),
        finish_reason=text_or_none(message.get("stop_reason")),
    )
    require_answer(reply)
    return reply


def _usage(counts: Any) -> Usage:
    """Return the usage that a server reports for a call; an invalid count is unknown."""
    counts = counts if isinstance(counts, dict) else {}
    # The API counts prompt tokens that it read from a cache or wrote to one separately.
    cached = [counts.get(f"cache_{way}_input_tokens") or 0 for way in ("creation", "read")]
    parts = [token_count(part) for part in (counts.get("input_tokens"), *cached)]
    known = [part for part in parts if part is not None]
    return Usage(
        calls=1,
        input_tokens=sum(known) if len(known) == len(parts) else None,
        output_tokens=token_count(counts.get("output_tokens")),
    )
