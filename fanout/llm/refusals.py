"""The parts of a request that a server refuses: schemas, log-probabilities, system prompts, parameters.

A refusal is read from the words of an error, which may also quote the prompt. So it is learned only
once the same request has succeeded without that part, and for a while: servers change.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Literal, NamedTuple
from weakref import WeakKeyDictionary

from fanout.core.records import ErrorKind
from fanout.llm.error_kinds import PARAMETER_CODES, PARAMETER_WORDS, QUOTED, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.answer_shape import AnswerShape
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = ["NOTHING", "Refusals", "Refused", "refused_parts", "refuses_parameter"]

SchemaRefusal = Literal["all", "this one"]

# How long a refusal is remembered: a server may be replaced, or its words misread.
_REMEMBERED_S = 3_600.0
_NEVER, _ALWAYS = float("-inf"), float("inf")
# Characters of a message that are read: it may quote a long prompt.
_LOOKED_AT = 4_000
_UNPROCESSED = frozenset({400, 422})
# OpenAI refuses the log-probabilities of reasoning models with 403; some servers fail instead.
_REFUSES_LOGPROBS = frozenset({400, 403, 422, 500, 501})
# llama.cpp fails where the template of a model has no place for a system prompt.
_REFUSES_SYSTEM = frozenset({400, 422, 500})
# Another part of the request is at fault, although the message may name the schema.
_OTHER_FAULTS = frozenset(
    {ErrorKind.CONTEXT_LENGTH, ErrorKind.CONTENT_FILTER, ErrorKind.RATE_LIMITED, ErrorKind.BUDGET}
)
_OTHER_FIELDS = re.compile(
    r"(?:messages?|prompt|contents?|input|system|temperature|seed|stop|stop_sequences"
    r"|max_(?:completion_|output_)?tokens|top_p)(?![a-z0-9_])"
)
# What a message quotes in several words is a part of the prompt, or a label.
_ECHO = re.compile(r"""(?<!\w)(?:'[^']*\s[^']*'|"[^"]*\s[^"]*"|`[^`]*\s[^`]*`)(?!\w)""")
# What a gateway passes on of the JSON of an error: the quotes around a message are no quotation.
_WRAPPING = re.compile(r"""\\?["'](?:message|msg|detail|error|raw)\\?["']\s*:\s*\\?["']""")
# The fields that send a schema, and how servers speak of one.
_SCHEMA_FIELD = re.compile(
    r"(?<![a-z0-9_])(?:response_?formats?|output_?config|output_?format|response_?(?:json_?)?schema"
    r"|(?:response_?)?mime_?type|json_?schemas?|guided_(?:json|grammar|choice|regex|decoding))(?![a-z0-9])"
)
_SCHEMA_WORDS = re.compile(
    r"\b(?:structured[ _-]outputs?|json[ -](?:schemas?|mode)|response[ -](?:formats?|schemas?)"
    r"|output[ -]formats?|response mime type|(?:controlled|constrained) (?:generation|decoding|output)"
    r"|guided (?:decoding|generation|json)|xgrammar|llguidance|gbnf"
    r"|grammar[ -](?:guided|constrained|based|backend|error|compil\w+)"
    r"|(?:compile[ds]?|parse|parsing|invalid|unsupported|initialize) (?:the )?(?:json )?grammar"
    r"|grammars? (?:is|are) (?:not|un|too)\w*"
    r"|(?:invalid|specified|provided|supplied) schema|schema (?:is|produces|has|must|contains))\b"
)
_CACHE_FIELD = re.compile(r"(?<![a-z0-9_])(?:prompt_cache_key|cache_control)(?![a-z0-9_])")
# How a server that takes schemas refuses one of them.
_WRONG_SCHEMA = re.compile(
    r"invalid (?:json )?schema|schema is invalid|invalid_json_schema|too many|too complex|too large"
    r"|too deep|nesting|\bexceeds\b|recursive|contains features"
)
_LOGPROB_WORDS = re.compile(
    r"(?<![a-z0-9])(?:top_?|response_?|token_?)?logprobs?(?![a-z0-9])"
    r"|\blog[ -]prob(?:s|abilit(?:y|ies))?\b"
)
# How servers and the templates of models say that there is no system prompt: Gemini with Gemma, OpenAI's
# o1, vLLM, TGI and llama.cpp with Gemma 2 and Mistral. Conversations here always alternate.
_SYSTEM_WORDS = re.compile(
    r"\b(?:developer|system)[ _-](?:instructions?|roles?|prompts?|messages?)\b.{0,40}"
    r"(?:\bnot (?:be )?(?:enabled|supported|allowed|available|permitted)|\bunsupported)"
    r"|(?:does not|doesn't) support (?:the |a )?['\"`]?(?:system|developer)\b"
    r"|only (?:the )?['\"`]?user\b.{0,60}\broles? (?:is|are) (?:supported|allowed)"
    r"|roles must alternate"
)
_TOGETHER = re.compile(
    r"together|combin|conjunction|simultaneous|at the same time"
    r"|(?:not .{0,40}\bwith|\bwhen(?: using)?)\b(?! (?:this|the) (?:model|server|deployment))"
)

_log = logging.getLogger(__name__)


class Refused(NamedTuple):
    """The parts of a request that a server refuses.

    Attributes:
        schema: Whether it refuses all schemas, or this one; None if neither.
        logprobs: Whether it refuses to return the log-probabilities of tokens.
        cache: Whether it refuses words about its prompt cache.
        system: Whether it refuses a system prompt in a message of its own.
    """

    schema: SchemaRefusal | None = None
    logprobs: bool = False
    cache: bool = False
    system: bool = False

    def joined(self, other: Refused) -> Refused:
        """Return what either has."""
        return Refused(
            self.schema or other.schema,
            self.logprobs or other.logprobs,
            self.cache or other.cache,
            self.system or other.system,
        )


NOTHING = Refused()


class Refusals:
    """What a server refuses, as far as calls have shown it.

    Args:
        server: How log lines name it.
        has_logprobs: Whether its API has log-probabilities at all.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        server: str,
        *,
        has_logprobs: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._clock = clock
        self._schemas_until = _NEVER
        self._shapes_until: WeakKeyDictionary[AnswerShape, float] = WeakKeyDictionary()
        self._logprobs_until = _NEVER if has_logprobs else _ALWAYS
        self._cache_until = _NEVER
        self._system_until = _NEVER

    def takes_schema(self, shape: AnswerShape) -> bool:
        """Say whether to send the schema of a shape."""
        until = max(self._schemas_until, self._shapes_until.get(shape, _NEVER))
        return self._clock() >= until

    def takes_logprobs(self) -> bool:
        """Say whether to ask for log-probabilities."""
        return self._clock() >= self._logprobs_until

    def takes_cache(self) -> bool:
        """Say whether to send words about the prompt cache."""
        return self._clock() >= self._cache_until

    def takes_system(self) -> bool:
        """Say whether to send the system prompt as a message of its own."""
        return self._system_until == _NEVER or self._clock() >= self._system_until

    def learn(self, refused: Refused, shape: AnswerShape | None) -> None:
        """Note what was refused of a request that has succeeded without it; log what is new."""
        until = self._clock() + _REMEMBERED_S
        if refused.schema and shape is not None:
            is_known = self._schemas_until > _NEVER or shape in self._shapes_until
            what = "this schema" if refused.schema == "this one" else "schemas"
            if refused.schema == "this one":
                self._shapes_until[shape] = until
            else:
                self._schemas_until = until
            if not is_known:
                _log.warning("%s refuses %s: it is asked in words from now on", self._server, what)
        if refused.logprobs:
            if self._logprobs_until == _NEVER:
                shown = self._server
                _log.warning("%s refuses log-probabilities: its answers have no confidence", shown)
            self._logprobs_until = max(until, self._logprobs_until)
        if refused.cache:
            if self._cache_until == _NEVER:
                _log.warning("%s refuses words about its prompt cache", self._server)
            self._cache_until = until
        if refused.system:
            if self._system_until == _NEVER:
                _log.warning("%s refuses system prompts: they begin its prompts", self._server)
            self._system_until = until


