"""OpenAI, and every server that speaks its chat completions: Azure, vLLM, Ollama, llama.cpp, ..."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.errors import LLMError, ModelError
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.endings import require_answer, require_complete
from fanout.llm.http_client import HttpClient
from fanout.llm.http_errors import http_error
from fanout.llm.usage import token_count
from fanout.runs import ErrorKind, Usage

if TYPE_CHECKING:
    from fanout.llm.http_client import HttpReply

__all__ = ["OpenAILLM"]

_BASE_URL = "https://api.openai.com/v1"
_CHECK_S = 10.0
# Servers that need no key do not look at it, but some want one.
_NO_KEY = "none"
_OPTIONAL_MODELS_LIST = frozenset({404, 405, 501})
_FIRST_SUCCESS, _FIRST_REDIRECT = 200, 300
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# Text in JSON may take six bytes where it has one, and some servers send their reasoning along.
_REPLY_BYTES_PER_OUTPUT_KB = 16_000
_LEAST_REPLY_BYTES = 8_000_000
_DEFAULT_OUTPUT_KB = 4_096


class _Message(msgspec.Struct):
    role: str
    content: str


class _Request(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What is sent: what was not asked for is left out."""

    model: str
    messages: list[_Message]
    temperature: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class _Answer(msgspec.Struct):
    content: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    message: _Answer | None = None
    finish_reason: Any = None


class _Completion(msgspec.Struct):
    """What is read of a reply; a server may send more, and leave out what does not matter."""

    choices: list[_Choice] | None = None
    usage: Any = None
    id: Any = None
    model: Any = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Completion).decode


class OpenAILLM:
    """A model behind chat completions.

    Args:
        name: The model as the server knows it.
        concurrency: Connections that may be open at once.
        base_url: Where the server is; ``OPENAI_BASE_URL``, else OpenAI, where it is None.
        api_key: ``OPENAI_API_KEY`` where it is None; a server at a base URL may need none.
        max_output_kb: The longest answer that is of use, in kilobytes; a reply is not read on where
            it is many times as large.

    Raises:
        ModelError: A variable of the environment cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 32,
        base_url: str | None = None,
        api_key: str | None = None,
        max_output_kb: int = _DEFAULT_OUTPUT_KB,
    ) -> None:
        self._name = name
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        # OpenAI's reasoning models refuse max_tokens; compatible servers mostly know only that.
        self._is_openai = self._base_url is None
        self._http = HttpClient(
            self._base_url or _BASE_URL,
            variable="OPENAI_BASE_URL",
            headers=_headers(self._key or _NO_KEY),
            concurrency=concurrency,
            max_reply_bytes=max(_LEAST_REPLY_BYTES, _REPLY_BYTES_PER_OUTPUT_KB * max_output_kb),
        )
        self._url = self._http.url("chat/completions")

    async def check(self) -> None:
        """See LLM."""
        if not self._key and self._base_url is None:
            raise ModelError(
                "OPENAI_API_KEY is not set; set it where the workers run, or set OPENAI_BASE_URL "
                "to a server that needs no key",
                kind=ErrorKind.AUTH,
            )
        url = self._http.shown_url
        try:
            reply = await self._http.get(self._http.url("models"), timeout_s=_CHECK_S)
        except LLMError as error:
            raise ModelError(
                f"no server answers at {url} ({error}); start it, or set OPENAI_BASE_URL where "
                "the workers run",
                kind=ErrorKind.CONNECTION,
            ) from None
        if _is_success(reply) or reply.status in _OPTIONAL_MODELS_LIST:
            return
        problem = self._status_error(reply)
        if problem.kind is ErrorKind.AUTH:
            raise ModelError(
                f"{url} refuses the key in OPENAI_API_KEY ({problem}); set a valid one where the "
                "workers run",
                kind=problem.kind,
            )
        raise ModelError(f"{url} says: {problem}", kind=problem.kind)

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        reply = await self._http.post(self._url, self._body(request))
        if not _is_success(reply):
            raise self._status_error(reply)
        return _reply(_parsed(reply))

    def _body(self, request: LLMRequest) -> bytes:
        messages = [_Message("user", request.prompt)]
        if request.system:
            messages.insert(0, _Message("system", request.system))
        return _encode(
            _Request(
                model=self._name,
                messages=messages,
                temperature=request.temperature,
                max_tokens=None if self._is_openai else request.max_tokens,
                max_completion_tokens=request.max_tokens if self._is_openai else None,
                seed=request.seed,
                stop=request.stop,
            )
        )

    def _status_error(self, reply: HttpReply) -> LLMError:
        error = _error_object(reply.body)
        said = error.get("message")
        return http_error(
            usage=_billed_with(reply.body),
            status=reply.status,
            message=str(said or f"Error code: {reply.status}"),
            code=" ".join(str(error.get(name) or "") for name in ("code", "type")),
            headers=reply.headers,
            secrets=(self._key,),
        )

    async def aclose(self) -> None:
        """See LLM."""
        await self._http.aclose()


def _headers(key: str) -> dict[str, str]:
    """Return the headers of each request; ``OPENAI_CUSTOM_HEADERS`` has lines of its own."""
    headers = {
        "accept": "application/json",
        "user-agent": f"fanout-llm/{metadata.version('fanout-llm')}",
        "authorization": f"Bearer {_value('OPENAI_API_KEY', key)}",
    }
    named = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
    for header, variable in named.items():
        if value := os.environ.get(variable):
            headers[header] = _value(variable, value)
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = _value("OPENAI_CUSTOM_HEADERS", value.strip())
    return headers


def _value(variable: str, value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise ModelError(
            f"{variable} holds a character that no HTTP header may have, such as a line break; set "
            "it anew where the workers run",
            kind=ErrorKind.AUTH,
        )
    return value


def _is_success(reply: HttpReply) -> bool:
    return _FIRST_SUCCESS <= reply.status < _FIRST_REDIRECT


def _error_object(body: bytes) -> dict[str, Any]:
    """Return what a reply says of an error: ``{"error": {...}}``, or that object itself."""
    try:
        told = json.loads(body.decode("utf-8", "replace").strip())
    except (ValueError, RecursionError):
        return {}
    inner = told.get("error", told) if isinstance(told, dict) else None
    return inner if isinstance(inner, dict) else {}


def _billed_with(body: bytes) -> Usage | None:
    """Return what an error reply says that the call consumed all the same, or None."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    said = told.get("usage") if isinstance(told, dict) else None
    return _usage(said) if isinstance(said, dict) else None


