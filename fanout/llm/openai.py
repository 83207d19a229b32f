"""OpenAI, and every server that speaks its chat completions: Azure, vLLM, Ollama, llama.cpp, ..."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import openai

from fanout.errors import LLMError, ModelError
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.http_errors import (
    cause_of,
    connection_error,
    connection_limits,
    http_error,
)
from fanout.runs import ErrorKind, Usage

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["OpenAILLM"]

_CHECK_S = 10.0
# The SDK wants a key; servers that need none do not look at it.
_NO_KEY = "none"
_OPTIONAL_MODELS_LIST = frozenset({404, 405, 501})


class OpenAILLM:
    """A model behind chat completions.

    Args:
        name: The model as the server knows it.
        concurrency: Connections that may be open at once.
        base_url: Where the server is; ``OPENAI_BASE_URL``, else OpenAI, where it is None.
        api_key: ``OPENAI_API_KEY`` where it is None; a server at a base URL may need none.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 32,
        base_url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        self._client = openai.AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            base_url=self._base_url,
            # Retries and deadlines are the caller's: two policies would multiply.
            max_retries=0,
            timeout=None,
            # The aiohttp transport: two and a half times the calls a second of the default one.
            http_client=openai.DefaultAioHttpClient(
                limits=connection_limits(concurrency), timeout=None
            ),
        )

    async def check(self) -> None:
        """See LLM."""
        if not self._key and self._base_url is None:
            raise ModelError(
                "OPENAI_API_KEY is not set; set it where the workers run, or set OPENAI_BASE_URL "
                "to a server that needs no key",
                kind=ErrorKind.AUTH,
            )
        try:
            await self._client.with_options(timeout=_CHECK_S).models.list()
        except openai.APIStatusError as error:
            if error.status_code in _OPTIONAL_MODELS_LIST:
                return
            raise self._unusable(self._status_error(error)) from None
        except openai.APIConnectionError as error:
            url = self._client.base_url
            raise ModelError(
                f"no server answers at {url} ({cause_of(error)}); start it, or set OPENAI_BASE_URL "
                "where the workers run",
                kind=ErrorKind.CONNECTION,
            ) from None
        except (openai.OpenAIError, ValueError):
            # Something answers, though not as OpenAI does: a call will tell.
            return

    def _unusable(self, error: LLMError) -> ModelError:
        if error.kind is ErrorKind.AUTH:
            return ModelError(
                f"{self._client.base_url} refuses the key in OPENAI_API_KEY ({error}); set a valid "
                "one where the workers run",
                kind=error.kind,
            )
        return ModelError(f"{self._client.base_url} says: {error}", kind=error.kind)

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        try:
            completion = await self._client.chat.completions.create(
                model=self._name, messages=_messages(request), **self._options(request)
            )
        except openai.APIConnectionError as error:
            raise connection_error(error) from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        return _reply(completion)

    def _options(self, request: LLMRequest) -> dict[str, Any]:
        # OpenAI's reasoning models refuse max_tokens; compatible servers mostly know only that.
        limit = "max_completion_tokens" if self._base_url is None else "max_tokens"
        options = {
            "temperature": request.temperature,
            limit: request.max_tokens,
            "seed": request.seed,
            "stop": list(request.stop) or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _status_error(self, error: openai.APIStatusError) -> LLMError:
        body = error.body if isinstance(error.body, dict) else {}
        return http_error(
            status=error.status_code,
            message=str(body.get("message") or error.message),
            code=f"{error.code or ''} {error.type or ''}",
            headers=error.response.headers,
            secrets=(self._key,),
        )

    async def aclose(self) -> None:
        """See LLM."""
        await self._client.close()


def _messages(request: LLMRequest) -> Any:
    system = [{"role": "system", "content": request.system}] if request.system else []
    return [*system, {"role": "user", "content": request.prompt}]


def _reply(completion: ChatCompletion) -> LLMReply:
    if not completion.choices:
        raise LLMError(ErrorKind.INVALID_OUTPUT, "the reply has no choices")
    choice = completion.choices[0]
    if choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None):
        raise LLMError(ErrorKind.CONTENT_FILTER, "the provider refused to answer")
    text = choice.message.content
    if not text or not text.strip():
        raise LLMError(
            ErrorKind.INVALID_OUTPUT, f"the answer is empty (finish reason {choice.finish_reason})"
        )
    usage = completion.usage
    return LLMReply(
        text=text,
        usage=Usage(
            calls=1,
            input_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
        ),
        model=completion.model,
        response_id=completion.id,
        finish_reason=choice.finish_reason,
    )
