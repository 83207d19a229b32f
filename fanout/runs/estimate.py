"""What a job will use and cost, without a call: counted from its input, which is read as a stream."""

from __future__ import annotations

from functools import cached_property, reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

import msgspec

from fanout.core.lanes import Lane, takes_lane
from fanout.core.neighbours import with_around
from fanout.core.rate_limits import LimitState, Rates
from fanout.inputs.fences import with_rule
from fanout.inputs.splitters import split_documents, splitter_of
from fanout.llm.prices import price_of
from fanout.policy.consensus import is_decided
from fanout.policy.estimates import (
    Calls,
    LaneEstimate,
    any_of,
    cost_range,
    is_telling,
    known_most,
    known_sum,
    likely_cost,
    models_of,
    tightest,
    time_range,
)
from fanout.runs.ask_counts import AskCounts
from fanout.runs.budget_room import budget_room
from fanout.runs.estimate_result import Estimate, ReduceEstimate, StepEstimate
from fanout.runs.reduce_estimate import ReduceEstimator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fanout.core.asks import Ask
    from fanout.core.records import Chunk, Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.fences import Fenced
    from fanout.policy.budget_room import BudgetRoom
    from fanout.policy.routes import Route
    from fanout.policy.token_ratio import TokenSums

    _ByModel = Mapping[str, Calls]
    _RouteCalls = tuple[Route, Mapping[tuple[str, str], Calls]]

__all__ = ["Estimator"]

_TITLE, _SUBTASK = "[title]", "[subtask]"


