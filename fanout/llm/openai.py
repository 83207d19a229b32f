"""The adapter of OpenAI's chat completions, which Azure, vLLM, Ollama and others offer too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.lanes import lane_of
from fanout.core.records import ErrorKind
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.confidence import OTHERS, token_of, tokens_of
from fanout.llm.finish_reasons import require_answer, require_complete
from fanout.llm.http_errors import no_answer, refused_in_success
from fanout.llm.http_model import DEFAULT_OUTPUT_KB, Form, HttpModel, header_value
from fanout.llm.invalid_answers import invalid_answer
from fanout.llm.provider_usage import openai_usage
from fanout.llm.refusals import refuses_parameter
from fanout.llm.reply_bodies import content_text, error_details_in, text_or_none

if TYPE_CHECKING:
    from fanout.core.records import Usage
    from fanout.core.strict_schema import Dialect
    from fanout.llm.base import Token
    from fanout.llm.batches.base import BatchClient
    from fanout.llm.http_client import HttpReply
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = ["OpenAILLM", "json_schema_format"]

_BASE_URL = "https://api.openai.com/v1"
_BAD_REQUEST, _NOT_FOUND = 400, 404
# Codes of an error that is none.
_FINE = frozenset({"0", "200", "ok", "success"})
_COMPLETION = "a chat completion"
_MAX_TOKENS, _MAX_COMPLETION_TOKENS = _LIMITS = ("max_tokens", "max_completion_tokens")


class _Request(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The body of a request, without unset options."""

    model: str
    messages: list[dict[str, str]]
    temperature: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    response_format: dict[str, Any] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None


class _Answer(msgspec.Struct):
    content: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    message: _Answer | None = None
    finish_reason: Any = None
    logprobs: Any = None
    error: Any = None


class _Completion(msgspec.Struct):
    """The fields that we read from a reply; all are optional, and others are ignored."""

    choices: list[_Choice] | None = None
    usage: Any = None
    id: Any = None
    model: Any = None
    error: Any = None
    service_tier: Any = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Completion).decode


