"""What the adapters of providers' HTTP APIs share: variables, headers, free checks, and errors."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from abc import ABC, abstractmethod
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm.error_kinds import lacks_capacity
from fanout.llm.http_client import HttpClient
from fanout.llm.http_errors import http_error
from fanout.llm.limit_headers import LimitHeaders
from fanout.llm.limit_words import joined
from fanout.llm.refusals import NOTHING, Refusals, Refused, refused_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from fanout.core.answer_shape import AnswerShape
    from fanout.core.records import Usage
    from fanout.core.strict_schema import Dialect
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.batches.base import BatchClient
    from fanout.llm.http_client import HttpReply
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = ["DEFAULT_OUTPUT_KB", "Form", "HttpModel", "header_value"]

_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# Servers without authentication ignore the key, but some require the header.
_NO_KEY = "none"
_REQUEST_S = 10.0
# Wait out a short outage. Longer ones are left to the calls, which wait for longer.
_PATIENCE_S = 20.0
_FIRST_WAIT_S = 0.5
_UNAUTHORIZED = 401
# Servers need not list their models, and a key may call models without permission to list them.
_PROVES_NOTHING = frozenset({403, 404, 405, 429, 501})
_PASSES = frozenset({429, 500, 502, 503, 504, 529})
# JSON may escape one byte of text as six, and some servers also send their reasoning.
_REPLY_BYTES_PER_OUTPUT_KB = 16_000
_LEAST_REPLY_BYTES = 8_000_000
DEFAULT_OUTPUT_KB = 4_096


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a request that a server may refuse.

    Attributes:
        schema: The schema of the answer, as the provider takes it; None to ask for it in words.
        has_logprobs: Whether to ask for the probabilities of tokens.
        limit: The name of the token limit, where the API has several.
        max_tokens: The token limit; None for the server's own.
        has_cache: Whether to send what the request says of the prompt cache.
        has_system: Whether the system prompt has a message of its own; else it begins the prompt.
        refused: What the server has refused of another form of this request.
    """

    schema: dict[str, Any] | None = None
    has_logprobs: bool = False
    limit: str = ""
    max_tokens: int | None = None
    has_cache: bool = False
    has_system: bool = True
    refused: Refused = NOTHING


