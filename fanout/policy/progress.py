"""How far a question to models is, between two of its calls; it can be stored and taken up again."""

from __future__ import annotations

from typing import Self

import msgspec

from fanout.core.records import NO_CALL, ErrorKind, Usage

__all__ = ["ENDS_ALIKE", "CallsSoFar", "EndedModel", "Lesson", "Progress"]

# Further samples of the same prompt to the same model would end in the same way.
ENDS_ALIKE = frozenset({ErrorKind.CONTEXT_LENGTH, ErrorKind.BAD_REQUEST})


class CallsSoFar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The calls to one model, before a further one.

    Attributes:
        attempts: How many there were.
        usage: What they have consumed.
        elapsed_s: Seconds since the first one began.
        failures: What the failed ones cost of the attempts of the branch.
        turns: The conversation after that of the request: each answer that lacked its shape, and the reply.
        max_tokens: The raised limit of an answer; None for that of the request.
        has_more_room: Whether the limit was raised, which happens once.
        kind: What was wrong with the last answer that a call followed; None for nothing.
        unusable: The message of that.
        finish_reason: Why that answer ended, in the provider's words.
    """

    attempts: int = 0
    usage: Usage = NO_CALL
    elapsed_s: float = 0.0
    failures: float = 0.0
    turns: tuple[tuple[str, str], ...] = ()
    max_tokens: int | None = None
    has_more_room: bool = False
    kind: ErrorKind | None = None
    unusable: str | None = None
    finish_reason: str | None = None


class EndedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that gave no answer, after which another one is asked. See Outcome."""

    model: str
    kind: ErrorKind
    attempts: int
    usage: Usage
    elapsed_s: float


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a question is.

    Attributes:
        ended: The models that gave no answer, in order.
        model: The model that is being asked.
        calls: The calls to that one; None if there were none.
    """

    ended: tuple[EndedModel, ...] = ()
    model: str = ""
    calls: CallsSoFar | None = None

    def with_ended(self, ended: EndedModel) -> Self:
        """Return this after a further model that gave no answer."""
        return type(self)(ended=(*self.ended, ended))

    @property
    def asked(self) -> list[tuple[str, int, Usage, float]]:
        """Each model that was called, with its attempts, usage and seconds."""
        asked = [(one.model, one.attempts, one.usage, one.elapsed_s) for one in self.ended]
        if self.calls is not None:
            calls = self.calls
            asked.append((self.model, calls.attempts, calls.usage, calls.elapsed_s))
        return [one for one in asked if one[1]]


class Lesson(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model's answer to a prompt says about further samples of it.

    Attributes:
        kind: Why each of them would fail; None if they may succeed.
        message: The message of that failure.
        calls: How each of them begins; None for like the first.
    """

    kind: ErrorKind | None = None
    message: str | None = None
    calls: CallsSoFar | None = None