class OpenAILLM(HttpModel):
    """A model behind chat completions.

    Args:
        name: The server's name of the model.
        concurrency: See HttpModel.
        base_url: The URL of the server; if None, ``OPENAI_BASE_URL``, else OpenAI.
        api_key: The key; if None, ``OPENAI_API_KEY``. A server at a base URL may need none.
        max_output_kb: See HttpModel.

    Raises:
        ModelError: An environment variable has an invalid value.
    """

    _dialect: Dialect = "openai"

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 32,
        base_url: str | None = None,
        api_key: str | None = None,
        max_output_kb: int = DEFAULT_OUTPUT_KB,
    ) -> None:
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        super().__init__(
            name,
            provider="OPENAI",
            base_url=base_url,
            own_url=_BASE_URL,
            key=api_key or os.environ.get("OPENAI_API_KEY") or "",
            headers=_account_headers(),
            concurrency=concurrency,
            max_output_kb=max_output_kb,
        )
        # OpenAI's reasoning models refuse max_tokens; most compatible servers know only max_tokens.
        self._limit = _MAX_COMPLETION_TOKENS if self._is_own else _MAX_TOKENS
        self._refused_limits: set[str] = set()
        self._batches: BatchClient | None = None
        self._url = self._http.url("chat/completions")

    async def check(self) -> None:
        """See LLM."""
        if not self._key and self._is_own:
            raise ModelError(
                "OPENAI_API_KEY is not set; set it where the workers run, or set OPENAI_BASE_URL "
                "to a server that needs no key",
                kind=ErrorKind.AUTH,
            )
        listed = await self.ask("models")
        if not listed.is_success:
            await self._check_path(listed)
        elif self._name not in _listed_models(listed):
            # Lists are incomplete, and some servers accept any name: only an explicit refusal counts.
            reply = await self.ask(f"models/{self._http.quoted(self._name)}")
            if reply.status == _NOT_FOUND and "model_not_found" in reply.error_details().codes:
                raise self._refused(reply)

    async def _check_path(self, listed: HttpReply) -> None:
        is_bare = self._http.path in {"", "/"}
        if is_bare and listed.status == _NOT_FOUND and await self._has_json("v1/models"):
            raise ModelError(
                f"OPENAI_BASE_URL lacks its path: there is nothing at {self._http.shown_url}, but "
                "there is at /v1; set it with that where the workers run",
                kind=ErrorKind.BAD_REQUEST,
            )

    async def _has_json(self, path: str) -> bool:
        try:
            reply = await self._ask_once(path)
        except ModelError:
            return False
        return reply.is_success and reply.body.lstrip()[:1] in {b"{", b"["}

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        return self.bought(await self._exchange(request), request)

    def batches(self) -> BatchClient:
        """See HttpModel."""
        if self._batches is None:
            from fanout.llm.batches.openai import OpenAIBatches

            self._batches = OpenAIBatches(self)
        return self._batches

    @property
    def is_openai(self) -> bool:
        """Whether the server is OpenAI's own."""
        return self._is_own

    def settled(self, reply: HttpReply) -> LLMReply:
        """See HttpModel."""
        if not reply.is_success:
            fields = _fields(reply)
            answer = invalid_answer(reply.status, fields)
            if answer is not None:
                return self._with_limits(answer, reply)
            raise self.error_of(reply, _usage_in(fields))
        completion = _parsed(reply, self._key)
        if _says_error(completion):
            problem = _error_in(completion, reply, self._key)
            if problem is not None:
                raise problem
        try:
            return self._with_limits(_reply(completion), reply)
        except LLMError:
            problem = _error_in(completion, reply, self._key)
            if problem is not None:
                raise problem from None
            raise

    def _form(self, request: LLMRequest) -> Form:
        return msgspec.structs.replace(super()._form(request), limit=self._limit)

    def _whole_form(self, request: LLMRequest, details: ErrorDetails) -> Form:
        refused = (name for name in _LIMITS if refuses_parameter(_BAD_REQUEST, details, name))
        form = super()._whole_form(request, details)
        return msgspec.structs.replace(form, limit=next(refused, self._limit))

    def _other_form(
        self, status: int, details: ErrorDetails, request: LLMRequest, sent: Form
    ) -> Form | None:
        other = self._other_limit(status, details, request, sent)
        return other or super()._other_form(status, details, request, sent)

    def _other_limit(
        self, status: int, details: ErrorDetails, request: LLMRequest, sent: Form
    ) -> Form | None:
        """Switch to the other name of the token limit if the server refuses the one sent."""
        if request.max_tokens is None:
            return None
        if not refuses_parameter(status, details, sent.limit):
            return None
        self._refused_limits.add(sent.limit)
        self._limit = next(
            (name for name in _LIMITS if name not in self._refused_limits), sent.limit
        )
        if self._limit == sent.limit:
            return None
        return msgspec.structs.replace(sent, limit=self._limit)

    def _body(self, request: LLMRequest, form: Form) -> bytes:
        is_old = form.limit == _MAX_TOKENS
        return _encode(
            _Request(
                model=self._name,
                messages=request.messages(in_words=self._is_told(form), has_system=form.has_system),
                temperature=request.temperature,
                max_tokens=request.max_tokens if is_old else None,
                max_completion_tokens=None if is_old else request.max_tokens,
                seed=request.seed,
                stop=request.stop,
                response_format=None if form.schema is None else json_schema_format(form.schema),
                logprobs=form.has_logprobs,
                top_logprobs=OTHERS if form.has_logprobs else None,
                prompt_cache_key=request.cache.key if request.cache and form.has_cache else None,
                service_tier="flex" if request.lane == "flex" else None,
            )
        )


