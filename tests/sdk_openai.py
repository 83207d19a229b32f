"""The reference for the adapter of chat completions: the same adapter on the provider's SDK."""

from __future__ import annotations

import os
from typing import Any

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, Usage
from fanout.llm import LLMReply, LLMRequest
from fanout.llm.finish_reasons import require_answer
from fanout.llm.http_errors import http_error, redacted_line
from fanout.llm.reply_bodies import ErrorDetails


class SdkOpenAILLM:
    """Like fanout.llm.openai.OpenAILLM, but on the SDK and its aiohttp transport."""

    def __init__(self, name: str, *, concurrency: int = 32) -> None:
        # Not at the top: every process collects all tests, and one needs the package, which loads slowly.
        import httpx2
        import openai

        self._sdk = openai
        self._name = name
        self._is_openai = not os.environ.get("OPENAI_BASE_URL")
        self._key = os.environ.get("OPENAI_API_KEY") or ""
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=os.environ.get("OPENAI_BASE_URL") or None,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAioHttpClient(
                limits=httpx2.Limits(
                    max_connections=concurrency, max_keepalive_connections=concurrency
                ),
                timeout=None,
            ),
        )

    async def complete(self, request: LLMRequest) -> LLMReply:
        import httpx2

        system = [{"role": "system", "content": request.system}] if request.system else []
        messages: Any = [*system, {"role": "user", "content": request.prompt}]
        limit = "max_completion_tokens" if self._is_openai else "max_tokens"
        options: dict[str, Any] = {
            "temperature": request.temperature,
            limit: request.max_tokens,
            "seed": request.seed,
            "stop": list(request.stop) or None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        try:
            completion = await self._client.chat.completions.create(
                model=self._name, messages=messages, **given
            )
        except self._sdk.APIConnectionError as error:
            is_late = isinstance(error.__cause__, (httpx2.ReadTimeout, httpx2.WriteTimeout))
            kind = ErrorKind.TIMEOUT if is_late else ErrorKind.CONNECTION
            raise LLMError(kind, redacted_line(str(error.__cause__))) from error
        except self._sdk.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            raise http_error(
                error.status_code,
                ErrorDetails(
                    message=str(body.get("message") or error.message),
                    codes=tuple(f"{error.code or ''} {error.type or ''}".lower().split()),
                ),
                headers=error.response.headers,
                secrets=(self._key,),
            ) from error
        return _reply(completion)

    async def aclose(self) -> None:
        await self._client.close()


def _reply(completion: Any) -> LLMReply:
    if not completion.choices:
        raise LLMError(ErrorKind.INVALID_OUTPUT, "the reply has no choices")
    choice = completion.choices[0]
    if getattr(choice.message, "refusal", None):
        raise LLMError(ErrorKind.CONTENT_FILTER, "the provider refused to answer")
    usage = completion.usage
    of_prompt = usage and usage.prompt_tokens_details
    of_answer = usage and usage.completion_tokens_details
    if choice.message is None and choice.finish_reason != "content_filter":
        raise LLMError(ErrorKind.INTERNAL, "no message")
    reply = LLMReply(
        text=getattr(choice.message, "content", None) or "",
        usage=Usage(
            calls=1,
            input_tokens=usage.prompt_tokens if usage else None,
            cached_input_tokens=of_prompt.cached_tokens if of_prompt else None,
            output_tokens=usage.completion_tokens if usage else None,
            reasoning_tokens=of_answer.reasoning_tokens if of_answer else None,
        ),
        model=completion.model,
        response_id=completion.id,
        finish_reason=choice.finish_reason,
    )
    require_answer(reply)
    return reply
