"""The adapter of litellm for all other providers: an optional extra, large and slow to import."""

from __future__ import annotations

import asyncio
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind, Usage
from fanout.llm.base import LLMReply, LLMRequest, Token
from fanout.llm.confidence import OTHERS, token_of, tokens_of
from fanout.llm.finish_reasons import require_answer
from fanout.llm.http_errors import http_error, redacted_line
from fanout.llm.limit_headers import LimitHeaders
from fanout.llm.limit_words import joined
from fanout.llm.openai import json_schema_format
from fanout.llm.provider_usage import openai_usage
from fanout.llm.refusals import NOTHING, Refusals, refused_parts
from fanout.llm.reply_bodies import content_text, error_details_in, text_or_none
from fanout.llm.usage import UNKNOWN_USAGE, cost_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.llm.refusals import Refused
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = ["LiteLLM"]

_UNPROCESSED = 400
# The ends of the names of variables that say where a provider is, after its name.
_ADDRESSES = ("_API_BASE", "_BASE_URL", "_API_VERSION")
# The kinds of litellm's exceptions whose status means nothing. It also raises APIConnectionError for a
# reply that it cannot read.
_KINDS = {
    "Timeout": ErrorKind.TIMEOUT,
    "APIConnectionError": ErrorKind.CONNECTION,
    "APIResponseValidationError": ErrorKind.SERVER_ERROR,
}
# The exceptions of httpx, aiohttp and Python before a request is sent.
_UNSENT = frozenset(
    {"ConnectError", "ConnectTimeout", "ClientConnectorError", "ClientConnectorDNSError",
     "ConnectionRefusedError"}
)  # fmt: skip
_MOST_CAUSES = 10


class LiteLLM:
    """A model as litellm names it: ``PROVIDER/NAME``.

    Args:
        name: The model's name.

    Raises:
        ModelError: The extra is not installed.
    """

    def __init__(self, name: str) -> None:
        # Without this, litellm downloads its price map at import.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        try:
            import litellm
        except ImportError:
            raise ModelError(
                "litellm/... needs an extra: pip install 'fanout-llm[litellm]'"
            ) from None
        self._litellm: Any = litellm
        self._name = name
        self._refusals = Refusals(name)
        self._limit_headers = LimitHeaders()
        litellm.suppress_debug_info = True

    @cached_property
    def identity(self) -> str:
        """See ``fanout.llm.base.identity_of``. Only variables of its own provider are in it."""
        provider, address = self._provider()
        addresses = sorted(
            (name, value)
            for name, value in os.environ.items()
            for end in _ADDRESSES
            if name.endswith(end) and _is_of(provider, name.removesuffix(end))
        )
        return f"litellm {self._name} {address} {addresses}"

    def _provider(self) -> tuple[str, str]:
        """Return the provider as litellm names it, and the address that it takes, as far as it says."""
        try:
            _, provider, _, address = self._litellm.get_llm_provider(self._name)
        except Exception:  # noqa: BLE001 - litellm raises all sorts; a call will show it
            return self._name.partition("/")[0], ""
        return str(provider), str(address or "")

    async def check(self) -> None:
        """See LLM. Checks only the provider's variables: every litellm call costs tokens."""
        try:
            self._litellm.get_llm_provider(self._name)
            environment = await asyncio.to_thread(self._litellm.validate_environment, self._name)
            is_complete = environment["keys_in_environment"]
            missing = [] if is_complete else environment["missing_keys"]
        except Exception as error:  # noqa: BLE001 - litellm raises all sorts
            raise ModelError(
                f"litellm does not know {self._name}: {redacted_line(str(error))}"
            ) from None
        if missing:
            names = " or ".join(missing)
            raise ModelError(
                f"{names} is not set; set it where the workers run", kind=ErrorKind.AUTH
            )

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        try:
            return self._reply(await self._complete(request))
        except Exception as error:
            if isinstance(error, LLMError):
                raise
            raise self._error(error) from error

    async def _complete(self, request: LLMRequest) -> Any:
        shape = request.shape
        takes_schema = shape is not None and self._refusals.takes_schema(shape)
        native = shape.native("openai") if shape is not None and takes_schema else None
        has_logprobs = shape is not None and bool(shape.choices) and self._refusals.takes_logprobs()
        has_system = self._refusals.takes_system()
        refused = NOTHING
        while True:
            options = _options(request)
            if native is not None:
                options["response_format"] = json_schema_format(native.schema)
            if has_logprobs:
                options.update(logprobs=True, top_logprobs=OTHERS)
            try:
                # A provider may ignore a schema without a word.
                reply = await self._litellm.acompletion(
                    model=self._name,
                    messages=request.messages(in_words=True, has_system=has_system),
                    num_retries=0,
                    **options,
                )
            except Exception as error:
                parts = _refused(
                    error,
                    has_schema=native is not None,
                    has_logprobs=has_logprobs,
                    has_system=has_system and (bool(request.system) or shape is not None),
                )
                if parts == NOTHING:
                    raise
                native = None if parts.schema else native
                has_logprobs = has_logprobs and not parts.logprobs
                has_system = has_system and not parts.system
                refused = parts.joined(refused)
            else:
                self._refusals.learn(refused, shape)
                return reply

    def _error(self, error: Exception) -> LLMError:
        name = type(error).__name__
        if name in _KINDS:
            usage = None if _is_unsent(error) else UNKNOWN_USAGE
            return LLMError(_KINDS[name], redacted_line(str(error)), usage=usage)
        status = getattr(error, "status_code", None)
        if not isinstance(status, int):
            return LLMError(ErrorKind.INTERNAL, f"{name}: {redacted_line(str(error))}")
        headers = _mapping(getattr(getattr(error, "response", None), "headers", None))
        problem = http_error(status, _details(error), headers=headers)
        told = self._limit_headers.read(headers, is_error=True)
        problem.limits = joined(told, problem.limits)
        return problem

    def _reply(self, response: Any) -> LLMReply:
        choices = getattr(response, "choices", None)
        usage = self._usage(response)
        if not isinstance(choices, list | tuple) or not choices:
            raise LLMError(ErrorKind.INVALID_OUTPUT, "the reply has no choices", usage=usage)
        choice = choices[0]
        reply = LLMReply(
            text=content_text(getattr(getattr(choice, "message", None), "content", None)) or "",
            usage=usage,
            model=text_or_none(getattr(response, "model", None)),
            response_id=text_or_none(getattr(response, "id", None)),
            finish_reason=text_or_none(getattr(choice, "finish_reason", None)),
            tokens=_tokens(getattr(choice, "logprobs", None)),
            limits=self._limit_headers.read(_headers(response)),
        )
        require_answer(reply)
        return reply

    def _usage(self, response: Any) -> Usage:
        usage = openai_usage(getattr(response, "usage", None))
        if usage.cost_usd is not None:
            return usage
        return msgspec.structs.replace(usage, cost_usd=cost_usd(self._cost(response)))

    def _cost(self, response: Any) -> float | None:
        try:
            return float(self._litellm.completion_cost(completion_response=response))
        except Exception:  # noqa: BLE001 - a model without a price raises all sorts
            return None

    async def aclose(self) -> None:
        """Do nothing: litellm manages its own connections."""


