"""The adapter of Anthropic's Messages API."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.finish_reasons import require_answer
from fanout.llm.http_errors import no_answer, refused_in_success
from fanout.llm.http_model import DEFAULT_OUTPUT_KB, Form, HttpModel
from fanout.llm.provider_usage import anthropic_usage
from fanout.llm.reply_bodies import content_text, text_or_none

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.strict_schema import Dialect
    from fanout.llm.batches.base import BatchClient
    from fanout.llm.http_client import HttpReply
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = ["AnthropicLLM"]

_BASE_URL = "https://api.anthropic.com"
_VERSION = "2026-10-21"
# The version above refuses a temperature; the previous one accepts it if the model does.
# Source: https://platform.claude.com/docs/en/api/migration-2026-10-21
_VERSION_HEADER = "anthropic-version"
_WITH_TEMPERATURE = {_VERSION_HEADER: "2023-06-01"}
_NOT_FOUND = 404
_MESSAGE = "a message"
# The API requires a limit: the model's own, the first prefix that fits. For other models, the API says
# it. Source: https://platform.claude.com/docs/en/about-claude/models/overview ("Max output").
_MAX_TOKENS = {
    "claude-opus-4-5": 64_000,
    "claude-sonnet-4-5": 64_000,
    "claude-haiku-4-5": 64_000,
    "claude-opus-4-1": 32_000,
    "claude-opus-4-0": 32_000,
    "claude-opus-4-2025": 32_000,
    "claude-sonnet-4-0": 64_000,
    "claude-sonnet-4-2025": 64_000,
    "claude-opus-4-": 128_000,
    "claude-sonnet-4-": 128_000,
    "claude-3-7": 64_000,
    "claude-3-5": 8_192,
    "claude-3-": 4_096,
    "claude-2": 4_096,
    "claude-instant": 4_096,
}
# The limit of a model of which nothing is known, and what to try where a server refuses one without
# a word of its own.
_MOST_TOKENS = 128_000
_LOWER_TOKENS = (64_000, 32_000, 8_192, 4_096)
_TOO_MANY = re.compile(r"max_tokens: (\d{1,12}) > (\d{1,12})")
_BEYOND_WINDOW = re.compile(r"exceeds? context limit: (\d{1,12}) \+ (\d{1,12}) > (\d{1,12})")
_LOOK_S = 10.0
_LOOKS = 3
_NONSENSE = 100_000_000
_UNPROCESSED = frozenset({400, 422})

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class AnthropicLLM(HttpModel):
    """A model behind Anthropic's Messages API: see HttpModel."""

    _dialect: Dialect = "anthropic"
    # The API has none.
    _has_logprobs = False

    def __init__(
        self, name: str, *, concurrency: int = 32, max_output_kb: int = DEFAULT_OUTPUT_KB
    ) -> None:
        key = os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")
        super().__init__(
            name,
            provider="ANTHROPIC",
            base_url=os.environ.get("ANTHROPIC_BASE_URL") or None,
            own_url=_BASE_URL,
            key=key or "",
            headers={_VERSION_HEADER: _VERSION},
            concurrency=concurrency,
            max_output_kb=max_output_kb,
        )
        known = (limit for prefix, limit in _MAX_TOKENS.items() if name.startswith(prefix))
        self._max_tokens = next(known, None)
        self._looking = asyncio.Lock()
        self._looks = 0
        self._batches: BatchClient | None = None
        self._is_version_given = _VERSION_HEADER in self._headers
        self._url = self._http.url("v1/messages")

    async def check(self) -> None:
        """See LLM."""
        if not self._key:
            raise ModelError(
                "ANTHROPIC_API_KEY is not set; set it where the workers run", kind=ErrorKind.AUTH
            )
        # The list of models omits aliases; this endpoint resolves them.
        reply = await self.ask(f"v1/models/{self._http.quoted(self._name)}")
        details = reply.error_details()
        is_of_model = details.message.lower().startswith("model")
        if reply.status == _NOT_FOUND and "not_found_error" in details.codes and is_of_model:
            raise self._refused(reply)
        self._max_tokens = _limit_in(reply) or self._max_tokens

    async def _find_limit(self) -> None:
        """Ask the API, once per process, for the longest answer of a model that is not in the table.

        Source: https://platform.claude.com/docs/en/api/models/retrieve (``max_tokens``).
        """
        async with self._looking:
            while self._max_tokens is None:
                self._looks += 1
                try:
                    reply = await self._http.get(
                        self._http.url(f"v1/models/{self._http.quoted(self._name)}"),
                        timeout_s=_LOOK_S,
                    )
                except LLMError:
                    if self._looks < _LOOKS:
                        # The call itself will meet the same fault.
                        return
                    reply = None
                self._max_tokens = (reply and _limit_in(reply)) or _MOST_TOKENS

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        await self._require_ready(request)
        is_older = request.temperature is not None
        return self.settled(await self._exchange(request, self.version_for(is_older=is_older)))

    async def _require_ready(self, request: LLMRequest) -> None:
        if request.seed is not None:
            raise LLMError(ErrorKind.BAD_REQUEST, "anthropic takes no seed: leave it out")
        if request.max_tokens is None and self._max_tokens is None:
            await self._find_limit()

    def version_for(self, *, is_older: bool) -> dict[str, str] | None:
        """Return the header of the older version, which takes a temperature, if that is asked for."""
        return _WITH_TEMPERATURE if is_older and not self._is_version_given else None

    def batches(self) -> BatchClient:
        """See HttpModel."""
        if self._batches is None:
            from fanout.llm.batches.anthropic import AnthropicBatches

            self._batches = AnthropicBatches(self)
        return self._batches

    async def prepared(self, request: LLMRequest) -> bytes:
        """See HttpModel."""
        await self._require_ready(request)
        return await super().prepared(request)

    def settled(self, reply: HttpReply) -> LLMReply:
        """See HttpModel."""
        if not reply.is_success:
            raise self.error_of(reply)
        return self._with_limits(_reply(_message(reply, self._key)), reply)

    def _form(self, request: LLMRequest) -> Form:
        form = super()._form(request)
        if form.max_tokens is not None:
            return form
        return msgspec.structs.replace(form, max_tokens=self._max_tokens or _MOST_TOKENS)

    def _whole_form(self, request: LLMRequest, details: ErrorDetails) -> Form:
        form = super()._whole_form(request, details)
        if form.max_tokens is not None:
            return form
        # Without the number that was sent, many items of a batch would each lower the limit.
        told = _TOO_MANY.search(details.message)
        return msgspec.structs.replace(form, max_tokens=int(told[1]) if told else None)

    def _other_form(
        self, status: int, details: ErrorDetails, request: LLMRequest, sent: Form
    ) -> Form | None:
        own = request.max_tokens is not None
        limit = None if own else self._other_limit(status, details.message, sent)
        if limit is not None:
            return msgspec.structs.replace(sent, max_tokens=limit)
        return super()._other_form(status, details, request, sent)

    def _other_limit(self, status: int, message: str, sent: Form) -> int | None:
        """Return a lower limit than the one that the server refuses, which was not the user's."""
        asked = sent.max_tokens or 0
        if status not in _UNPROCESSED or "max_tokens" not in message:
            return None
        beyond = _BEYOND_WINDOW.search(message)
        if beyond is not None:
            # Only this prompt leaves less room.
            room = int(beyond[3]) - int(beyond[1])
            return room if 0 < room < asked else None
        told = _TOO_MANY.search(message)
        limits = [int(told[2])] if told else [lower for lower in _LOWER_TOKENS if lower < asked]
        if not limits or not 0 < limits[0] < asked:
            return None
        if limits[0] < (self._max_tokens or _MOST_TOKENS):
            self._max_tokens = limits[0]
            _log.warning("%s answers with at most %d tokens", self._name, limits[0])
        return limits[0]

    def _shows_system(self, request: LLMRequest, sent: Form) -> bool:  # noqa: ARG002 - see HttpModel
        # Each of its models takes one.
        return False

    def _body(self, request: LLMRequest, form: Form) -> bytes:
        chat: list[dict[str, Any]] = list(request.messages(in_words=self._is_told(form)))
        system: Any = chat.pop(0)["content"] if chat[0]["role"] == "system" else None
        marks = request.cache.marks if request.cache and form.has_cache else ()
        if marks:
            if system and marks[0] == 0:
                system = [_block(system, is_marked=True)]
            chat[0]["content"] = _blocks(request.prompt, marks)
        format_ = {"type": "json_schema", "schema": form.schema} if form.schema else None
        options = {
            "max_tokens": form.max_tokens,
            "system": system,
            "temperature": request.temperature,
            "stop_sequences": list(request.stop) or None,
            "output_config": {"format": format_} if format_ else None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return _encode({"model": self._name, "messages": chat, **given})


def _blocks(prompt: str, marks: Sequence[int]) -> list[dict[str, Any]]:
    """Return a prompt as blocks that end where it is marked."""
    # The API refuses blank blocks.
    ends = [end for end in marks if end == len(prompt) or prompt[end:].strip()]
    blocks, begin = [], 0
    for end in (*ends, len(prompt)):
        text = prompt[begin:end]
        if text.strip():
            blocks.append(_block(text, is_marked=end in ends))
            begin = end
    return blocks


def _block(text: str, *, is_marked: bool) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": text}
    return {**block, "cache_control": {"type": "ephemeral"}} if is_marked else block


def _limit_in(reply: HttpReply) -> int | None:
    """Return the longest answer in the details of a model, in tokens; None if it has none."""
    try:
        content = reply.json() if reply.is_success else None
    except ValueError:
        return None
    limit = content.get("max_tokens") if isinstance(content, dict) else None
    is_limit = isinstance(limit, int) and not isinstance(limit, bool) and 0 < limit < _NONSENSE
    return limit if is_limit else None


def _message(reply: HttpReply, key: str) -> dict[str, Any]:
    """Return the message in a success reply. Raises LLMError if the reply has none."""
    try:
        content = reply.json()
    except ValueError as error:
        raise no_answer(_MESSAGE, str(error)) from None
    if isinstance(content, dict) and "content" in content:
        return content
    counts = content.get("usage") if isinstance(content, dict) else None
    usage = anthropic_usage(counts) if isinstance(counts, dict) else None
    problem = refused_in_success(content, headers=reply.headers, secrets=(key,), usage=usage)
    raise problem or no_answer(_MESSAGE, "it has no content", usage)


def _reply(message: dict[str, Any]) -> LLMReply:
    reply = LLMReply(
        text=content_text(message["content"]) or "",
        usage=anthropic_usage(message.get("usage")),
        model=text_or_none(message.get("model")),
        response_id=text_or_none(message.get("id")),
        finish_reason=text_or_none(message.get("stop_reason")),
    )
    require_answer(reply, message["content"])
    return reply