def json_schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as chat completions take it."""
    named = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


def _account_headers() -> dict[str, str]:
    named = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
    given = {header: (name, os.environ.get(name)) for header, name in named.items()}
    return {header: header_value(name, value) for header, (name, value) in given.items() if value}


def _fields(reply: HttpReply) -> dict[str, Any]:
    """Return the JSON object of a reply; an empty one for any other body."""
    try:
        content = reply.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _usage_in(content: Any) -> Usage | None:
    """Return the usage that the JSON of a reply reports; None if it reports none."""
    counts = content.get("usage") if isinstance(content, dict) else None
    return openai_usage(counts) if isinstance(counts, dict) else None


def _listed_models(reply: HttpReply) -> set[str]:
    models = _fields(reply).get("data")
    models = models if isinstance(models, list) else []
    return {str(model.get("id")) for model in models if isinstance(model, dict)}


def _parsed(reply: HttpReply, key: str) -> _Completion:
    try:
        return _decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # Not a completion, or imperfect JSON: some servers cut characters in half or write ``NaN``.
    try:
        content = reply.json()
        return msgspec.convert(content, _Completion)
    except msgspec.ValidationError as error:
        usage = _usage_in(content)
        problem = refused_in_success(content, headers=reply.headers, secrets=(key,), usage=usage)
        raise problem or no_answer(_COMPLETION, str(error), usage) from None
    except (ValueError, RecursionError) as error:
        raise no_answer(_COMPLETION, str(error)) from None


def _says_error(completion: _Completion) -> bool:
    """Say whether a completion has an error beside its answer, as OpenRouter's may.

    Source: OpenRouter's API reference, ``choices[].error``.
    """
    choice = completion.choices[0] if completion.choices else None
    for error in (completion.error, choice.error if choice else None):
        details = error_details_in({"error": error}) if error else None
        if details is not None and (details.message or not _FINE.issuperset(details.codes)):
            return True
    return False


def _error_in(completion: _Completion, reply: HttpReply, key: str) -> LLMError | None:
    """Return the error in a completion without an answer, or None."""
    choice = completion.choices[0] if completion.choices else None
    usage = openai_usage(completion.usage) if isinstance(completion.usage, dict) else None
    if choice is not None and choice.error:
        content: Any = {"error": choice.error}
    elif choice is None or completion.error:
        try:
            content = reply.json()
        except ValueError as fault:
            return no_answer("a completion", str(fault), usage)
    else:
        return None
    return refused_in_success(content, headers=reply.headers, secrets=(key,), usage=usage)


def _reply(completion: _Completion) -> LLMReply:
    usage = openai_usage(completion.usage)
    if not completion.choices:
        raise LLMError(ErrorKind.INVALID_OUTPUT, "the reply has no choices", usage=usage)
    choice = completion.choices[0]
    message = choice.message
    if message and _is_refusal(message):
        raise LLMError(
            ErrorKind.CONTENT_FILTER,
            "the provider refused to answer",
            usage=usage,
            finish_reason=text_or_none(choice.finish_reason),
        )
    reply = LLMReply(
        text=(content_text(message.content) if message else None) or "",
        usage=usage,
        model=text_or_none(completion.model),
        response_id=text_or_none(completion.id),
        finish_reason=text_or_none(choice.finish_reason),
        tokens=_tokens(choice.logprobs) if choice.logprobs else (),
        lane=lane_of(completion.service_tier),
    )
    if message is None:
        require_complete(reply)
        raise no_answer(_COMPLETION, "its first choice has no message", usage)
    require_answer(reply, message.content)
    return reply


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """Return the tokens in the log-probabilities of a choice; none if they make no sense.

    Together lists tokens and logarithms apart.
    """
    if not isinstance(logprobs, dict):
        return ()
    content, texts = logprobs.get("content"), logprobs.get("tokens")
    if content is None and isinstance(texts, list):
        numbers = logprobs.get("token_logprobs")
        if isinstance(numbers, list) and len(numbers) == len(texts):
            pairs = list(zip(texts, numbers, strict=True))
            return tokens_of(pairs, lambda pair: token_of(*pair))
    return tokens_of(content, _token)


def _token(entry: Any) -> Token | None:
    if not isinstance(entry, dict):
        return None
    others = entry.get("top_logprobs")
    likely = [
        (other.get("token"), other.get("logprob"), other.get("bytes"))
        for other in (others if isinstance(others, list) else ())
        if isinstance(other, dict)
    ]
    return token_of(entry.get("token"), entry.get("logprob"), entry.get("bytes"), likely)


def _is_refusal(message: _Answer) -> bool:
    parts = message.content if isinstance(message.content, list) else []
    return bool(message.refusal) or any(
        isinstance(part, dict) and part.get("type") == "refusal" for part in parts
    )
