"""Anthropic's Messages API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from fanout.errors import LLMError, ModelError
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.endings import require_answer
from fanout.llm.http_errors import http_error, redacted
from fanout.llm.usage import token_count
from fanout.runs import ErrorKind, Usage

if TYPE_CHECKING:
    from anthropic.types import Message

__all__ = ["AnthropicLLM"]

_CHECK_S = 10.0
_NO_KEY = "none"
# The API wants a limit: the model's own, as its pages give it, longest prefix first.
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
# Each model since has this at least.
_DEFAULT_MAX_TOKENS = 32_000


class AnthropicLLM:
    """A model behind Anthropic's Messages API.

    Args:
        name: The model's name.
        concurrency: Connections that may be open at once.
    """

    def __init__(self, name: str, *, concurrency: int = 32) -> None:
        self._name = name
        known = (room for prefix, room in _MAX_TOKENS.items() if name.startswith(prefix))
        self._max_tokens = next(known, _DEFAULT_MAX_TOKENS)
        self._key = os.environ.get("ANTHROPIC_API_KEY") or ""
        self._client = anthropic.AsyncAnthropic(
            api_key=self._key or _NO_KEY,
            base_url=os.environ.get("ANTHROPIC_BASE_URL") or None,
            max_retries=0,
            timeout=None,
            http_client=anthropic.DefaultAioHttpClient(
                # The SDK's own limits would hold some calls back.
                limits=httpx2.Limits(
                    max_connections=concurrency, max_keepalive_connections=concurrency
                ),
                timeout=None,
            ),
        )

    async def check(self) -> None:
        """See LLM."""
        if not self._key:
            raise ModelError(
                "ANTHROPIC_API_KEY is not set; set it where the workers run", kind=ErrorKind.AUTH
            )
        url = self._client.base_url
        try:
            await self._client.with_options(timeout=_CHECK_S).models.list(limit=1)
        except anthropic.APIStatusError as error:
            reason = self._status_error(error)
            if reason.kind is ErrorKind.AUTH:
                raise ModelError(
                    f"{url} refuses the key in ANTHROPIC_API_KEY ({reason}); set a valid one "
                    "where the workers run",
                    kind=ErrorKind.AUTH,
                ) from None
            if reason.kind is not ErrorKind.BAD_REQUEST:
                raise ModelError(f"{url} says: {reason}", kind=reason.kind) from None
        except anthropic.APIConnectionError as error:
            raise ModelError(
                f"no server answers at {url} ({_cause_of(error)}); check the network, or "
                "ANTHROPIC_BASE_URL where the workers run",
                kind=ErrorKind.CONNECTION,
            ) from None

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        if request.seed is not None:
            raise LLMError(ErrorKind.BAD_REQUEST, "anthropic takes no seed: leave it out")
        try:
            message = await self._client.messages.create(
                model=self._name,
                messages=[{"role": "user", "content": request.prompt}],
                **_options(request, self._max_tokens),
            )
        except anthropic.APIConnectionError as error:
            raise _connection_error(error) from error
        except anthropic.APIStatusError as error:
            raise self._status_error(error) from error
        return _reply(message)

    def _status_error(self, error: anthropic.APIStatusError) -> LLMError:
        body = error.body if isinstance(error.body, dict) else {}
        detail = body.get("error") if isinstance(body.get("error"), dict) else {}
        return http_error(
            status=error.status_code,
            message=str((detail or {}).get("message") or error.message),
            code=str((detail or {}).get("type") or ""),
            headers=error.response.headers,
            secrets=(self._key,),
        )

    async def aclose(self) -> None:
        """See LLM."""
        await self._client.close()


def _connection_error(error: Exception) -> LLMError:
    """Return the LLMError of a call that got no reply, be it a timeout or a refused connection.

    The aiohttp transport reports a refused connection as a timeout of connecting.
    """
    is_late = isinstance(error.__cause__, (httpx2.ReadTimeout, httpx2.WriteTimeout))
    return LLMError(ErrorKind.TIMEOUT if is_late else ErrorKind.CONNECTION, _cause_of(error))


def _cause_of(error: Exception) -> str:
    """Return why a connection failed: the SDK's own message says only that it did."""
    cause = error.__cause__
    return redacted(str(cause) if cause and str(cause) else str(error))


def _options(request: LLMRequest, max_tokens: int) -> dict[str, Any]:
    options = {
        "max_tokens": request.max_tokens or max_tokens,
        "system": request.system,
        # The SDK knows it no longer, but models that take it are still served.
        "extra_body": None if request.temperature is None else {"temperature": request.temperature},
        "stop_sequences": list(request.stop) or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _reply(message: Message) -> LLMReply:
    reply = LLMReply(
        text="".join(block.text for block in message.content if block.type == "text"),
        usage=_usage(message.usage),
        model=message.model,
        response_id=message.id,
        finish_reason=message.stop_reason,
    )
    require_answer(reply)
    return reply


def _usage(said: Any) -> Usage:
    """Return what a call consumed; the SDK hands on whatever a server says."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    # The parts of a prompt that came from a cache, or went into one, are counted apart.
    parts = [getattr(said, name, None) for name in names]
    counts = [token_count(part) for part in (parts[0], *(part or 0 for part in parts[1:]))]
    known = [count for count in counts if count is not None]
    return Usage(
        calls=1,
        input_tokens=sum(known) if len(known) == len(counts) else None,
        output_tokens=token_count(getattr(said, "output_tokens", None)),
    )