def refused_parts(
    status: int,
    details: ErrorDetails,
    *,
    has_schema: bool,
    has_logprobs: bool,
    has_cache: bool = False,
    has_system: bool = False,
    lists_each: bool = False,
) -> Refused:
    """Return which parts of a request an error refuses.

    Args:
        status: The HTTP status.
        details: The error.
        has_schema: Whether the request has a schema.
        has_logprobs: Whether it asks for log-probabilities.
        has_cache: Whether it has words about the prompt cache.
        has_system: Whether it has a system prompt in a message of its own.
        lists_each: Whether each part that the error names is refused, also alone.
    """
    is_any = has_schema or has_logprobs or has_cache or has_system
    if not is_any or status not in _REFUSES_LOGPROBS:
        return NOTHING
    param, message = details.param.lower(), details.message[:_LOOKED_AT].lower()
    words = f"{param} {_ECHO.sub(' ', _WRAPPING.sub(' ', message))}"
    if has_system and status in _REFUSES_SYSTEM and _SYSTEM_WORDS.search(words):
        # It names a message, as a wrong prompt does.
        return Refused(system=True)
    if has_cache and status in _UNPROCESSED and _CACHE_FIELD.search(f"{param} {message}"):
        # A field of a message, as the name of an Anthropic parameter says.
        return Refused(cache=True)
    if _OTHER_FIELDS.match(param) or judge(status, details).kind in _OTHER_FAULTS:
        return NOTHING
    schema = (
        _schema_refusal(words, details.codes) if has_schema and status in _UNPROCESSED else None
    )
    logprobs = has_logprobs and bool(_LOGPROB_WORDS.search(words))
    if schema and logprobs and not lists_each and _TOGETHER.search(words):
        # The shape of an answer is worth more than its probability.
        schema = None
    return Refused(schema, logprobs)


def _schema_refusal(words: str, codes: tuple[str, ...]) -> SchemaRefusal | None:
    if "invalid_json_schema" in codes:
        return "this one"
    if not (_SCHEMA_FIELD.search(words) or _SCHEMA_WORDS.search(words)):
        return None
    return "this one" if _WRONG_SCHEMA.search(words) else "all"


def refuses_parameter(status: int, details: ErrorDetails, name: str) -> bool:
    """Say whether a server does not support the request field ``name``."""
    if status not in _UNPROCESSED:
        return False
    names_it = details.param == name or name in QUOTED.findall(details.message)
    has_code = bool(PARAMETER_CODES.intersection(details.codes))
    return names_it and (has_code or bool(PARAMETER_WORDS.search(details.message.lower())))
