"""Which step of a branch comes next: a pure function of the steps and of the answers so far.

A chain, a route and a judge are the same thing: named steps, each with a condition. Nothing but the
answers is kept, so a branch that is taken up again goes on where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from fanout.core.cells import cell_text
from fanout.core.errors import StoredDataError
from fanout.core.step_answers import value_of, whole_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.records import StepOutcome
    from fanout.core.steps import StepFields, StepSpec

__all__ = [
    "Chain",
    "SentBack",
    "Verdict",
    "at_step",
    "final_answer",
    "output_step",
    "turn_of",
    "verdict_of",
    "without_failed",
]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, rename={"is_pass": "pass"}):
    """What a judge says of an answer.

    Attributes:
        is_pass: Whether the judge says that the answer passes; in JSON ``pass``.
        score: From 0 to 10.
        reasons: Why, written before the rest.
        feedback: What to change.
    """

    is_pass: bool
    score: int = 0
    reasons: str = ""
    feedback: str = ""

    @property
    def passes(self) -> bool:
        """Whether the answer passes.

        A pass with a score of 0, which is useless, is none. One with feedback is one: it says what
        could be better still. A high score does not make up for a missed criterion.
        """
        return self.is_pass and self.score > 0

    @property
    def advice(self) -> str:
        """What to tell the author: the feedback, or the reasons if there is none."""
        return self.feedback.strip() or self.reasons.strip()


def verdict_of(answer: str | None) -> Verdict:
    """Return the verdict of a judge's answer, which was validated. Raises StoredDataError."""
    try:
        return msgspec.json.decode(answer or "", type=Verdict)
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"the verdict of a judge in the store is damaged ({error})") from None


def final_answer(step: StepSpec, answer: str | None) -> str | None:
    """Return the answer of a step as others read it: the ``pass`` of a judge is whether it counts as one.

    Raises:
        StoredDataError: It is no verdict.
    """
    if step.judge is None or answer is None:
        return answer
    verdict = verdict_of(answer)
    if verdict.passes == verdict.is_pass:
        return answer
    return msgspec.json.encode({**msgspec.json.decode(answer), "pass": verdict.passes}).decode()


class SentBack(NamedTuple):
    """An answer that a judge sent back.

    Attributes:
        answer: The answer.
        feedback: What the judge says of it; it may be empty.
        criteria: What the judge goes by.
    """

    answer: str
    feedback: str
    criteria: tuple[str, ...] = ()