def _is_of(provider: str, owner: str) -> bool:
    """Say whether a variable may be a provider's: ``AZURE_`` is that of ``azure_ai``, too."""
    one, other = ("".join(filter(str.isalnum, name.upper())) for name in (provider, owner))
    return bool(one and other) and (one in other or other in one)


def _is_unsent(error: BaseException) -> bool:
    """Say whether an exception of litellm comes from a connection that was not made."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None:
            break
        if type(cause).__name__ in _UNSENT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _headers(response: Any) -> Mapping[str, str]:
    """Return the headers of the provider's reply, as litellm keeps them."""
    hidden = getattr(response, "_hidden_params", None)
    return _mapping(hidden.get("additional_headers") if isinstance(hidden, dict) else None)


def _mapping(headers: Any) -> Mapping[str, str]:
    is_read = hasattr(headers, "get") and hasattr(headers, "__iter__")
    return headers if is_read else {}


def _details(error: Exception) -> ErrorDetails:
    """Return the details of an error of litellm, or of the provider behind it."""
    details = error_details_in(getattr(error, "body", None))
    # The provider's codes, then litellm's class.
    codes = (*details.codes, type(error).__name__.lower())
    return msgspec.structs.replace(details, message=str(error), codes=codes)


def _refused(
    error: Exception, *, has_schema: bool, has_logprobs: bool, has_system: bool
) -> Refused:
    """Return what litellm, or the provider behind it, refuses of a request."""
    is_unsupported = type(error).__name__ == "UnsupportedParamsError"
    return refused_parts(
        _UNPROCESSED if is_unsupported else getattr(error, "status_code", 0),
        _details(error),
        has_schema=has_schema,
        has_logprobs=has_logprobs,
        has_system=has_system,
        lists_each=is_unsupported,
    )


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """Return the tokens of a choice: litellm gives dicts or objects, as its provider does."""
    return tokens_of(_field(logprobs, "content"), _token)


def _token(entry: Any) -> Token | None:
    names = ("token", "logprob", "bytes")
    others = _field(entry, "top_logprobs")
    likely = others if isinstance(others, list) else []
    text, logprob, raw = (_field(entry, name) for name in names)
    return token_of(
        text, logprob, raw, [tuple(_field(one, name) for name in names) for one in likely]
    )


def _field(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _options(request: LLMRequest) -> dict[str, Any]:
    options = {
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "stop": list(request.stop) or None,
    }
    return {name: value for name, value in options.items() if value is not None}