def _parsed(reply: HttpReply) -> _Completion:
    try:
        return _decode(reply.body)
    except msgspec.ValidationError as error:
        raise _no_completion(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parsed_leniently(reply)


def _parsed_leniently(reply: HttpReply) -> _Completion:
    """Read JSON that is not quite: servers cut characters in half, and write ``NaN``."""
    try:
        return msgspec.convert(json.loads(reply.body), _Completion)
    except msgspec.ValidationError as error:
        raise _no_completion(str(error)) from None
    except (ValueError, RecursionError):
        content_type = reply.headers.get("content-type", "").partition(";")[0]
        raise _no_completion(f"it is not JSON, but {content_type or 'of no type'}") from None


def _no_completion(reason: str) -> LLMError:
    return LLMError(ErrorKind.INTERNAL, f"the reply is not a chat completion: {reason}")


def _reply(completion: _Completion) -> LLMReply:
    usage = _usage(completion.usage)
    if not completion.choices:
        raise LLMError(ErrorKind.INVALID_OUTPUT, "the reply has no choices", usage=usage)
    choice = completion.choices[0]
    message = choice.message
    if message and message.refusal:
        raise LLMError(ErrorKind.CONTENT_FILTER, "the provider refused to answer", usage=usage)
    content = message.content if message else None
    reply = LLMReply(
        text=content if isinstance(content, str) else "",
        usage=usage,
        model=_text(completion.model),
        response_id=_text(completion.id),
        finish_reason=_text(choice.finish_reason),
    )
    if message is None or not isinstance(content, str | None):
        require_complete(reply)
        raise _no_completion("its first choice has no message of text")
    require_answer(reply)
    return reply


def _usage(said: Any) -> Usage:
    """Return what a server says that a call consumed; nonsense is unknown."""
    counts = said if isinstance(said, dict) else {}
    return Usage(
        calls=1,
        input_tokens=token_count(counts.get("prompt_tokens")),
        output_tokens=token_count(counts.get("completion_tokens")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
