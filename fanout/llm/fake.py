"""A model without a network: for tests, demonstrations and measurements of the engine alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind, Usage
from fanout.core.tokens import estimate_tokens
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.fake_answers import fake_answer
from fanout.llm.usage import NO_USAGE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FakeLLM"]

_MALFORMED = '{"answer": not json'
_MALFORMED_TOKENS = estimate_tokens(_MALFORMED)
_SPAN = 2.0**64
_ANY_DIGEST = bytes(hashlib.sha512().digest_size)


class FakeLLM:
    """Answers at once, or as its options say; the same prompt always has the same outcome.

    As a model string: ``fake``, or ``fake?fail_rate=0.2&latency_s=0.05``.

    Args:
        latency_s: Seconds that each call takes.
        jitter_s: The most extra seconds that a call takes, depending on the prompt.
        fail_rate: The share of prompts, 0 to 1, that fail at every attempt.
        fail_kind: Their kind of error, or several separated by commas; the prompt selects one.
        flaky_rate: The share of prompts that fail at their first call only.
        malformed_rate: The share of prompts that are answered with broken JSON.
        retry_after_s: Seconds that a ``rate_limited`` error asks to wait.
        answer: The answer to everything; without it, a short one that depends on the prompt.
        seed: Another seed gives other outcomes.
        context_tokens: The context window that it claims to have.
        cache: 1 to have its answers kept, as those of a model that costs money.
        fence: 1 to have fences in its prompts, as a provider's model.
        script: Full control for tests: takes the request, returns the answer or an error to raise.

    Attributes:
        calls: The number of calls so far.
    """

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        fail_rate: float = 0.0,
        fail_kind: str = "server_error",
        flaky_rate: float = 0.0,
        malformed_rate: float = 0.0,
        retry_after_s: float | None = None,
        answer: str | None = None,
        seed: int = 0,
        context_tokens: int = 8192,
        cache: int = 0,
        fence: int = 0,
        script: Callable[[LLMRequest], str | LLMReply | Exception] | None = None,
    ) -> None:
        self._options = {name: value for name, value in locals().items() if name in _OPTIONS}
        self._kinds = [_kind(name) for name in fail_kind.split(",")]
        self._require_used(has_script=script is not None)
        self._script = script
        self._seen: set[bytes] = set()
        self.latency_s = _checked("latency_s", latency_s)
        self.jitter_s = _checked("jitter_s", jitter_s)
        self.fail_rate = _checked("fail_rate", fail_rate, most=1)
        self.flaky_rate = _checked("flaky_rate", flaky_rate, most=1)
        self.malformed_rate = _checked("malformed_rate", malformed_rate, most=1)
        self.retry_after_s = retry_after_s
        self.answer = answer
        self.seed = seed
        self.context_tokens = context_tokens
        self.identity: str | None = self._named() if cache else None
        self.calls = 0

    def _require_used(self, *, has_script: bool) -> None:
        """Raise ModelError for an option that has no effect with the other options."""
        given = {name for name, value in self._options.items() if value != _DEFAULTS[name]}
        fails = {"fail_rate", "flaky_rate"} & given
        unused = dict.fromkeys(_SCRIPTED & given, "a script") if has_script else {}
        if not fails and "fail_kind" in given:
            unused["fail_kind"] = "neither fail_rate nor flaky_rate"
        is_refused = bool(fails) and ErrorKind.RATE_LIMITED in self._kinds
        if not is_refused and "retry_after_s" in given:
            unused["retry_after_s"] = "no calls that fail as rate_limited"
        for name, others in sorted(unused.items()):
            raise ModelError(f"the fake model's {name} has no effect with {others}: leave it out")

    @classmethod
    def from_model(cls, model: str) -> FakeLLM:
        """Return the fake of a model string. Raises ModelError for a wrong option."""
        _, _, query = model.partition("?")
        options: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in _OPTIONS:
                known = ", ".join(sorted(_OPTIONS))
                raise ModelError(f"the fake model has no option {name!r} (known: {known})")
            try:
                options[name] = _OPTIONS[name](text)
            except ValueError:
                expected = "a whole number" if _OPTIONS[name] is int else "a number"
                raise ModelError(
                    f"the fake model's {name} must be {expected} (got {text!r})"
                ) from None
        return cls(**options)

    def to_model(self) -> str:
        """Return the model string of this fake. Raises ModelError if it has a script."""
        if self._script is not None:
            raise ModelError("a fake with a script has no model string: pass it as it is")
        return self._named()

    def _named(self) -> str:
        given = {name: value for name, value in self._options.items() if value != _DEFAULTS[name]}
        return f"fake?{urlencode(given)}" if given else "fake"

    async def check(self) -> None:
        """Do nothing: a fake can always be called."""

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Answer or fail, as the options say. Raises LLMError."""
        self.calls += 1
        digest = self._digest(request)
        if self.latency_s or self.jitter_s:
            await asyncio.sleep(self.latency_s + self.jitter_s * _unit(digest, 4))
        if self._script is not None:
            return _scripted(self._script(request), request)
        if self.fail_rate or self.flaky_rate:
            self._maybe_fail(digest)
        if self.malformed_rate and _unit(digest, 2) < self.malformed_rate:
            return _reply(_MALFORMED, request)
        return _reply(self.answer or _default_answer(digest, request), request)

    def longest_answer_tokens(self, request: LLMRequest) -> int:
        """Return the most tokens that the answer to a request has, for budgets."""
        if self._script is not None:
            return request.max_tokens or self.context_tokens
        answer = self.answer
        if not answer:
            # Without a shape, all have the same length.
            digest = _ANY_DIGEST if request.shape is None else self._digest(request)
            answer = _default_answer(digest, request)
        return max(estimate_tokens(answer), _MALFORMED_TOKENS)

    def _digest(self, request: LLMRequest) -> bytes:
        key = json.dumps([self.seed, request.seed, request.system, request.whole_prompt])
        return hashlib.sha512(key.encode("utf-8", "surrogatepass")).digest()

    def _maybe_fail(self, digest: bytes) -> None:
        is_first = digest not in self._seen
        is_flaky = is_first and _unit(digest, 1) < self.flaky_rate
        if self.flaky_rate:
            self._seen.add(digest)
        if is_flaky or _unit(digest, 0) < self.fail_rate:
            kind = self._kinds[digest[-1] % len(self._kinds)]
            retry_after_s = self.retry_after_s if kind is ErrorKind.RATE_LIMITED else None
            raise LLMError(
                kind,
                f"the fake model was told to fail ({kind.value})",
                retry_after_s=retry_after_s,
                usage=NO_USAGE,
                is_own=True,
            )

    async def aclose(self) -> None:
        """Do nothing: a fake has no connections."""


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "latency_s": float,
    "jitter_s": float,
    "fail_rate": float,
    "fail_kind": str,
    "flaky_rate": float,
    "malformed_rate": float,
    "retry_after_s": float,
    "answer": str,
    "seed": int,
    "context_tokens": int,
    "cache": int,
    "fence": int,
}
# Options that a script replaces.
_SCRIPTED = frozenset(_OPTIONS) - {"latency_s", "jitter_s", "seed", "context_tokens", "fence"}
_DEFAULTS: dict[str, Any] = FakeLLM.__init__.__kwdefaults__ or {}


