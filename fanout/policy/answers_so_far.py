"""What a branch of several calls has asked for and paid for: its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import msgspec

from fanout.core.errors import StoredDataError
from fanout.core.records import (
    NO_CALL,
    ErrorKind,
    Outcome,
    StepOutcome,
    Usage,
    total_saved,
    total_usage,
)
from fanout.policy.consensus import Poll
from fanout.policy.progress import Lesson, Progress  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AnswersSoFar"]


class AnswersSoFar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a branch has asked for, and what that has cost: its checkpoint.

    Attributes:
        poll: The answers.
        usage_of: The usage by model.
        kind: Why the last answer that failed did, or None.
        message: The message of that.
        question: How far the next question is, if it has begun.
        lessons: What further samples of a model have not to find out again, by model.
        steps: The steps that have their answers, in the order in which they ran.
        asks_anew: Whether kept answers are not to be taken, as a judge has rejected what they led to.
        found: The passages that functions have found, by a name of the search.

    The other fields are those of Outcome.
    """

    poll: Poll = Poll()
    samples: int = 0
    attempts: int = 0
    usage_of: dict[str, Usage] = {}
    elapsed_s: float = 0.0
    kind: ErrorKind | None = None
    message: str | None = None
    question: Progress | None = None
    lessons: dict[str, Lesson] = {}
    saved: Usage = NO_CALL
    steps: tuple[StepOutcome, ...] = ()
    asks_anew: bool = False
    found: dict[str, msgspec.Raw] = {}

    @classmethod
    def of(cls, checkpoint: bytes | None) -> Self:
        """Return what a checkpoint has. Raises StoredDataError."""
        if checkpoint is None:
            return cls()
        try:
            return msgspec.json.decode(checkpoint, type=cls)
        except msgspec.MsgspecError as error:
            raise StoredDataError(
                f"the checkpoint of a branch in the store is damaged ({error})"
            ) from None

    @property
    def usages(self) -> list[Usage]:
        """The usage of all calls, in parts."""
        return list(self.usage_of.values())

    def with_calls(self) -> Self:
        """Return this with the calls to the open question, as if it had ended."""
        usage_of, attempts, elapsed_s = dict(self.usage_of), self.attempts, self.elapsed_s
        for model, calls, usage, took_s in self.question.asked if self.question else ():
            usage_of[model] = total_usage([*filter(None, [usage_of.get(model)]), usage])
            attempts += calls
            elapsed_s += took_s
        return msgspec.structs.replace(
            self, usage_of=usage_of, attempts=attempts, elapsed_s=elapsed_s, question=None
        )

    def with_found(self, name: str, passages: bytes) -> Self:
        """Return this with the passages, as JSON, that a search has found."""
        found = {**self.found, name: msgspec.Raw(passages)}
        return msgspec.structs.replace(self, found=found)

    def with_lesson(self, model: str, lesson: Lesson) -> Self:
        """Return this with what further samples of a model have not to find out again."""
        return msgspec.structs.replace(self, lessons={**self.lessons, model: lesson})

    def with_outcome(self, outcome: Outcome, *, model: str, key: bytes) -> Self:
        """Return this with the outcome of one more question to ``model``.

        Equal answers have the same ``key``; a question without an answer has no vote.
        """
        usage_of = dict(self.usage_of)
        called = {model: outcome.usage} if outcome.attempts or outcome.is_cached else {}
        for name, usage in (outcome.usage_of or called).items():
            usage_of[name] = total_usage([usage_of[name], usage]) if name in usage_of else usage
        is_answer = outcome.output is not None
        return msgspec.structs.replace(
            self,
            poll=self.poll.with_vote(key, outcome),
            samples=self.samples + (outcome.attempts > 0 or outcome.is_cached),
            attempts=self.attempts + outcome.attempts,
            usage_of=usage_of,
            elapsed_s=self.elapsed_s + outcome.elapsed_s,
            kind=self.kind if is_answer else outcome.kind,
            message=self.message if is_answer else outcome.message,
            question=None,
            saved=total_saved([self.saved, outcome.saved]),
        )

    def with_step(self, one: StepOutcome, usage_of: Mapping[str, Usage]) -> Self:
        """Return this with one more step, and the usage of its calls by model."""
        total = dict(self.usage_of)
        for name, usage in usage_of.items() if one.attempts or one.saved.calls else ():
            total[name] = total_usage([total[name], usage]) if name in total else usage
        return msgspec.structs.replace(
            self,
            attempts=self.attempts + one.attempts,
            usage_of=total,
            elapsed_s=self.elapsed_s + one.elapsed_s,
            question=None,
            saved=total_saved([self.saved, one.saved]),
            steps=(*self.steps, one),
        )

    def of_steps(self, index: int, *, first: str) -> Outcome:
        """Return the outcome of a branch with steps, without its answer.

        ``first`` is the model of the branch, which its steps need not ask.
        """
        return Outcome(
            index=index,
            attempts=self.attempts,
            usage=total_usage(self.usages) if self.usages else NO_CALL,
            usage_of=self.usage_of if set(self.usage_of) - {first} else {},
            elapsed_s=self.elapsed_s,
            saved=self.saved,
            steps=self.steps,
        )

    def without_next(self) -> Self:
        """Return this with the next question left out."""
        poll = msgspec.structs.replace(self.poll, asked=self.poll.asked + 1)
        return msgspec.structs.replace(self, poll=poll)

    def given_up(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a branch that ends early, with its votes.

        At the deadline of its run, it has the answer of the majority so far, if there is any.
        """
        ended = msgspec.structs.replace(
            outcome,
            votes=self.poll.votes(),
            samples=self.samples,
            saved=self.saved,
            steps=self.steps,
        )
        return self.poll.won(ended) if outcome.kind is ErrorKind.EXPIRED else ended

    def lost(self, outcome: Outcome) -> Outcome:
        """Return the same for a branch of which this is all that is left: with its usage, too."""
        if not self.attempts and not self.saved.calls and not self.steps:
            return outcome
        return self.given_up(
            msgspec.structs.replace(
                outcome,
                attempts=self.attempts,
                usage=total_usage(self.usages) if self.usages else NO_CALL,
                usage_of=self.usage_of if len(self.usage_of) > 1 or self.steps else {},
                elapsed_s=self.elapsed_s,
            )
        )

    def outcome(self, index: int, *, is_stopped: bool = False) -> Outcome:
        """Return the outcome of a branch: the answer of the majority, or why there is none.

        It is none, too, if the last failure is one that stops the run.
        """
        outcome = Outcome(
            index=index,
            attempts=self.attempts,
            usage=total_usage(self.usages),
            usage_of=self.usage_of if len(self.usage_of) > 1 else {},
            elapsed_s=self.elapsed_s,
            votes=self.poll.votes(),
            samples=self.samples,
            saved=self.saved,
        )
        if self.poll.winner is None or is_stopped:
            return msgspec.structs.replace(outcome, kind=self.kind, message=self.message)
        return self.poll.won(outcome)
