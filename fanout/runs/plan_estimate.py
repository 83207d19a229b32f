"""What the calls will use in which a model splits documents, beside those of the job."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.inputs.plan_answers import wants_subtasks
from fanout.inputs.splitters import split_documents, splitter_of
from fanout.policy.estimates import Calls
from fanout.runs.estimate import Estimator
from fanout.runs.planned import pieces, plan_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.policy.estimates import LaneEstimate
    from fanout.policy.token_ratio import TokenSums
    from fanout.runs.estimate_result import Estimate

__all__ = ["PlanEstimator"]


class PlanEstimator:
    """Counts what a model will use that splits the documents of a job, document by document.

    Args:
        spec: The job.
        seen: Returns what the fleet knows of a model's calls.
        places: How many calls may be in flight; None if that is unknown.
    """

    def __init__(
        self, spec: RunSpec, *, seen: Callable[[str], TokenSums], places: int | None
    ) -> None:
        self._spec = spec
        own = plan_spec(spec, deadline_s=spec.deadline_s)
        self._estimator = Estimator(own, seen=seen, places=places)
        self._splitter = splitter_of(own)
        self._number = 0

    def counted(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield documents as the pieces that the model is shown, and count the calls that split them.

        Each piece has one part at least.
        """
        for document in documents:
            for piece in pieces(self._spec, [document]):
                for chunk in split_documents([piece], self._splitter):
                    if chunk.error is None:
                        self._estimator.add(chunk, self._number)
                        self._number += 1
                yield document if piece.error is not None else piece

    def added_to(self, estimate: Estimate) -> Estimate:
        """Return the estimate of a job with what was counted here; that of the job is now the least."""
        own = self._estimator.result()
        by_model = {model: _least(calls) for model, calls in estimate.by_model.items()}
        for model, calls in own.by_model.items():
            by_model[model] = by_model.get(model, Calls()).plus(calls)
        lanes = {one.lane: one for one in own.lanes}
        return structs.replace(
            estimate,
            plan=own.calls,
            calls=_least(estimate.calls),
            reduce=_least(estimate.reduce) if estimate.reduce.calls_high else estimate.reduce,
            reduces=[
                structs.replace(one, calls=_least(one.calls), cost_usd_high=None)
                for one in estimate.reduces
            ],
            steps=[structs.replace(one, calls=_least(one.calls)) for one in estimate.steps],
            by_model=by_model,
            lanes=[
                structs.replace(_plus(one, lanes[one.lane]), cost_usd_high=None, time_s_high=None)
                for one in estimate.lanes
                if one.lane in lanes
            ],
            unpriced=list(dict.fromkeys([*estimate.unpriced, *own.unpriced])),
            is_wide=False,
            unknown_parts="subtasks" if wants_subtasks(self._spec) else "parts",
            # Of how many branches nobody knows.
            budget=estimate.budget
            and structs.replace(
                estimate.budget, enough_low=None, enough_likely=None, enough_high=None
            ),
        )


def _least(calls: Calls) -> Calls:
    """Return calls of which there may be any number more."""
    return structs.replace(calls, calls_high=inf, input_high=inf, output_high=None)


def _plus(one: LaneEstimate, other: LaneEstimate) -> LaneEstimate:
    """Return what two runs cost that follow each other, and how long they take."""
    names = [name for name in one.__struct_fields__ if name != "lane"]
    sums = {name: _sum(getattr(one, name), getattr(other, name)) for name in names}
    return structs.replace(one, **sums)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