def _kind(name: str) -> ErrorKind:
    try:
        return ErrorKind(name.strip())
    except ValueError:
        known = ", ".join(kind.value for kind in ErrorKind)
        raise ModelError(f"the fake model's fail_kind {name!r} is none of {known}") from None


def _checked(name: str, value: float, *, most: float = math.inf) -> float:
    if not 0 <= value <= most:
        allowed = "at least 0" if math.isinf(most) else f"from 0 to {most:g}"
        raise ModelError(f"the fake model's {name} must be {allowed} (got {value})")
    return value


def _unit(digest: bytes, slot: int) -> float:
    """Return a number from 0 to 1, an independent one for each slot."""
    return int.from_bytes(digest[slot * 8 : slot * 8 + 8]) / _SPAN


def _default_answer(digest: bytes, request: LLMRequest) -> str:
    if request.shape is not None:
        return fake_answer(request.shape, digest)
    return f"fake answer {digest[:4].hex()} to {len(request.prompt.split())} words"


def _scripted(outcome: str | LLMReply | Exception, request: LLMRequest) -> LLMReply:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome if isinstance(outcome, LLMReply) else _reply(outcome, request)


def _reply(text: str, request: LLMRequest) -> LLMReply:
    usage = Usage(
        calls=1,
        input_tokens=estimate_tokens((request.system or "") + request.prompt),
        cached_input_tokens=0,
        cache_write_tokens=0,
        output_tokens=estimate_tokens(text),
        reasoning_tokens=0,
        cost_usd=0.0,
    )
    return LLMReply(text=text, usage=usage)
