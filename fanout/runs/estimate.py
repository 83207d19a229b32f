"""What a job will use and cost, without a call: counted from its input, which is read as a stream."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from fanout.aggregators import group_key
from fanout.core.answer_shape import AnswerShape
from fanout.core.errors import SpecError
from fanout.core.lanes import Lane, takes_lane
from fanout.core.neighbours import with_around
from fanout.core.records import BranchRef
from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes
from fanout.inputs.prompt_layout import branch_values
from fanout.inputs.prompts import Template
from fanout.inputs.splitters import split_documents, splitter_of
from fanout.inputs.token_counters import make_counter, ratio_of
from fanout.llm.call_bounds import longest_answer
from fanout.llm.prices import price_of
from fanout.llm.prompt_plans import plan_of
from fanout.llm.registry import known_context_tokens
from fanout.policy.consensus import is_decided
from fanout.policy.estimates import (
    Calls,
    LaneEstimate,
    answer_range,
    cost_range,
    is_telling,
    likely_answer,
    likely_cost,
    time_range,
    tree_calls,
)
from fanout.policy.token_ratio import KINDS, TokenRatio, TokenSums, bytes_by_kind
from fanout.runs.token_counts import ANSWER_TOKENS, reduce_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fanout.core.records import Chunk, Document
    from fanout.core.spec import RunSpec

__all__ = ["Estimate", "Estimator"]

# Tokens of a label beside its text, and of the line that names an answer in a reduce.
_FRAME_TOKENS = 2
_PLACE_TOKENS = 20
# Groups that are told apart; the chunks of more are taken to be in groups of the same sizes.
_MOST_GROUPS = 100_000


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of a job would use.

    Attributes:
        documents: The documents; ``bad_documents`` of them cannot be used, and make no call.
        bad_documents: Documents that cannot be used.
        chunks: What they are split into, without those.
        branches: The branches, those without a call included.
        calls: Calls of the branches, and their tokens. Calls that are made again are not in it.
        reduce: The calls of the reduce, and their tokens.
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

    @property
    def chosen(self) -> LaneEstimate:
        """What the run costs in the lane of the job; for ``auto``, in realtime, which it may need."""
        return next((one for one in self.lanes if one.lane == self.lane), self.lanes[0])

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values; unknown values are None."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        for calls in (made["calls"], made["reduce"], *made["by_model"].values()):
            calls.update({name: n if n is None else round(n) for name, n in calls.items()})
        if self.learnt_calls is not None:
            made["learnt_calls"] = round(self.learnt_calls)
        return made


class Estimator:
    """Counts what a job will use, chunk by chunk.

    Args:
        spec: The job.
        seen: Returns what the fleet knows of a model's calls.
        places: How many calls may be in flight; None if that is unknown.

    Attributes:
        places: The same.
    """

    def __init__(
        self, spec: RunSpec, *, seen: Callable[[str], TokenSums], places: int | None
    ) -> None:
        self._spec = spec
        self._seen = {model: seen(model) for model in spec.all_models}
        self.places = places
        self._templates = {name: Template.parse(source) for name, source in spec.prompts.items()}
        self._plan = plan_of(spec)
        own = ratio_of(spec.tokenizer)
        is_exact = spec.tokenizer is not None and own is None
        self._exact = make_counter(spec.tokenizer, model=spec.model) if is_exact else None
        shape = _shape_of(spec.schema, spec.choices)
        self._kinds = [0.0] * len(KINDS)
        self._exact_tokens = 0
        self._prompt: str | None = None
        self._documents = self._bad = self._chunks = self._bad_chunks = self._prompts = 0
        self._groups: Counter[str] = Counter()
        # The chunks of the groups beyond these.
        self._ungrouped = 0
        self._shape_bytes = 0 if shape is None else utf8_bytes(shape.in_words)

    def documents(self, documents: Iterable[Document]) -> Iterator[Chunk]:
        """Read documents; yield their chunks, those that cannot be used excepted, with their numbers."""
        splitter = splitter_of(self._spec)
        chunks = split_documents(self._counted(documents), splitter)
        for number, chunk in enumerate(_with_around(chunks, self._spec.neighbours)):
            if chunk.error is not None:
                self._bad_chunks += 1
                continue
            # What a model will call a part is unknown.
            title = "" if self._spec.split == "model" else None
            numbered = msgspec.structs.replace(chunk, number=number, title=title)
            self.add(numbered, number)
            yield numbered

    def _counted(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self._documents += 1
            self._bad += document.error is not None
            yield document

    def add(self, chunk: Chunk, number: int) -> None:
        """Count the branches of a chunk."""
        spec = self._spec
        self._chunks += 1
        for aspect in self._templates:
            prompt = self._rendered(chunk, number, aspect)
            if self._prompt is None:
                self._prompt = prompt
            self._prompts += 1
            if self._exact is not None:
                self._exact_tokens += self._exact(prompt) + self._exact(spec.system or "")
            kinds = bytes_by_kind((prompt, spec.system or ""), shape_bytes=self._shape_bytes)
            self._kinds = [one + more for one, more in zip(self._kinds, kinds, strict=True)]
            if spec.reduction == "llm":
                self._count_group(chunk, aspect)

    def _rendered(self, chunk: Chunk, number: int, aspect: str | None) -> str:
        spec = self._spec
        ref = BranchRef(chunk=number, aspect=aspect, model=spec.model, sample=0)
        values = branch_values(chunk, ref, 0, chunk.around)
        if self._plan is None:
            return self._templates[aspect].render(values, chunk.columns)
        lane: Lane = "realtime"
        prompt, _ = self._plan.prompt(chunk, ref, values, model=spec.model, chunks=1, lane=lane)
        return prompt

    def _count_group(self, chunk: Chunk, aspect: str | None) -> None:
        group = group_key(
            self._spec.group_by,
            document=chunk.document,
            aspect=aspect,
            model=None,
            columns=chunk.columns,
        )
        if group in self._groups or len(self._groups) < _MOST_GROUPS:
            self._groups[group] += 1
        else:
            self._ungrouped += 1

    def result(self) -> Estimate:
        """Return the estimate for what was counted."""
        spec = self._spec
        by_model = {model: self._calls_of(model) for model in spec.models or (spec.model,)}
        branches = Calls()
        for one in by_model.values():
            branches = branches.plus(one)
        reduced = self._reduce()
        by_model[spec.model] = by_model[spec.model].plus(reduced)
        lanes: tuple[Lane, ...] = get_args(Lane)
        unpriced = [one for one in by_model if price_of(one, spec.price) is None]
        return Estimate(
            documents=self._documents,
            bad_documents=self._bad,
            chunks=self._chunks,
            branches=(self._chunks + self._bad_chunks) * spec.branches_per_chunk,
            calls=branches,
            reduce=reduced,
            by_model=by_model,
            lane=spec.lane,
            lanes=[
                self._in_lane(lane, by_model)
                for lane in lanes
                if all(takes_lane(model, lane) for model in by_model)
            ],
            unpriced=unpriced,
            learnt_calls=None if self._exact is not None else self._seen[spec.model].calls,
            is_wide=self._chunks > 0 and any(map(self._is_wide, by_model)),
            prompt=self._prompt,
            system=spec.system,
        )

    def _calls_of(self, model: str) -> Calls:
        """Return the calls of the branches to one model."""
        tokens = (
            float(self._exact_tokens)
            if self._exact is not None
            else TokenRatio.fitted(self._seen[model]).tokens_of(self._kinds)
        )
        low, high = self._times
        middle = (low + high) / 2
        least, likely, most = self._answer_of(model)
        calls = float(self._prompts)
        return Calls(
            calls_low=calls * low,
            calls_likely=calls * middle,
            calls_high=calls * high,
            input_low=tokens * low,
            input_likely=tokens * middle,
            input_high=tokens * high,
            output_low=calls * low * least,
            output_likely=calls * middle * likely,
            output_high=None if most is None else calls * high * most,
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

    def _answer_of(self, model: str) -> tuple[float, float, float | None]:
        """Return the fewest, the likely and the most tokens of an answer, on average."""
        spec = self._spec
        if spec.choices:
            sizes = [_tokens(label) for label in spec.choices]
            return min(sizes), sum(sizes) / len(sizes), max(sizes) + _FRAME_TOKENS
        bound = spec.max_tokens or longest_answer(model) or known_context_tokens(model)
        given = 1.0 if spec.schema is None else _least_of(spec.schema)
        seen = self._seen[model]
        least, most = answer_range(least=given, most=bound, seen=seen)
        return least, likely_answer(least=least, most=most, seen=seen), most

    def _is_wide(self, model: str) -> bool:
        """Return whether only the model bounds its answers."""
        spec = self._spec
        if spec.choices or spec.max_tokens is not None:
            return False
        price = price_of(model, spec.price)
        return not is_telling(self._seen[model]) and (price is None or not price.is_free)

    def _reduce(self) -> Calls:
        spec = self._spec
        if spec.reduction != "llm" or not self._groups:
            return Calls()
        learnt = TokenRatio.fitted(self._seen[spec.model])
        frame = learnt.tokens_of(bytes_by_kind((spec.aggregate_prompt or "", spec.system or "")))
        ratio = ratio_of(spec.tokenizer) or float(BYTES_PER_TOKEN)
        try:
            room = float(reduce_room(spec, ratio))
        except SpecError:
            room = 1.0
        least, likely, most = self._answer_of(spec.model)
        partial = float(spec.aggregate_max_tokens or ANSWER_TOKENS)
        # Each answer of a prompt: its samples, and those of each model.
        each = spec.variants.count / len(self._templates)
        models = len(spec.models) if spec.group_by in ("model", "fanout.model") else 1
        low = middle = high = Calls()
        for count in self._groups.values():
            for _ in range(models):
                answers = count * each / models
                low = low.plus(_tree(answers, room, least, 1.0, frame))
                middle = middle.plus(_tree(answers, room, likely, partial, frame))
                high = high.plus(_tree(answers, room, most or partial, partial, frame))
        all_groups = 1 + self._ungrouped / self._groups.total()
        return Calls(
            calls_low=low.calls_low * all_groups,
            calls_likely=middle.calls_low * all_groups,
            calls_high=high.calls_high * all_groups,
            input_low=low.input_low * all_groups,
            input_likely=middle.input_low * all_groups,
            input_high=high.input_high * all_groups,
            output_low=low.calls_low * all_groups,
            output_likely=middle.calls_low * all_groups * min(partial, max(likely, ANSWER_TOKENS)),
            output_high=high.calls_high * all_groups * partial,
        )

    def _in_lane(self, lane: Lane, by_model: Mapping[str, Calls]) -> LaneEstimate:
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
            seen = self._seen[model]
            times.append(
                time_range(
                    calls,
                    requests_per_minute=spec.rate.requests_per_minute,
                    tokens_per_minute=spec.rate.tokens_per_minute,
                    places=self.places,
                    call_s=seen.elapsed_s / seen.calls if seen.calls else None,
                )
            )
        # Models are limited apart, and share the places of workers.
        is_timed = lane != "batch"
        return LaneEstimate(
            lane=lane,
            cost_usd_low=_sum(lows),
            cost_usd_likely=_sum(likely),
            cost_usd_high=_sum(highs),
            time_s_low=max((low for low, _ in times if low is not None), default=None)
            if is_timed
            else None,
            # In flex, calls wait as long as the provider likes.
            time_s_high=_most([high for _, high in times]) if lane == "realtime" else None,
        )


def _with_around(chunks: Iterator[Chunk], most: int) -> Iterator[Chunk]:
    """Return chunks that know the texts around them, in a job with ``neighbours``."""
    if not most:
        return chunks
    placed = with_around(chunks, most)
    return (msgspec.structs.replace(chunk, around=around) for chunk, around in placed)


def _tree(answers: float, room: float, answer: float, partial: float, frame: float) -> Calls:
    calls, tokens = tree_calls(
        answers, room=room, answer=answer + _PLACE_TOKENS, partial=partial + _PLACE_TOKENS
    )
    tokens += calls * frame
    return Calls(calls_low=calls, calls_high=calls, input_low=tokens, input_high=tokens)


def _sum(values: list[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return sum(known) if len(known) == len(values) else None


def _most(values: list[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return max(known) if known and len(known) == len(values) else None


def _tokens(text: str) -> float:
    return max(1.0, utf8_bytes(text) / BYTES_PER_TOKEN)


def _shape_of(schema: dict[str, Any] | None, choices: tuple[str, ...]) -> AnswerShape | None:
    if choices:
        return AnswerShape({"enum": list(choices)}, choices)
    return None if schema is None else AnswerShape(schema)


def _least_of(schema: Mapping[str, Any]) -> float:
    """Return about how many tokens the shortest answer with a schema has."""
    required = schema.get("required", ())
    if not isinstance(required, (list, tuple)):
        return 1.0
    # A name in quotes, a colon, a short value and a comma.
    return 1.0 + sum(_tokens(str(name)) + 3 for name in required)