class HttpModel(ABC):
    """A model behind a provider's HTTP API.

    Args:
        name: The server's name of the model.
        provider: The prefix of the provider's environment variables, as ``OPENAI``.
        base_url: The URL of the server that the user names; None for the provider's own.
        own_url: That of the provider.
        key: The key; empty if there is none.
        headers: The adapter's own headers, below those that the user's variables set.
        concurrency: Connections that may be open at once.
        max_output_kb: The longest useful answer in kilobytes; reading stops at a reply that is many
            times as large.

    Raises:
        ModelError: An environment variable has an invalid value.
    """

    _dialect: Dialect
    _has_logprobs = True
    _url: URL

    def __init__(
        self,
        name: str,
        *,
        provider: str,
        base_url: str | None,
        own_url: str,
        key: str,
        headers: Mapping[str, str],
        concurrency: int,
        max_output_kb: int,
    ) -> None:
        self._name = name
        self._provider = provider
        self._key = key
        self._headers = self._request_headers()
        self._is_own = base_url is None
        self._http = HttpClient(
            base_url or own_url,
            variable=f"{provider}_BASE_URL",
            headers={**headers, **self._headers},
            concurrency=concurrency,
            max_reply_bytes=max(_LEAST_REPLY_BYTES, _REPLY_BYTES_PER_OUTPUT_KB * max_output_kb),
        )
        self._refusals = Refusals(self._http.shown_url, has_logprobs=self._has_logprobs)
        self._limit_headers = LimitHeaders()

    def _request_headers(self) -> dict[str, str]:
        """Return headers with the key and the custom headers of the user, one per line."""
        headers = {
            "accept": "application/json",
            "user-agent": f"fanout-llm/{metadata.version('fanout-llm')}",
            "authorization": f"Bearer {header_value(self._key_variable, self._key or _NO_KEY)}",
        }
        custom = f"{self._provider}_CUSTOM_HEADERS"
        for line in os.environ.get(custom, "").split("\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = header_value(custom, value.strip())
        return headers

    @property
    def identity(self) -> str:
        """See ``fanout.llm.base.identity_of``."""
        return f"{self._provider} {self._name} {self._url}"

    @property
    def http(self) -> HttpClient:
        """The client of the server."""
        return self._http

    @property
    def name(self) -> str:
        """The server's name of the model."""
        return self._name

    @property
    def variable(self) -> str:
        """The environment variable of the base URL."""
        return f"{self._provider}_BASE_URL"

    def batches(self) -> BatchClient | None:
        """Return the provider's batch API for this model; None if it has none."""
        return None

    @property
    def _key_variable(self) -> str:
        return f"{self._provider}_API_KEY"

    @property
    def account(self) -> str:
        """A digest of the server's URL and the key: what one account has made, another cannot see."""
        seen = f"{self._http.shown_url} {self._key}".encode()
        return hashlib.blake2b(seen, digest_size=8).hexdigest()

    async def _exchange(
        self, request: LLMRequest, headers: Mapping[str, str] | None = None
    ) -> HttpReply:
        """Return the reply to a request; without the parts of it that the server refuses."""
        form = self._form(request)
        while True:
            reply = await self._http.post(self._url, self._body(request, form), headers=headers)
            if reply.is_success:
                if form.refused != NOTHING:
                    self._refusals.learn(form.refused, request.shape)
                return reply
            other = self._other_form(reply.status, reply.error_details(), request, form)
            if other is None or other == form:
                return reply
            form = other

    def bought(self, reply: HttpReply, request: LLMRequest) -> LLMReply:
        """Return the answer in the reply to a call; see ``settled``.

        Raises:
            LLMError: As ``settled``; it says whether only the lane of the call has no capacity.
        """
        if request.lane != "flex" or reply.is_success:
            return self.settled(reply)
        try:
            return self.settled(reply)
        except LLMError as error:
            error.is_shed = lacks_capacity(reply.status, reply.error_details())
            raise

    @abstractmethod
    def settled(self, reply: HttpReply) -> LLMReply:
        """Return the answer in a reply to a call.

        Raises:
            LLMError: It is an error reply, or has no answer.
        """

    async def prepared(self, request: LLMRequest) -> bytes:
        """Return the body of a call, by all that is known of the server.

        Raises:
            LLMError: The provider cannot take such a request.
        """
        return self._body(request, self._form(request))

    def sends_otherwise(self, status: int, details: ErrorDetails, request: LLMRequest) -> bool:
        """Learn from the refusal of a request in a batch; return whether it is sent otherwise now.

        What was sent is not known: other requests may have taught this process in the meantime.
        """
        sent = self._whole_form(request, details)
        other = self._other_form(status, details, request, sent)
        if other is None or other == sent:
            return False
        self._refusals.learn(other.refused, request.shape)
        return True

    def _whole_form(self, request: LLMRequest, details: ErrorDetails) -> Form:  # noqa: ARG002 - for adapters
        """Return the form of a request without any refusal."""
        shape = request.shape
        return Form(
            schema=None if shape is None else self._schema(shape),
            has_logprobs=self._has_logprobs and shape is not None and bool(shape.choices),
            has_cache=request.cache is not None,
            max_tokens=request.max_tokens,
        )

    @abstractmethod
    def _body(self, request: LLMRequest, form: Form) -> bytes:
        """Return a request as the provider takes it."""

    def _form(self, request: LLMRequest) -> Form:
        """Return what to send with a request, by all that is known of the server."""
        shape = request.shape
        has_cache = request.cache is not None and self._refusals.takes_cache()
        has_system = self._refusals.takes_system()
        if shape is None:
            return Form(max_tokens=request.max_tokens, has_cache=has_cache, has_system=has_system)
        return Form(
            schema=self._schema(shape) if self._refusals.takes_schema(shape) else None,
            has_logprobs=bool(shape.choices) and self._refusals.takes_logprobs(),
            max_tokens=request.max_tokens,
            has_cache=has_cache,
            has_system=has_system,
        )

    def _schema(self, shape: AnswerShape) -> dict[str, Any] | None:
        """Return the schema of a shape as the provider takes it; None if it cannot."""
        native = shape.native(self._dialect)
        return None if native is None else native.schema

    def _other_form(
        self,
        status: int,
        details: ErrorDetails,
        request: LLMRequest,
        sent: Form,
    ) -> Form | None:
        """Return a form of a request without what a server refuses of it; None if that is nothing."""
        refused = refused_parts(
            status,
            details,
            has_schema=sent.schema is not None,
            has_logprobs=sent.has_logprobs,
            has_cache=sent.has_cache,
            has_system=sent.has_system and self._shows_system(request, sent),
        )
        if refused == NOTHING:
            return None
        return msgspec.structs.replace(
            sent,
            schema=None if refused.schema else sent.schema,
            has_logprobs=sent.has_logprobs and not refused.logprobs,
            has_cache=sent.has_cache and not refused.cache,
            has_system=sent.has_system and not refused.system,
            refused=refused.joined(sent.refused),
        )

    def _shows_system(self, request: LLMRequest, sent: Form) -> bool:
        """Say whether a form of a request has a system prompt, which some models do not take."""
        return bool(request.system) or (request.shape is not None and self._is_told(sent))

    def _is_told(self, form: Form) -> bool:
        """Say whether a form says in words what the answer must be.

        Another server than the provider's own may ignore a schema without a word.
        """
        return form.schema is None or not self._is_own

    def _with_limits(self, answer: LLMReply, reply: HttpReply) -> LLMReply:
        """Return an answer with the rate limits that the headers of its reply tell."""
        limits = self._limit_headers.read(reply.headers)
        return answer if limits is None else msgspec.structs.replace(answer, limits=limits)

    def error_of(self, reply: HttpReply, usage: Usage | None = None) -> LLMError:
        """Return the LLMError of an error reply; ``usage`` is what the reply reports."""
        error = http_error(
            reply.status,
            reply.error_details(),
            headers=reply.headers,
            secrets=(self._key,),
            usage=usage,
        )
        told = self._limit_headers.read(reply.headers, is_error=True)
        error.limits = joined(told, error.limits)
        return error

    def _refused(self, reply: HttpReply) -> ModelError:
        """Return the ModelError with an error reply to a check."""
        problem = self.error_of(reply)
        return ModelError(f"{self._http.shown_url} says: {problem}", kind=problem.kind)

    async def ask(self, path: str) -> HttpReply:
        """Return the reply to a GET below the base URL; retry temporary failures for a while.

        Raises:
            ModelError: No server answers, it refuses the key, or it fails.
        """
        reply = await self._patiently(path)
        if reply.is_success or reply.status in _PROVES_NOTHING:
            return reply
        problem = self.error_of(reply)
        if reply.status == _UNAUTHORIZED and "scope" not in str(problem).lower():
            raise ModelError(
                f"{self._http.shown_url} refuses the key in {self._key_variable} ({problem}); set "
                "a valid one where the workers run",
                kind=ErrorKind.AUTH,
            )
        if problem.kind is ErrorKind.BAD_REQUEST or reply.status == _UNAUTHORIZED:
            return reply
        raise self._refused(reply)

    async def _patiently(self, path: str) -> HttpReply:
        until = time.monotonic() + _PATIENCE_S
        wait_s = _FIRST_WAIT_S
        while True:
            reply = await self._ask_once(path)
            asked_s = self.error_of(reply).retry_after_s if reply.status in _PASSES else None
            wait_s = max(asked_s or 0.0, wait_s)
            if reply.status not in _PASSES or time.monotonic() + wait_s > until:
                return reply
            await asyncio.sleep(wait_s)
            wait_s *= 2

    async def _ask_once(self, path: str) -> HttpReply:
        try:
            return await self._http.get(self._http.url(path), timeout_s=_REQUEST_S)
        except LLMError as error:
            raise ModelError(
                f"no server answers at {self._http.shown_url} ({error}); start it, check the "
                f"network, or set {self._provider}_BASE_URL where the workers run",
                kind=ErrorKind.CONNECTION,
            ) from None

    async def aclose(self) -> None:
        """See LLM."""
        await self._http.aclose()


def header_value(variable: str, value: str) -> str:
    """Return a valid header value. Raises ModelError for an invalid character."""
    if not _HEADER_VALUE.fullmatch(value):
        raise ModelError(
            f"{variable} holds a character that no HTTP header may have, such as a line break; set "
            "it anew where the workers run",
            kind=ErrorKind.AUTH,
        )
    return value