class Chain:
    """Goes along the steps of a branch.

    Args:
        steps: The steps of its job.
        done: Those that have answered, in the order in which they ran.

    Attributes:
        answers: The last answer of each step that has run, by name.

    Raises:
        StoredDataError: What is done is not of these steps.
    """

    def __init__(self, steps: Sequence[StepSpec], done: Sequence[StepOutcome] = ()) -> None:
        self._steps = steps
        self._places = {step.name: place for place, step in enumerate(steps)}
        self.answers: dict[str, StepOutcome] = {}
        self._at = 0
        # The judges that did not pass the last answer in their last round, in their order.
        self._rejecting: list[str] = []
        # How often each judge has judged, and the answers that it has sent back, by their step.
        self._judged: dict[str, int] = {}
        self._turns: dict[str, tuple[SentBack, ...]] = {}
        for one in done:
            self.answered(one)

    @property
    def rejected_by(self) -> str:
        """The judge that did not pass the last answer, and has no round left; or empty."""
        return self._rejecting[0] if self._rejecting else ""

    @property
    def next(self) -> StepSpec | None:
        """The next step; None if no step is left."""
        return next(filter(self._runs, self._steps[self._at :]), None)

    def _runs(self, step: StepSpec) -> bool:
        if step.judge is not None and not self._is_open(step.judge):
            return False
        for name, values in step.when.items():
            head, _, path = name.partition(".")
            if not _matches(self.answers.get(head), path, values):
                return False
        return True

    def _is_open(self, name: str) -> bool:
        """Say whether a step has an answer that no judge has rejected for good."""
        judged = {step.judge for step in self._steps if step.name in self._rejecting}
        return name in self.answers and name not in judged

    def answered(self, one: StepOutcome) -> None:
        """Go past a step. Raises StoredDataError if it is not the next one."""
        step = self.next
        if step is None or step.name != one.name or one.output is None:
            raise StoredDataError(f"the store has an answer of step {one.name!r} out of its order")
        final = final_answer(step, one.output)
        # An earlier version wrote down the judge's own words.
        self.answers[step.name] = one if final is one.output else replace(one, output=final)
        self._at = self._places[step.name] + 1
        if step.judge is not None:
            self._go_back(step, step.judge, verdict_of(one.output))

    def _go_back(self, judge: StepSpec, name: str, verdict: Verdict) -> None:
        """Go back to the judged step, unless its answer passes or this was its last round."""
        if verdict.passes:
            return
        rounds = self._judged[judge.name] = self._judged.get(judge.name, 0) + 1
        if rounds >= judge.rounds:
            self._rejecting.append(judge.name)
            return
        answer = self.answers[name].output or ""
        self._turns[name] = (
            *self._turns.get(name, ()),
            SentBack(answer, verdict.advice, judge.criteria),
        )
        self._at = self._places[name]
        # What stands between the two goes by the answer: it is made again, and judged again.
        for step in self._steps[self._at :]:
            self.answers.pop(step.name, None)
        self._rejecting = [one for one in self._rejecting if self._places[one] < self._at]

    def turns(self, step: StepSpec) -> tuple[SentBack, ...]:
        """Return the answers of a step that were sent back, each with the feedback."""
        return self._turns.get(step.name, ())

    def round(self, step: StepSpec) -> int:
        """Return the number of the next answer of a step: one more than those that were sent back."""
        place = self._places[step.name]
        return 1 + sum(
            len(turns)
            for name, turns in self._turns.items()
            if self._places[name] <= place <= self._last_judge(name)
        )

    def _last_judge(self, name: str) -> int:
        return max(self._places[step.name] for step in self._steps if step.judge == name)

    def output(self, name: str | None) -> StepOutcome | None:
        """Return the step whose answer is the output of the branch; None if that has not run.

        Args:
            name: The step that the job names; None is the last one that ran, judges aside.
        """
        if name is not None:
            return self.answers.get(name)
        for step in reversed(self._steps):
            if step.judge is None and step.name in self.answers:
                return self.answers[step.name]
        return None


def _matches(answer: StepOutcome | None, path: str, values: Sequence[str]) -> bool:
    """Say whether a step has run, and its answer, or a field of it, is among values."""
    if answer is None or answer.output is None:
        return False
    if not path:
        return whole_text(answer).strip() in values
    try:
        found = value_of(answer.output, path)
    except KeyError:
        return False
    return cell_text(found) in values


def turn_of(chain: Chain, step: StepSpec | None) -> str:
    """Return what names the next answer of a step within its branch; empty for no step."""
    return "" if step is None else f"{step.name} {chain.round(step)}"


def at_step(
    message: str,
    steps: Sequence[StepSpec],
    done: Sequence[StepOutcome],
    *,
    is_begun: bool = False,
) -> str:
    """Return why a branch was ended from outside, with the step that it was at.

    Args:
        message: Why it ended.
        steps: The steps of its job.
        done: The steps that are known to have answered.
        is_begun: Whether it is known to have begun the step after these. If not, and none has answered,
            it may have been at any.
    """
    try:
        step = Chain(steps, done).next if done or is_begun else None
    except StoredDataError:
        step = None
    return message if step is None else f"step {step.name}: {message}"


def without_failed(
    steps: Sequence[StepSpec], done: Sequence[StepOutcome], *, is_rejected: bool
) -> tuple[StepOutcome, ...]:
    """Return the answers with which a branch that failed begins again.

    Args:
        steps: The steps of its job.
        done: The steps that have run, a failed one last.
        is_rejected: Whether a judge did not pass the output: then the judged step is asked anew.
    """
    kept = [one for one in done if one.kind is None]
    if not is_rejected or not kept:
        return tuple(kept)
    judged = {step.name: step.judge for step in steps}.get(kept[-1].name)
    first = next((at for at, one in enumerate(kept) if one.name == judged), len(kept))
    return tuple(kept[:first])


def output_step(spec: StepFields, done: Sequence[StepOutcome]) -> StepOutcome | None:
    """Return the step that gave the output of a branch that has one; None if no step has run.

    Args:
        spec: The job.
        done: The steps that have run, in their order.
    """
    names = {spec.output} if spec.output else {one.name for one in spec.steps if one.judge is None}
    return next((one for one in reversed(done) if one.name in names), None)