class Estimator:
    """Counts what a job will use, chunk by chunk.

    Args:
        spec: The job.
        seen: Returns what the fleet knows of a model's calls.
        places: How many calls may be in flight; None if that is unknown.
        limits: The limits that the fleet has learnt, by model.
        passages: About what prompts have as ``{context}``: see AskCounts.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        seen: Callable[[str], TokenSums],
        places: int | None,
        limits: Mapping[str, LimitState] = MappingProxyType({}),
        passages: Mapping[str, Fenced] = MappingProxyType({}),
    ) -> None:
        self._spec = spec
        self._seen = {model: seen(model) for model in spec.all_models}
        self._places, self._limits = places, limits
        self._counts = AskCounts(spec, self._seen, passages)
        self._documents = self._bad = self._chunks = self._bad_chunks = 0
        self._reducing = [
            ReduceEstimator(spec, reduce, self._seen[reduce.model])
            for reduce in spec.called_reductions
        ]
        self._reduced = Calls()

    def documents(self, documents: Iterable[Document]) -> Iterator[Chunk]:
        """Read documents; yield their chunks, those that cannot be used excepted, with their numbers."""
        splitter = splitter_of(self._spec)
        chunks = split_documents(self._counted(documents), splitter)
        for number, chunk in enumerate(with_around(chunks, self._spec.neighbours)):
            if chunk.error is not None:
                self._bad_chunks += 1
                continue
            numbered = msgspec.structs.replace(chunk, number=number)
            if self._spec.split == "model":
                # What a model will call a part, or ask for, is unknown.
                numbered = msgspec.structs.replace(numbered, title=_TITLE, subtask=_SUBTASK)
            self.add(numbered, number)
            yield numbered

    def _counted(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self._documents += 1
            self._bad += document.error is not None
            yield document

    def add(self, chunk: Chunk, number: int) -> None:
        """Count the branches of a chunk."""
        self._chunks += 1
        self._counts.add(chunk, number)
        for one in self._reducing:
            one.add(chunk)

    def result(self) -> Estimate:
        """Return the estimate for what was counted."""
        spec, shown = self._spec, self._counts.shown
        routes = self._counts.routes(self._times)
        branches = any_of([(route.share, _total(calls.values())) for route, calls in routes])
        reduces = self._reduces(branches)
        reduced = [(one.model, one.calls) for one in reduces]
        self._reduced = _total(one for _, one in reduced)
        by_route = [(route.share, models_of(calls, reduced)) for route, calls in routes]
        models = dict.fromkeys(model for _, found in by_route for model in found)
        by_model = {
            model: any_of([(share, found.get(model, Calls())) for share, found in by_route])
            for model in models
        }
        # Functions alone ask no model.
        first = next(iter(self._counts.asks), None)
        lanes: tuple[Lane, ...] = get_args(Lane)
        return Estimate(
            documents=self._documents,
            bad_documents=self._bad,
            chunks=self._chunks,
            branches=(self._chunks + self._bad_chunks) * spec.branches_per_chunk,
            calls=branches,
            reduce=self._reduced,
            reduces=reduces,
            by_model=by_model,
            lane=spec.lane,
            lanes=[
                self._in_lane(lane, by_route)
                for lane in lanes
                if all(takes_lane(model, lane) for model in by_model)
            ],
            unpriced=[one for one in by_model if price_of(one, spec.price) is None],
            learnt_calls=None
            if first is None or self._counts.is_exact
            else self._seen[first.models[0]].calls,
            is_wide=self._chunks > 0 and any(map(self._is_wide, self._counts.asks)),
            prompt=next(iter(shown.values()), None),
            system=first and with_rule(spec, first.models[0], first.system),
            steps=[self._of_step(ask, routes) for ask in self._counts.asks if ask.step],
            budget=self._room(branches, routes),
        )

    def _room(self, branches: Calls, routes: Sequence[_RouteCalls]) -> BudgetRoom | None:
        """Return for how many branches the budget is enough: they alone, without the reduce."""
        spec = self._spec
        if not spec.budget.is_limited:
            return None
        lane: Lane = "realtime" if spec.lane == "auto" else spec.lane
        cost = self._in_lane(lane, [(route.share, models_of(calls, ())) for route, calls in routes])
        most = branches.output_high
        return budget_room(
            spec,
            branches=(self._chunks + self._bad_chunks) * spec.branches_per_chunk,
            used_by=self._chunks * spec.branches_per_chunk,
            usd=(cost.cost_usd_low, cost.cost_usd_likely, cost.cost_usd_high),
            calls=(branches.calls_low, branches.calls_likely, branches.calls_high),
            tokens=(
                branches.input_low + branches.output_low,
                branches.input_likely + branches.output_likely,
                None if most is None else branches.input_high + most,
            ),
        )

    def _of_step(self, ask: Ask, routes: Sequence[_RouteCalls]) -> StepEstimate:
        name = "" if ask.step is None else ask.step.name
        calls = [
            (route.share, _total(one for (step, _), one in found.items() if step == name))
            for route, found in routes
        ]
        return StepEstimate(
            name=name,
            models=list(ask.models),
            calls=any_of(calls),
            prompt=self._counts.shown.get(name),
            system=with_rule(self._spec, ask.models[0], ask.system),
        )

    @cached_property
    def _times(self) -> tuple[float, float]:
        """How often each prompt goes to each model, at least and at most."""
        spec = self._spec
        if spec.certainty is None:
            return spec.samples, spec.samples
        models = len(spec.models or (spec.model,))
        most = spec.samples * models
        agreed = next(
            one
            for one in range(1, most + 1)
            if is_decided([one], left=most - one, certainty=spec.certainty)
        )
        return agreed / models, spec.samples

    def _is_wide(self, ask: Ask) -> bool:
        """Return whether only the model bounds its answers."""
        if ask.choices or ask.max_tokens is not None:
            return False
        prices = {model: price_of(model, self._spec.price) for model in ask.models}
        return any(
            not is_telling(self._seen[model]) and (price is None or not price.is_free)
            for model, price in prices.items()
        )

    def _reduces(self, branches: Calls) -> list[ReduceEstimate]:
        lane: Lane = "realtime" if self._spec.lane == "auto" else self._spec.lane
        found = []
        for one in self._reducing:
            calls = one.calls(branches, self._counts.outputs())
            price = price_of(one.reduce.model, self._spec.price)
            low, high = cost_range(price, calls, lane)
            found.append(
                ReduceEstimate(
                    name=one.reduce.name,
                    kind=one.reduce.kind,
                    model=one.reduce.model,
                    calls=calls,
                    cost_usd_low=low,
                    cost_usd_likely=likely_cost(price, calls, lane),
                    cost_usd_high=high,
                )
            )
        return found

    def _in_lane(self, lane: Lane, by_route: Sequence[tuple[float, _ByModel]]) -> LaneEstimate:
        """Return what a lane costs: from the cheapest way through the steps to the dearest."""
        found = [self._on_route(lane, by_model) for _, by_model in by_route]
        likely = [
            (share, one.cost_usd_likely) for (share, _), one in zip(by_route, found, strict=True)
        ]
        lows = [one.cost_usd_low for one in found]
        times = [one.time_s_low for one in found]
        return LaneEstimate(
            lane=lane,
            cost_usd_low=None if None in lows else min(one for one in lows if one is not None),
            cost_usd_likely=known_sum([one and share * one for share, one in likely]),
            cost_usd_high=known_most([one.cost_usd_high for one in found]),
            time_s_low=None if None in times else min(one for one in times if one is not None),
            time_s_high=known_most([one.time_s_high for one in found]),
        )

    def _on_route(self, lane: Lane, by_model: _ByModel) -> LaneEstimate:
        spec = self._spec
        lows: list[float | None] = []
        likely: list[float | None] = []
        highs: list[float | None] = []
        times: list[tuple[float | None, float | None]] = []
        for model, calls in by_model.items():
            price = price_of(model, spec.price)
            low, high = cost_range(price, calls, lane)
            likely.append(likely_cost(price, calls, lane))
            lows.append(low)
            highs.append(high)
            times.append(self._time_range(model, calls))
        # Models are limited apart, and share the places of workers.
        is_timed = lane != "batch"
        return LaneEstimate(
            lane=lane,
            cost_usd_low=known_sum(lows),
            cost_usd_likely=known_sum(likely),
            cost_usd_high=known_sum(highs),
            time_s_low=max((low for low, _ in times if low is not None), default=None)
            if is_timed
            else None,
            # In flex, calls wait as long as the provider likes.
            time_s_high=known_most([high for _, high in times]) if lane == "realtime" else None,
        )

    def limits_of(self, model: str) -> tuple[Rates, int | None]:
        """Return the rates of a model, told and learnt, and how many calls may be in flight."""
        return tightest(self._spec.rate.rates, self._limits.get(model, LimitState()), self._places)

    def _time_range(self, model: str, calls: Calls) -> tuple[float | None, float | None]:
        seen = self._seen[model]
        rates, places = self.limits_of(model)
        branches = self._chunks * self._spec.branches_per_chunk
        return time_range(
            calls,
            rates=rates,
            places=places,
            call_s=seen.elapsed_s / seen.calls if seen.calls else None,
            in_turn=self._in_turn(calls, branches),
        )

    def _in_turn(self, calls: Calls, branches: int) -> tuple[float, float]:
        """Return how many calls of a model follow each other: of the steps of a branch, and of a chain."""
        steps = calls.calls_low / branches if self._spec.steps and branches else 1.0
        if not self._spec.refines:
            return steps, steps
        return steps + self._reduced.calls_low, steps + self._reduced.calls_high


def _total(calls: Iterable[Calls]) -> Calls:
    return reduce(Calls.plus, calls, Calls())
