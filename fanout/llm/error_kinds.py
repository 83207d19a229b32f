"""The policy that classifies a server's refusal: its error kind, and when to stop the run.

Machine-readable codes come first, then a request to wait, then the words of the message. An error
that the document may have caused fails only its own branch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = [
    "ALWAYS",
    "FEW",
    "MANY",
    "NEVER",
    "PARAMETER_CODES",
    "PARAMETER_WORDS",
    "QUOTED",
    "ErrorVerdict",
    "judge",
    "lacks_capacity",
]

# How many branches of a run must fail in the same way, before any succeeds, to stop the run.
NEVER = 0
ALWAYS = 1  # certain: one is enough, even after successes
FEW = 3  # no document is the cause
MANY = 20  # a document may be the cause, but hardly each of the first twenty


class ErrorVerdict(msgspec.Struct, frozen=True):
    """The classification of an error reply.

    For ``stop_after`` see LLMError; ``hint`` is advice that ends the message, or None.
    """

    kind: ErrorKind
    stop_after: int = NEVER
    hint: str | None = None


_MODEL_HINT = "check the model's name, and that the key may use it"
_URL_HINT = "check the base URL where the workers run: its path, such as /v1, may be missing"
_PAGE_HINT = "it may be from a firewall or a proxy"

_SUCCESSES = range(200, 300)
_FIRST_SERVER_ERROR = 500
_OK, _BAD_REQUEST, _UNAUTHORIZED, _PAYMENT_REQUIRED, _FORBIDDEN = 200, 400, 401, 402, 403
_TOO_LARGE, _TOO_MANY = 413, 429
_UNPROCESSED = frozenset({400, 422})
_NO_SUCH_PLACE = frozenset({404, 405, 410, 501})
# The status of a success reply that contains an error means nothing.
_WORDED = frozenset({200, 400, 403, 413, 422, 429})
_MONEY_STATUSES = frozenset({200, 400, 403, 429})

_BUDGET = ErrorVerdict(ErrorKind.BUDGET, ALWAYS)
_AUTH = ErrorVerdict(ErrorKind.AUTH, ALWAYS)
_DENIED = ErrorVerdict(ErrorKind.AUTH, FEW)
_CONTEXT = ErrorVerdict(ErrorKind.CONTEXT_LENGTH)
_FILTER = ErrorVerdict(ErrorKind.CONTENT_FILTER)
_MODEL = ErrorVerdict(ErrorKind.BAD_REQUEST, FEW, _MODEL_HINT)
_URL = ErrorVerdict(ErrorKind.BAD_REQUEST, FEW, _URL_HINT)
_RATE = ErrorVerdict(ErrorKind.RATE_LIMITED)
_BUSY = ErrorVerdict(ErrorKind.SERVER_ERROR)


def _table(rows: dict[ErrorVerdict, str]) -> dict[str, ErrorVerdict]:
    return {code: verdict for verdict, codes in rows.items() for code in codes.split()}


# Codes of OpenAI, Azure, Anthropic, Google, Mistral, Groq, Together, OpenRouter, DeepSeek, Moonshot,
# Alibaba, vLLM, llama.cpp and LiteLLM, from their error pages and from reports of their users.
_BY_CODE = _table(
    {
        _BUDGET: (
            "insufficient_quota billing_hard_limit_reached billing_not_active billing_error "
            "budget_exceeded budgetexceedederror insufficient_balance insufficient_credits "
            "insufficient_user_quota exceeded_current_quota_error payment_required arrearage"
        ),
        _AUTH: (
            "invalid_api_key authentication_error invalid_authentication "
            "invalid_authentication_error account_deactivated account_suspended "
            "organization_deactivated api_key_invalid api_key_expired invalid_x_api_key "
            "invalidsubscriptionkey token_not_found_in_db expired_key unauthenticated "
            "access_terminated_error unsupported_country_region_territory"
        ),
        _DENIED: (
            "permission_error permission_denied permissiondenied insufficient_permissions "
            "auth_error key_model_access_denied model_access_denied"
        ),
        _CONTEXT: (
            "context_length_exceeded exceed_context_size_error context_window_exceeded "
            "contextwindowexceedederror string_above_max_length tokens_limit_reached "
            "request_too_large prompt_too_long input_too_long"
        ),
        _FILTER: (
            "content_filter content_policy_violation contentpolicyviolationerror "
            "responsibleaipolicyviolation data_inspection_failed invalid_prompt "
            "moderation_blocked prohibited_content"
        ),
        _MODEL: (
            "model_not_found deploymentnotfound model_not_available model_decommissioned "
            "invalid_model unsupported_model model_not_supported unknown_model "
            "operationnotsupported"
        ),
        _RATE: (
            "rate_limit_exceeded rate_limit_error rate_limit_reached rate_limited "
            "too_many_requests resource_exhausted ratelimiterror throttlingexception requests "
            "tokens"
        ),
        _BUSY: ("overloaded_error engine_overloaded_error unavailable_error"),
    }
)
PARAMETER_CODES = frozenset(
    ["unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"]
)

# Messages that begin so concern the account: they quote no document.
_SENTENCES = (
    (_BUDGET, "your credit balance is too low"),
    (_BUDGET, "your account is not active"),
    (_BUDGET, "insufficient balance"),
    (_BUDGET, "budget has been exceeded"),
    (_BUDGET, "authentication error, exceededbudget"),
    (_AUTH, "incorrect api key provided"),
    (_AUTH, "api key not valid"),
    (_AUTH, "invalid x-api-key"),
    (_AUTH, "access denied due to invalid subscription key"),
)

# How servers say that prompt and answer are too long.
_CONTEXT_WORDS = re.compile(
    r"context[_ ](?:length|window|limit|size)|maximum (?:context|prompt|input|model) length"
    r"|maximum context|(?:prompt|input|inputs) (?:is|are) too long|input is too large"
    r"|exceeds? (?:the )?(?:maximum|max) (?:number of )?(?:tokens|input|prompt|context)"
    r"|exceeds the limit of \d+ tokens|maximum number of tokens allowed"
    r"|`inputs` must have less than|`inputs` tokens \+|max_tokens must be at least 1, got -"
    r"|request too large for|too many tokens|request (?:body )?(?:is )?too large"
    r"|string too long|tokens_limit_reached|reduce the length of the (?:messages|prompt|input)"
)
# A 5xx reply is a server failure unless the message is one that servers use only for a prompt.
_CONTEXT_SENTENCES = (
    "context size has been exceeded",
    "the request exceeds the available context size",
    "input is too large to process",
)
_FILTER_WORDS = re.compile(
    r"content[_ ](?:filter|policy|management policy|moderation|safety)"
    r"|violat\w+ (?:our|the) (?:usage|content) polic|requires moderation|was flagged"
)
_MONEY_WORDS = re.compile(
    r"exceeded your current quota|credit balance|insufficient (?:quota|credits?|balance|funds)"
    r"|(?:out of|no) credits|more credits|billing hard limit|spending limit|prepayment"
)
_WAIT_WORDS = re.compile(r"rate limit|too many requests|per min|per second|per day|slow down")
_SOME_MONEY = re.compile(r"can only afford [1-9]")
_MODEL_WORDS = re.compile(
    r"\bmodels?\b.{0,200}(?:not found|does not exist|not exist|not available|not supported"
    r"|not a valid model|is invalid|decommissioned|no longer)"
    r"|(?:invalid|unknown|unsupported|no such) model|not a valid model"
    r"|unable to access .{0,20}model|no endpoints found"
)
PARAMETER_WORDS = re.compile(
    r"unsupported (?:parameter|value)|extra (?:inputs|fields) (?:are )?not permitted"
    r"|unrecognized (?:request )?argument|unknown (?:parameter|field)"
)
QUOTED = re.compile(r"[`'\"](\w{1,40})[`'\"]")


def judge(status: int, details: ErrorDetails) -> ErrorVerdict:
    """Classify an error reply; its ``wait_s`` may also be from its headers."""
    words = details.message.lower()
    if status in _SUCCESSES:
        verdict = _by_code(details, words) or _by_words(status, details, words)
        return verdict or ErrorVerdict(ErrorKind.SERVER_ERROR)
    if status >= _FIRST_SERVER_ERROR and status not in _NO_SUCH_PLACE:
        return _of_server_error(details, words)
    if details.is_page:
        return _of_page(status, details)
    return (
        _by_code(details, words)
        or _by_words(status, details, words)
        or _by_status(status, details, words)
        or ErrorVerdict(ErrorKind.BAD_REQUEST, MANY)
    )


def _of_server_error(details: ErrorDetails, words: str) -> ErrorVerdict:
    verdicts = (_BY_CODE.get(code) for code in details.codes)
    if _CONTEXT in verdicts or words.startswith(_CONTEXT_SENTENCES):
        return _CONTEXT
    return ErrorVerdict(ErrorKind.SERVER_ERROR)


def _of_page(status: int, details: ErrorDetails) -> ErrorVerdict:
    if status == _UNAUTHORIZED:
        return ErrorVerdict(ErrorKind.AUTH, FEW, _PAGE_HINT)
    if status in _NO_SUCH_PLACE:
        return _URL
    if status == _TOO_LARGE:
        return _CONTEXT
    if details.wait_s is not None or status in _PASSING:
        return ErrorVerdict(_PASSING.get(status, ErrorKind.RATE_LIMITED))
    return ErrorVerdict(ErrorKind.BAD_REQUEST, MANY, _PAGE_HINT)


def _by_code(details: ErrorDetails, words: str) -> ErrorVerdict | None:
    for sentence_verdict, sentence in _SENTENCES:
        if words.startswith(sentence):
            return sentence_verdict
    for code in details.codes:
        verdict = _BY_CODE.get(code)
        if verdict is _RATE and "too large" in words and _CONTEXT_WORDS.search(words):
            # The prompt exceeds the tokens of a whole minute: waiting does not help.
            return _CONTEXT
        if verdict is not None:
            return verdict
        if code in PARAMETER_CODES:
            return _of_parameter(details)
    return None


# What selects flex in a request.
_LANE_NAMES = frozenset(["service_tier", "serviceTier"])
_LANE_CODES = frozenset(["invalid_service_tier", "unsupported_service_tier"])
_LANE_HINT = "the model cannot be called in this lane: leave out lane, or give another one"
_LANE = ErrorVerdict(ErrorKind.BAD_REQUEST, FEW, _LANE_HINT)
_REFUSING = re.compile(r"invalid|unsupported|unknown|unrecogni[sz]ed|not (?:available|supported)")


def _of_lane(details: ErrorDetails, words: str) -> bool:
    """Say whether an error is about the field that selects a lane."""
    if details.param in _LANE_NAMES or not _LANE_CODES.isdisjoint(details.codes):
        return True
    is_named = any(name.lower() in words for name in _LANE_NAMES)
    return is_named and bool(_REFUSING.search(words))


def _of_parameter(details: ErrorDetails) -> ErrorVerdict:
    quoted = QUOTED.search(details.message)
    name = details.param or (quoted[1] if quoted else "")
    hint = f"leave out {name}, or give another value" if name else None
    if name in _LANE_NAMES:
        hint = _LANE_HINT
    return ErrorVerdict(ErrorKind.BAD_REQUEST, FEW, hint)


def _by_words(status: int, details: ErrorDetails, words: str) -> ErrorVerdict | None:
    is_worded = status in _WORDED
    if is_worded and _FILTER_WORDS.search(words):
        return _FILTER
    is_fit = status != _TOO_MANY or "too large" in words
    if is_worded and is_fit and _CONTEXT_WORDS.search(words):
        return _CONTEXT
    waits = details.wait_s is not None or bool(_WAIT_WORDS.search(words))
    if status in _MONEY_STATUSES and not waits and _MONEY_WORDS.search(words):
        # Not certain: the balance may suffice for a cheaper document.
        return ErrorVerdict(ErrorKind.BUDGET, FEW)
    if status not in _UNPROCESSED | {_OK, _FORBIDDEN}:
        return None
    is_of_lane = _of_lane(details, words)
    if is_of_lane or _MODEL_WORDS.search(words):
        return _LANE if is_of_lane else _MODEL
    return _of_parameter(details) if PARAMETER_WORDS.search(words) else None


# How providers refuse a flex call when they are busy with dearer ones: OpenAI, Azure, Groq, Gemini.
_CAPACITY_STATUSES = frozenset({429, 498, 503, 529})
_CAPACITY_CODES = frozenset(
    ["resource_unavailable", "capacity_exceeded", "no_capacity", "insufficient_capacity", "overloaded",
     "overloaded_error", "engine_overloaded_error", "unavailable", "service_unavailable",
     "server_is_overloaded", "slow_down"]
)  # fmt: skip
_CAPACITY_WORDS = re.compile(
    r"\bcapacity\b|resources? (?:is |are )?(?:un|not )available|\boverloaded\b"
)
_RATE_CODES = frozenset(["rate_limit_exceeded", "rate_limit_error", "requests", "tokens"])


def lacks_capacity(status: int, details: ErrorDetails) -> bool:
    """Say whether an error reply to a flex call is a refusal for lack of capacity.

    Source: OpenAI's, Azure's, Groq's and Gemini's pages on flex.
    """
    if status not in _CAPACITY_STATUSES:
        return False
    if not _CAPACITY_CODES.isdisjoint(details.codes):
        return True
    if status != _TOO_MANY:
        return True
    is_rate = not _RATE_CODES.isdisjoint(details.codes)
    return not is_rate and bool(_CAPACITY_WORDS.search(details.message.lower()))


_PASSING = {
    408: ErrorKind.TIMEOUT,
    409: ErrorKind.SERVER_ERROR,
    425: ErrorKind.SERVER_ERROR,
    429: ErrorKind.RATE_LIMITED,
}


_BY_STATUS = {
    **{status: ErrorVerdict(kind) for status, kind in _PASSING.items()},
    _UNAUTHORIZED: _DENIED,
    _PAYMENT_REQUIRED: _BUDGET,
    # Gateways answer so to a document that they block, without a further reason.
    _FORBIDDEN: ErrorVerdict(ErrorKind.AUTH, MANY),
    _TOO_LARGE: _CONTEXT,
}
_CREDENTIALS = frozenset({_UNAUTHORIZED, _PAYMENT_REQUIRED, _FORBIDDEN})


def _by_status(status: int, details: ErrorDetails, words: str) -> ErrorVerdict | None:
    if details.wait_s is not None and status in _CREDENTIALS:
        return _RATE
    if status == _PAYMENT_REQUIRED and _SOME_MONEY.search(words):
        return ErrorVerdict(ErrorKind.BUDGET, FEW)
    if status in _NO_SUCH_PLACE:
        return _MODEL if "model" in words or "deployment" in words else _URL
    return _URL if status < _BAD_REQUEST else _BY_STATUS.get(status)
