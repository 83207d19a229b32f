"""The adapter of Gemini's generateContent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.lanes import lane_of
from fanout.core.records import ErrorKind
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.confidence import OTHERS, token_of, tokens_of
from fanout.llm.finish_reasons import require_answer
from fanout.llm.gemini_schema import response_schema
from fanout.llm.http_errors import no_answer, refused_in_success
from fanout.llm.http_model import DEFAULT_OUTPUT_KB, Form, HttpModel, header_value
from fanout.llm.provider_usage import gemini_usage
from fanout.llm.reply_bodies import text_or_none

if TYPE_CHECKING:
    from fanout.core.answer_shape import AnswerShape
    from fanout.core.strict_schema import Dialect
    from fanout.llm.base import Token
    from fanout.llm.batches.base import BatchClient
    from fanout.llm.http_client import HttpReply

__all__ = ["GeminiLLM"]

_BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
_NOT_FOUND = 404
_ANSWER = "an answer"
_ROLES = {"user": "user", "assistant": "model"}

_encode = msgspec.json.Encoder().encode


class GeminiLLM(HttpModel):
    """A model behind Gemini's generateContent: see HttpModel."""

    _dialect: Dialect = "gemini"

    def __init__(
        self, name: str, *, concurrency: int = 32, max_output_kb: int = DEFAULT_OUTPUT_KB
    ) -> None:
        super().__init__(
            name,
            provider="GEMINI",
            base_url=os.environ.get("GEMINI_BASE_URL") or None,
            own_url=_BASE_URL,
            key=os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY") or "",
            headers={},
            concurrency=concurrency,
            max_output_kb=max_output_kb,
        )
        self._batches: BatchClient | None = None
        self._schemas: WeakKeyDictionary[AnswerShape, dict[str, Any] | None] = WeakKeyDictionary()
        self._url = self._http.url(f"models/{self._http.quoted(name)}:generateContent")

    def _request_headers(self) -> dict[str, str]:
        headers = super()._request_headers()
        # A key in a header of its own; a custom header may replace it by a token.
        headers.setdefault("x-goog-api-key", header_value(self._key_variable, self._key))
        if headers["authorization"].startswith("Bearer "):
            bearer = headers["authorization"].removeprefix("Bearer ")
            if bearer in {self._key, "none"}:
                del headers["authorization"]
        return headers

    async def check(self) -> None:
        """See LLM."""
        if not self._key:
            raise ModelError(
                "GEMINI_API_KEY is not set; set it where the workers run", kind=ErrorKind.AUTH
            )
        reply = await self.ask(f"models/{self._http.quoted(self._name)}")
        if reply.status == _NOT_FOUND and "not_found" in reply.error_details().codes:
            raise self._refused(reply)

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        return self.bought(await self._exchange(request), request)

    def batches(self) -> BatchClient:
        """See HttpModel."""
        if self._batches is None:
            from fanout.llm.batches.gemini import GeminiBatches

            self._batches = GeminiBatches(self)
        return self._batches

    def settled(self, reply: HttpReply) -> LLMReply:
        """See HttpModel."""
        if not reply.is_success:
            raise self.error_of(reply)
        answer = _reply(_content(reply, self._key))
        tier = reply.headers.get("x-gemini-service-tier")
        if tier is not None:
            answer = msgspec.structs.replace(answer, lane=lane_of(tier))
        return self._with_limits(answer, reply)

    def _schema(self, shape: AnswerShape) -> dict[str, Any] | None:
        if shape not in self._schemas:
            native = shape.native(self._dialect)
            self._schemas[shape] = None if native is None else response_schema(native)
        return self._schemas[shape]

    def _body(self, request: LLMRequest, form: Form) -> bytes:
        schema = form.schema
        chat = request.messages(in_words=self._is_told(form), has_system=form.has_system)
        system = chat.pop(0)["content"] if chat[0]["role"] == "system" else None
        config = {
            "temperature": request.temperature,
            "maxOutputTokens": request.max_tokens,
            "seed": request.seed,
            "stopSequences": list(request.stop) or None,
            "responseMimeType": "application/json" if schema is not None else None,
            "responseSchema": schema,
            "responseLogprobs": form.has_logprobs or None,
            "logprobs": OTHERS if form.has_logprobs else None,
        }
        body: dict[str, Any] = {
            "contents": [
                {"role": _ROLES[one["role"]], "parts": [{"text": one["content"]}]} for one in chat
            ]
        }
        if request.lane == "flex":
            body["serviceTier"] = "flex"
        if system is not None:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        given = {name: value for name, value in config.items() if value is not None}
        if given:
            body["generationConfig"] = given
        return _encode(body)


def _content(reply: HttpReply, key: str) -> dict[str, Any]:
    """Return the JSON object in a success reply. Raises LLMError if it has no answer."""
    try:
        content = reply.json()
    except ValueError as error:
        raise no_answer(_ANSWER, str(error)) from None
    if not isinstance(content, dict):
        raise no_answer(_ANSWER, "it is no object")
    feedback = content.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        raise LLMError(
            ErrorKind.CONTENT_FILTER,
            f"the provider refused the prompt ({str(feedback['blockReason'])[:40]})",
            usage=gemini_usage(content.get("usageMetadata")),
        )
    if content.get("candidates"):
        return content
    counts = content.get("usageMetadata")
    usage = gemini_usage(counts) if isinstance(counts, dict) else None
    problem = refused_in_success(content, headers=reply.headers, secrets=(key,), usage=usage)
    raise problem or no_answer(_ANSWER, "it has no candidates", usage)


def _reply(content: dict[str, Any]) -> LLMReply:
    candidates = content["candidates"]
    first = candidates[0] if isinstance(candidates, list) and candidates else {}
    candidate = first if isinstance(first, dict) else {}
    held = candidate.get("content")
    parts = held.get("parts") if isinstance(held, dict) else None
    if not isinstance(parts, list | None):
        usage = gemini_usage(content.get("usageMetadata"))
        raise no_answer(_ANSWER, "its parts are no list", usage)
    texts = [
        part["text"]
        for part in parts or ()
        if isinstance(part, dict) and isinstance(part.get("text"), str) and not part.get("thought")
    ]
    reply = LLMReply(
        text="".join(texts),
        usage=gemini_usage(content.get("usageMetadata")),
        model=text_or_none(content.get("modelVersion")),
        response_id=text_or_none(content.get("responseId")),
        finish_reason=text_or_none(candidate.get("finishReason")),
        tokens=_tokens(candidate.get("logprobsResult")),
    )
    require_answer(reply)
    return reply


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """Return the tokens of a candidate; none if they make no sense.

    Source: Gemini's API reference, ``LogprobsResult``.
    """
    if not isinstance(logprobs, dict):
        return ()
    chosen, likely = logprobs.get("chosenCandidates"), logprobs.get("topCandidates")
    if not isinstance(chosen, list):
        return ()
    if not isinstance(likely, list) or len(likely) != len(chosen):
        likely = [None] * len(chosen)
    return tokens_of(list(zip(chosen, likely, strict=True)), _token)


def _token(entry: tuple[Any, Any]) -> Token | None:
    own, likely = entry
    if not isinstance(own, dict):
        return None
    others = likely.get("candidates") if isinstance(likely, dict) else None
    return token_of(
        own.get("token"),
        own.get("logProbability"),
        None,
        [
            (other.get("token"), other.get("logProbability"), None)
            for other in (others if isinstance(others, list) else ())
            if isinstance(other, dict)
        ],
    )
