"""The calls of a branch to one model so far, and the decision after a further failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, total_usage
from fanout.core.redaction import redacted
from fanout.llm.answers import storable
from fanout.llm.base import Turn
from fanout.llm.reviews import earlier_answer
from fanout.policy.flex import after_shed
from fanout.policy.progress import ENDS_ALIKE, CallsSoFar, Lesson
from fanout.policy.retries import larger_token_limit, may_ask_anew, may_retry, retry_wait_s

if TYPE_CHECKING:
    from fanout.core.records import Usage
    from fanout.core.spec_fields import RetrySpec
    from fanout.llm.answers import WrongAnswerError
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.policy.outages import FailureVerdict

__all__ = ["Tries", "message_of"]

_MAX_MESSAGE = 300
# How a provider refuses an answer length that the model does not support.
_ROOM_REFUSED = frozenset({ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_LENGTH})
_NO_CALLS = CallsSoFar()
# What is kept of answers that were invalid.
_MOST_REFUSED, _REFUSED_CHARS = 5, 2_000


class Tries:
    """The calls of a branch so far, and the decision after a further failure.

    ``is_chance``: whether an answer that the model's own limit cut off may be whole at a second call.
    ``has_more_room``: whether a call has followed an answer that was cut off.
    """

    def __init__(
        self,
        request: LLMRequest,
        policy: RetrySpec,
        started: float,
        *,
        reasks: int,
        window_tokens: int | None,
        is_chance: bool = False,
        so_far: CallsSoFar | None = None,
    ) -> None:
        before = so_far or _NO_CALLS
        # What a judge has sent back before: part of the question, not of its re-asks.
        self._given = len(request.turns)
        if so_far is not None:
            asked = (Turn(answer=answer, reply=reply) for answer, reply in before.turns)
            turns = (*request.turns, *asked)
            room = before.max_tokens or request.max_tokens
            request = structs.replace(request, turns=turns, max_tokens=room)
        self.request = request
        self.first_lane = request.lane
        self.started = started - before.elapsed_s
        self.number = before.attempts
        self.used: list[Usage] = [before.usage] if before.attempts else []
        # The error of the last answer that a call followed with a higher token limit, or with what is
        # wrong with it.
        self._unusable: LLMError | None = None
        if before.unusable is not None and before.kind is not None:
            self._unusable = LLMError(
                before.kind, before.unusable, finish_reason=before.finish_reason
            )
        self.has_more_room = before.has_more_room
        self._room = before.max_tokens
        self._policy = policy
        self._reasks = reasks - len(before.turns)
        self._window_tokens = window_tokens
        self._is_chance = is_chance
        # Counts failures by their cost: a common failure costs less than one of this branch alone.
        self._failures = before.failures
        self._sheds = 0

    def so_far(self, now: float) -> CallsSoFar:
        """Return the calls so far, before a further one."""
        return CallsSoFar(
            attempts=self.number,
            usage=total_usage(self.used),
            elapsed_s=max(0.0, now - self.started),
            failures=self._failures,
            turns=tuple((turn.answer, turn.reply) for turn in self.request.turns[self._given :]),
            max_tokens=self._room,
            has_more_room=self.has_more_room,
            kind=None if self._unusable is None else self._unusable.kind,
            unusable=None if self._unusable is None else message_of(self._unusable),
            finish_reason=None if self._unusable is None else self._unusable.finish_reason,
        )

    @property
    def may_reask(self) -> bool:
        """Whether a further answer may be asked for in the same conversation."""
        return self._reasks > 0

    @property
    def returned(self) -> str | None:
        """The answer that a review has sent back; None if it has sent back none."""
        return earlier_answer(self.request.turns[self._given :])

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """The last answers that were invalid, each with what the model was told, if it was told it."""
        turns = self.request.turns[self._given :]
        told = [(_shown(turn.answer), _shown(turn.reply)) for turn in turns]
        if told and self._reasks < 0:
            told[-1] = told[-1][0], ""
        return tuple(told[-_MOST_REFUSED:])

    def cause(self, error: LLMError) -> LLMError:
        """Return why the branch failed: its unusable answer, if only the call after that was refused.

        A conversation is longer than its prompt, and a provider may refuse a higher token limit.
        """
        before = self._unusable
        if before is None:
            return error
        is_cut = before.kind is ErrorKind.TRUNCATED
        refused = _ROOM_REFUSED if is_cut else frozenset({ErrorKind.CONTEXT_LENGTH})
        return before if error.kind in refused else error

    def lesson(self, error: LLMError | None) -> Lesson | None:
        """Return what the last call says about further samples, if anything."""
        if self.has_more_room and not self._is_chance:
            # They need no lower limit first; nor a higher one, if the provider refuses it.
            cut = self._unusable
            if cut is None or cut.kind is not ErrorKind.TRUNCATED:
                return Lesson(calls=CallsSoFar(max_tokens=self._room, has_more_room=True))
            is_refused = error is not None and error.kind in _ROOM_REFUSED
            start = CallsSoFar(
                max_tokens=None if is_refused else self._room,
                has_more_room=True,
                kind=cut.kind,
                unusable=message_of(cut),
                finish_reason=cut.finish_reason,
            )
            return Lesson(calls=start)
        # A conversation is longer than the prompt of another sample.
        is_first = self._unusable is None and self.number > 0
        if error is not None and error.kind in ENDS_ALIKE and is_first:
            return Lesson(kind=error.kind, message=message_of(error))
        return None

    def left_s(self, now: float) -> float:
        """Return how many seconds the branch may still take."""
        return self._policy.max_elapsed_s - (now - self.started if self.number else 0.0)

    def entered(self, *, waited_s: float, for_rate_s: float) -> None:
        """Begin a further call after a wait at the gate: in all, and for a rate limit."""
        # Move the start forward so that these waits do not count as elapsed time.
        self.started += for_rate_s if self.number else waited_s
        self.number += 1

    def reasks(self, error: WrongAnswerError, reply: LLMReply) -> bool:
        """Continue the conversation with what is wrong; return whether a further call is left."""
        self.used.append(reply.usage)
        self._reasks -= 1
        turn = Turn(answer=storable(error.answer), reply=storable(error.reply))
        turns = (*self.request.turns, turn)
        self._unusable = error
        self.request = structs.replace(self.request, turns=turns)
        return self._reasks >= 0

    def failed(
        self,
        error: LLMError,
        used: Usage,
        verdict: FailureVerdict,
        *,
        now: float,
        jitter: float,
    ) -> float | None:
        """Return the seconds until the next call, or None if the branch has failed.

        Args:
            error: Why the call failed.
            used: What it consumed.
            verdict: What its error means for the branch.
            now: The clock.
            jitter: A random number from 0 to 1.
        """
        self.used.append(used)
        if not error.is_shed:
            self._failures += verdict.cost
        elapsed_s = now - self.started
        if error.is_shed and self.request.lane == "flex":
            return self._shed(error, elapsed_s, jitter)
        if self._goes_on_from_cut(error, elapsed_s):
            return 0.0
        return retry_wait_s(
            kind=error.kind,
            spent=self._failures,
            failures=self.number,
            elapsed_s=max(elapsed_s, verdict.down_s or 0.0),
            policy=self._policy,
            jitter=jitter,
            retry_after_s=error.retry_after_s,
            is_held=verdict.is_held,
        )

    def _goes_on_from_cut(self, error: LLMError, elapsed_s: float) -> bool:
        """Return whether a truncated answer is asked for once more; with more room where that is known."""
        if self.has_more_room:
            return False
        policy, spent = self._policy, self._failures
        room = larger_token_limit(
            error.kind,
            spent=spent,
            elapsed_s=elapsed_s,
            policy=policy,
            max_tokens=self.request.max_tokens,
            prompt_tokens=self.used[-1].input_tokens,
            window_tokens=self._window_tokens,
        )
        if room is not None:
            self._room = room
            self.request = structs.replace(self.request, max_tokens=room)
        elif not self._is_chance or not may_ask_anew(
            error.kind, spent=spent, elapsed_s=elapsed_s, policy=policy
        ):
            return False
        self.has_more_room, self._unusable = True, error
        return True

    def _shed(self, error: LLMError, elapsed_s: float, jitter: float) -> float | None:
        """Return the seconds until the next call, which may be in another lane; None for no call."""
        self._sheds += 1
        following = after_shed(
            refusals=self._sheds,
            elapsed_s=elapsed_s,
            policy=self._policy,
            jitter=jitter,
            retry_after_s=error.retry_after_s,
        )
        if following is None:
            return None
        self.request = structs.replace(self.request, lane=following.lane)
        return following.wait_s

    def may_retry(self, kind: ErrorKind) -> bool:
        """Say whether only time can forbid another call after a failure."""
        return may_retry(kind, spent=self._failures, policy=self._policy)


def _shown(text: str) -> str:
    return text if len(text) <= _REFUSED_CHARS else f"{text[:_REFUSED_CHARS]} [...]"


def message_of(error: LLMError) -> str:
    """Return the message of an error as it is stored."""
    return storable(redacted(str(error))[:_MAX_MESSAGE])
