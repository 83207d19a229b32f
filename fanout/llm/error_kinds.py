"""What a server's refusal means, and whom it concerns: a pure policy over what was said.

Codes that are made for programs come first, then a hint to try again, then words; what a document
may have caused is its branch's alone.
"""

from __future__ import annotations

import re

import msgspec

from fanout.core.records import ErrorKind

__all__ = ["ALWAYS", "FEW", "MANY", "NEVER", "Refusal", "Verdict", "judge", "refuses_parameter"]

# How many branches of a run must fail alike, before any has succeeded, until the run is stopped.
NEVER = 0
ALWAYS = 1  # it is certain: one is enough, whatever went well before
FEW = 3  # no document is the cause
MANY = 20  # a document may be the cause, but hardly of the first twenty


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said in place of an answer.

    Attributes:
        status: The HTTP status.
        message: What it says to people.
        codes: What it says to programs, in lower case, the most specific first.
        param: The field of the request that it speaks of, or the empty string.
        is_page: Whether it is a web page: mostly of somebody between us and the provider.
        asks_to_wait: Whether it says when to try again.
    """

    status: int
    message: str = ""
    codes: tuple[str, ...] = ()
    param: str = ""
    is_page: bool = False
    asks_to_wait: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What it means.

    Attributes:
        kind: The kind of error.
        stop_after: How many branches must fail alike until the run is stopped; see LLMError.
        hint: What to look at, as the end of a message, or None.
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
# An error in a reply of success says nothing by its status.
_WORDED = frozenset({200, 400, 403, 413, 422, 429})
_MONEY_STATUSES = frozenset({200, 400, 403, 429})

_BUDGET = Verdict(ErrorKind.BUDGET, ALWAYS)
_AUTH = Verdict(ErrorKind.AUTH, ALWAYS)
_DENIED = Verdict(ErrorKind.AUTH, FEW)
_CONTEXT = Verdict(ErrorKind.CONTEXT_LENGTH)
_FILTER = Verdict(ErrorKind.CONTENT_FILTER)
_MODEL = Verdict(ErrorKind.BAD_REQUEST, FEW, _MODEL_HINT)
_URL = Verdict(ErrorKind.BAD_REQUEST, FEW, _URL_HINT)
_RATE = Verdict(ErrorKind.RATE_LIMITED)
_BUSY = Verdict(ErrorKind.SERVER_ERROR)


def _table(rows: dict[Verdict, str]) -> dict[str, Verdict]:
    return {code: verdict for verdict, codes in rows.items() for code in codes.split()}


# Of OpenAI, Azure, Anthropic, Google, Mistral, Groq, Together, OpenRouter, DeepSeek, Moonshot,
# Alibaba, vLLM, llama.cpp and LiteLLM, as their pages of errors and their users report them.
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
_PARAMETER_CODES = frozenset(
    ["unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"]
)

# What begins so is about the account: no document is quoted there.
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
    r"|string too long|tokens_limit_reached"
)
# A server that fails must not be taken for one that refuses: these it says of a prompt alone.
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
_PARAMETER_WORDS = re.compile(
    r"unsupported (?:parameter|value)|extra (?:inputs|fields) (?:are )?not permitted"
    r"|unrecognized (?:request )?argument|unknown (?:parameter|field)"
)
_QUOTED = re.compile(r"[`'\"](\w{1,40})[`'\"]")


def judge(refusal: Refusal) -> Verdict:
    """Return what a refusal means."""
    words = refusal.message.lower()
    if refusal.status in _SUCCESSES:
        told = _by_code(refusal, words) or _by_words(refusal, words)
        return told or Verdict(ErrorKind.SERVER_ERROR)
    if refusal.status >= _FIRST_SERVER_ERROR and refusal.status not in _NO_SUCH_PLACE:
        return _of_server_error(refusal, words)
    if refusal.is_page:
        return _of_page(refusal)
    return (
        _by_code(refusal, words)
        or _by_words(refusal, words)
        or _by_status(refusal, words)
        or Verdict(ErrorKind.BAD_REQUEST, MANY)
    )


def refuses_parameter(refusal: Refusal, name: str) -> bool:
    """Say whether a server knows no such field of a request as ``name``."""
    if refusal.status not in _UNPROCESSED:
        return False
    names_it = refusal.param == name or name in _QUOTED.findall(refusal.message)
    says_so = bool(_PARAMETER_CODES.intersection(refusal.codes))
    return names_it and (says_so or bool(_PARAMETER_WORDS.search(refusal.message.lower())))


def _of_server_error(refusal: Refusal, words: str) -> Verdict:
    told = (_BY_CODE.get(code) for code in refusal.codes)
    if _CONTEXT in told or words.startswith(_CONTEXT_SENTENCES):
        return _CONTEXT
    return Verdict(ErrorKind.SERVER_ERROR)


def _of_page(refusal: Refusal) -> Verdict:
    if refusal.status == _UNAUTHORIZED:
        return Verdict(ErrorKind.AUTH, FEW, _PAGE_HINT)
    if refusal.status in _NO_SUCH_PLACE:
        return _URL
    if refusal.status == _TOO_LARGE:
        return _CONTEXT
    if refusal.asks_to_wait or refusal.status in _PASSING:
        return Verdict(_PASSING.get(refusal.status, ErrorKind.RATE_LIMITED))
    return Verdict(ErrorKind.BAD_REQUEST, MANY, _PAGE_HINT)


def _by_code(refusal: Refusal, words: str) -> Verdict | None:
    for sentence_verdict, sentence in _SENTENCES:
        if words.startswith(sentence):
            return sentence_verdict
    for code in refusal.codes:
        verdict = _BY_CODE.get(code)
        if verdict is _RATE and "too large" in words and _CONTEXT_WORDS.search(words):
            # More than a whole minute's tokens: no wait makes it smaller.
            return _CONTEXT
        if verdict is not None:
            return verdict
        if code in _PARAMETER_CODES:
            return _of_parameter(refusal)
    return None


def _of_parameter(refusal: Refusal) -> Verdict:
    quoted = _QUOTED.search(refusal.message)
    name = refusal.param or (quoted[1] if quoted else "")
    hint = f"leave out {name}, or give another value" if name else None
    return Verdict(ErrorKind.BAD_REQUEST, FEW, hint)


def _by_words(refusal: Refusal, words: str) -> Verdict | None:
    status = refusal.status
    is_worded = status in _WORDED
    if is_worded and _FILTER_WORDS.search(words):
        return _FILTER
    is_fit = status != _TOO_MANY or "too large" in words
    if is_worded and is_fit and _CONTEXT_WORDS.search(words):
        return _CONTEXT
    waits = refusal.asks_to_wait or bool(_WAIT_WORDS.search(words))
    if status in _MONEY_STATUSES and not waits and _MONEY_WORDS.search(words):
        # Not certain: a document that is dear may be too much, and another one not.
        return Verdict(ErrorKind.BUDGET, FEW)
    if status not in _UNPROCESSED | {_OK, _FORBIDDEN}:
        return None
    if _MODEL_WORDS.search(words):
        return _MODEL
    return _of_parameter(refusal) if _PARAMETER_WORDS.search(words) else None


_PASSING = {
    408: ErrorKind.TIMEOUT,
    409: ErrorKind.SERVER_ERROR,
    425: ErrorKind.SERVER_ERROR,
    429: ErrorKind.RATE_LIMITED,
}


_BY_STATUS = {
    **{status: Verdict(kind) for status, kind in _PASSING.items()},
    _UNAUTHORIZED: _DENIED,
    _PAYMENT_REQUIRED: _BUDGET,
    # Gateways say no more of a document that they do not like.
    _FORBIDDEN: Verdict(ErrorKind.AUTH, MANY),
    _TOO_LARGE: _CONTEXT,
}
_CREDENTIALS = frozenset({_UNAUTHORIZED, _PAYMENT_REQUIRED, _FORBIDDEN})


def _by_status(refusal: Refusal, words: str) -> Verdict | None:
    status = refusal.status
    if refusal.asks_to_wait and status in _CREDENTIALS:
        return _RATE
    if status == _PAYMENT_REQUIRED and _SOME_MONEY.search(words):
        return Verdict(ErrorKind.BUDGET, FEW)
    if status in _NO_SUCH_PLACE:
        return _MODEL if "model" in words or "deployment" in words else _URL
    return _URL if status < _BAD_REQUEST else _BY_STATUS.get(status)
