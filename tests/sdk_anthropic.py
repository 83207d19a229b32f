"""The reference for the adapter of Anthropic: the same adapter on the provider's SDK."""

from __future__ import annotations

from typing import Any

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, Usage
from fanout.llm import LLMReply, LLMRequest
from fanout.llm.finish_reasons import require_answer
from fanout.llm.http_errors import http_error, redacted_line
from fanout.llm.reply_bodies import ErrorDetails

# The limit of a request without one, as in the adapter for a model of which nothing is known.
DEFAULT_MAX_TOKENS = 128_000


class SdkAnthropicLLM:
    """Like fanout.llm.anthropic.AnthropicLLM, but on the SDK and its aiohttp transport."""

    def __init__(self, name: str) -> None:
        # Not at the top: every process collects all tests, and one needs the package, which loads slowly.
        import anthropic

        self._sdk = anthropic
        self._name = name
        self._client = anthropic.AsyncAnthropic(
            max_retries=0, timeout=None, http_client=anthropic.DefaultAioHttpClient(timeout=None)
        )

    async def complete(self, request: LLMRequest) -> LLMReply:
        import httpx2

        options: dict[str, Any] = {
            "system": request.system,
            "stop_sequences": list(request.stop) or None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        try:
            message = await self._client.messages.create(
                model=self._name,
                messages=[{"role": "user", "content": request.prompt}],
                max_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
                **given,
            )
        except self._sdk.APIConnectionError as error:
            is_late = isinstance(error.__cause__, (httpx2.ReadTimeout, httpx2.WriteTimeout))
            kind = ErrorKind.TIMEOUT if is_late else ErrorKind.CONNECTION
            raise LLMError(kind, redacted_line(str(error.__cause__))) from error
        except self._sdk.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            fields = body.get("error") if isinstance(body.get("error"), dict) else body
            raise http_error(
                error.status_code,
                ErrorDetails(
                    message=str(fields.get("message") or f"Error code: {error.status_code}"),
                    codes=tuple(str(fields.get("type") or "").lower().split()),
                ),
                headers=error.response.headers,
                secrets=(self._client.api_key or self._client.auth_token or "",),
            ) from error
        return _reply(message)

    async def aclose(self) -> None:
        await self._client.close()


def _reply(message: Any) -> LLMReply:
    usage = message.usage
    parts = [block.text for block in message.content if block.type == "text"]
    read = usage and (usage.cache_read_input_tokens or 0)
    written = usage and (usage.cache_creation_input_tokens or 0)
    reply = LLMReply(
        text="".join(parts),
        usage=Usage(
            calls=1,
            input_tokens=usage.input_tokens + read + written if usage else None,
            cached_input_tokens=read if usage else None,
            cache_write_tokens=written if usage else None,
            output_tokens=usage.output_tokens if usage else None,
        ),
        model=message.model,
        response_id=message.id,
        finish_reason=message.stop_reason,
    )
    require_answer(reply)
    return reply
