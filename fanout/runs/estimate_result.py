"""What an estimate says: the calls, tokens, cost and time of a job."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec

from fanout.policy.budget_room import BudgetRoom  # noqa: TC001 - msgspec reads the annotation
from fanout.policy.estimates import Calls, LaneEstimate
from fanout.runs.budget_room import room_dict
from fanout.runs.one_line import one_line, range_of

__all__ = ["Estimate", "ReduceEstimate", "StepEstimate"]


class StepEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of a step would use.

    Attributes:
        name: The step.
        models: The models that are asked first.
        calls: Its calls, and their tokens. A route may leave it out, and judges send answers back.
        prompt: Its first prompt, with placeholders for the answers of earlier steps.
        system: Its system prompt.
    """

    name: str
    models: list[str]
    calls: Calls
    prompt: str | None
    system: str | None

    def __repr__(self) -> str:
        shown = {
            "name": self.name,
            "models": self.models,
            **range_of("calls", self.calls.calls_low, self.calls.calls_high),
        }
        return one_line("StepEstimate", shown)


class ReduceEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a reduce by calls would use.

    Attributes:
        name: Its name; empty for the only one of a job without a list.
        kind: The name of the aggregator.
        model: The model that it asks.
        calls: Its calls, and their tokens.
        cost_usd_low: What they cost at least, in the lane of the job (for ``auto``, in realtime).
        cost_usd_likely: What they likely cost.
        cost_usd_high: What they cost at most; each is None if it is unknown.
    """

    name: str
    kind: str
    model: str
    calls: Calls
    cost_usd_low: float | None
    cost_usd_likely: float | None
    cost_usd_high: float | None

    def __repr__(self) -> str:
        shown = {
            "name": self.name,
            "kind": self.kind,
            **range_of("calls", self.calls.calls_low, self.calls.calls_high),
            **range_of("cost_usd", self.cost_usd_low, self.cost_usd_high),
        }
        return one_line("ReduceEstimate", shown)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of a job would use.

    Attributes:
        documents: The documents; ``bad_documents`` of them cannot be used, and make no call.
        bad_documents: Documents that cannot be used.
        chunks: What they are split into, without those.
        branches: The branches, those without a call included.
        calls: Calls of the branches, and their tokens. Calls that are made again are not in it.
        reduce: The calls of the reduces, and their tokens.
        reduces: The same for each reduce that makes calls, in order, with its cost.
        by_model: The same for each model, the reduce included.
        lane: The lane of the job.
        lanes: For each lane that all models have: what the run costs and how long it takes.
        unpriced: The models whose price is unknown.
        learnt_calls: The calls from which the tokens of the (first) model are known; 0 if they are a
            quarter of the bytes, None if a tokenizer counts them.
        is_wide: Whether the high end goes by the longest answers that a model can give, as neither
            ``max_tokens`` nor answers that were seen say more.
        prompt: The first prompt, as it would be sent.
        system: The system prompt.
        steps: The same for each step that calls a model, in order.
        plan: The calls in which a model splits documents, and their tokens.
        unknown_parts: ``parts`` or ``subtasks`` where a model splits documents: nobody knows into how many
            before it has. Each text that it is shown counts as one, so chunks, branches, calls, tokens,
            costs and times are the least, and upper ends are infinite or None. Otherwise None.
        budget: For how many branches the budget of the job is enough; None without one. All other figures
            are those of a job that ends none of its branches for its budget.
    """

    documents: int
    bad_documents: int
    chunks: int
    branches: int
    calls: Calls
    reduce: Calls
    by_model: dict[str, Calls]
    lane: str
    lanes: list[LaneEstimate]
    unpriced: list[str]
    learnt_calls: float | None
    is_wide: bool
    prompt: str | None
    system: str | None
    steps: list[StepEstimate] = []
    reduces: list[ReduceEstimate] = []
    plan: Calls = Calls()
    unknown_parts: str | None = None
    budget: BudgetRoom | None = None

    @property
    def chosen(self) -> LaneEstimate:
        """What the run costs in the lane of the job; for ``auto``, in realtime, which it may need."""
        return next((one for one in self.lanes if one.lane == self.lane), self.lanes[0])

    @property
    def all_calls(self) -> Calls:
        """The calls of the branches, of the reduce and of a split by a model, and their tokens."""
        return self.plan.plus(self.calls).plus(self.reduce)

    def __repr__(self) -> str:
        shown = {
            "documents": self.documents,
            "branches": self.branches,
            **range_of("calls", self.all_calls.calls_low, self.all_calls.calls_high),
            **range_of("cost_usd", self.chosen.cost_usd_low, self.chosen.cost_usd_high),
            **range_of("time_s", self.chosen.time_s_low, self.chosen.time_s_high),
            "lane": self.chosen.lane,
            **({} if self.budget is None else {"budget_branches": self.budget.enough_likely}),
        }
        return one_line("Estimate", shown)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values; unknown values, and infinite ones, are None."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        made["budget"] = room_dict(self.budget)
        of_parts = [part["calls"] for part in (*made["steps"], *made["reduces"])]
        for calls in (
            made["calls"],
            made["reduce"],
            made["plan"],
            *made["by_model"].values(),
            *of_parts,
        ):
            calls.update(
                {name: None if n in (None, inf) else round(n) for name, n in calls.items()}
            )
        if self.learnt_calls is not None:
            made["learnt_calls"] = round(self.learnt_calls)
        return made
