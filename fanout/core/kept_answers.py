"""The records of the answer cache: kept answers, and what is asked of the store for them."""

from __future__ import annotations

from typing import Literal

import msgspec

from fanout.core.records import ErrorKind, Usage

__all__ = [
    "AnswerCounts",
    "AnswerFound",
    "AnswerRequest",
    "AnswerSettled",
    "CacheStats",
    "KeptAnswer",
    "SharedFailure",
]


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A complete and valid answer, as it is stored. See Outcome.

    Attributes:
        text: The answer.
        usage: What all calls for it have consumed.
        confidence: The probability of the chosen label; None if unknown.
        finish_reason: Why it ended, in the provider's words.
    """

    text: str
    usage: Usage = Usage()
    confidence: float | None = None
    finish_reason: str | None = None

    @property
    def saved(self) -> Usage:
        """What a branch saves that takes it: one answer, and what that had cost."""
        return msgspec.structs.replace(self.usage, calls=1)


class SharedFailure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the calls for an answer ended that would end so again: for those who wait for it. See Outcome.

    Attributes:
        kind: Why there is no answer.
        message: The error message.
        finish_reason: Why the last answer ended, in the provider's words.
        ends_alike: Whether further samples would end in the same way: see ``Lesson``.
        terms: What the calls depend on beside the request: under others they may end otherwise.
        attempt: The run, and when it was last retried: a retry makes its own calls.
    """

    kind: ErrorKind
    message: str | None = None
    finish_reason: str | None = None
    ends_alike: bool = False
    terms: str = ""
    attempt: str = ""


class AnswerRequest(msgspec.Struct, frozen=True):
    """The request for a kept answer.

    Attributes:
        key: See ``answer_key``.
        how: ``ask``; ``poll``, to ask again; ``anew``, if what is there is not to be used.
    """

    key: bytes
    how: Literal["ask", "poll", "anew"] = "ask"


class AnswerFound(msgspec.Struct, frozen=True):
    """The reply to the request for a kept answer.

    Attributes:
        verdict: ``hit``: there is an answer. ``ask``: there is none, and others wait for this process.
            ``wait``: another process asks. ``failed``: the calls for it have just failed.
            ``free``: there is none, and nobody waits for it.
        answer: The answer.
        failure: How they failed.
    """

    verdict: Literal["hit", "ask", "wait", "failed", "free"]
    answer: KeptAnswer | None = None
    failure: SharedFailure | None = None


class AnswerSettled(msgspec.Struct, frozen=True):
    """What came of the calls for an answer.

    Attributes:
        key: See ``answer_key``.
        end: ``kept``; ``failed``, if there is no answer to keep: nobody waits for the next; ``left``,
            if the calls were stopped: the next one asks.
        answer: The answer to keep.
        failure: How it failed, for those who wait; None if the next calls may end otherwise.
    """

    key: bytes
    end: Literal["kept", "failed", "left"]
    answer: KeptAnswer | None = None
    failure: SharedFailure | None = None


class AnswerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What branches came to that asked for kept answers, besides those that were found.

    Attributes:
        hits: Answers that they got of the calls of others.
        misses: Calls that they made.
        saved_usd: What those answers had cost.
    """

    hits: int = 0
    misses: int = 0
    saved_usd: float = 0.0


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the answer cache.

    Attributes:
        answers: Kept answers.
        bytes: What they take, in bytes: an estimate with the server's own bookkeeping.
        hits: Requests that were answered from it.
        misses: Requests that were not.
        kept: Answers that were ever kept.
        evicted: Those of them that had to make room, or were too old.
        saved_usd: What the answers had cost that came from it, as far as that is known.
        since: Seconds since the epoch of the oldest generation's first answer; None without answers.
    """

    answers: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    kept: int = 0
    evicted: int = 0
    saved_usd: float = 0.0
    since: float | None = None

    @property
    def hit_rate(self) -> float | None:
        """The share of the requests that were answered from it, 0 to 1; None without requests."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None
