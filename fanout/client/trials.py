"""Trials: a random sample of a job is run, and the rest is projected."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.client.estimates import estimator_of, planner_of
from fanout.core.plan_runs import plan_run
from fanout.core.rate_limits import Rates
from fanout.core.records import Document, ErrorKind, total_usage
from fanout.core.spec import RunSpec
from fanout.core.tokens import BYTES_PER_TOKEN
from fanout.inputs.documents import log_notice
from fanout.inputs.sampling import sampled
from fanout.inputs.token_counters import bytes_tokenizer
from fanout.policy.budget_room import BudgetRoom  # noqa: TC001 - msgspec reads the annotation
from fanout.policy.estimates import Calls, Projection, known_most, project, time_range
from fanout.policy.metrics import share_estimate
from fanout.runs.budget_room import budget_room, room_dict
from fanout.runs.estimate_result import Estimate  # noqa: TC001 - msgspec reads the annotation
from fanout.runs.one_line import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fanout.client.client import Client
    from fanout.client.run import Run
    from fanout.core.records import Chunk
    from fanout.inputs.documents import Chunks, Notify
    from fanout.runs.branch_output import Output

__all__ = ["Trial", "begin_trial", "spec_of_trial", "trial_of"]

# What concerns the input that was read, and the aggregate, which a trial does not make.
_LEFT_OUT = (
    "inputs", "base_dir", "text_column", "delimiter", "sheet", "id_column", "where", "sample", "limit",
    "encoding", "parse_timeout_s", "strict", "read_on", "labels", "split", "split_prompt",
    "split_model", "split_gaps", "split_max_tokens", "chunk_tokens",
    "chunk_overlap_tokens", "tokenizer", "reduce", "reduces", "aggregate_prompt", "aggregate_schema",
    "aggregate_max_tokens", "fold", "embed", "group_by", "by", "measures", "k", "criteria", "judge_model",
    "max_pairs",
    "context_tokens", "min_success", "min_group_success", "sources", "deadline_s",
)  # fmt: skip
# What says how a model splits documents: its sample is one of documents, which it splits.
_OF_MODEL_SPLIT = (
    "split", "split_prompt", "split_model", "split_gaps", "split_max_tokens", "chunk_tokens",
    "chunk_overlap_tokens", "context_tokens",
)  # fmt: skip


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample of a job has shown.

    Attributes:
        run_id: The run of the sample; it is kept as any other.
        documents: How many documents a model has split; 0 where it does not, and chunks were chosen.
        chunks: How many chunks were run.
        branches: How many branches that were.
        succeeded: How many of these have an answer.
        errors: How many failed, by kind.
        cached: How many answers came from the response cache.
        cost_usd: What the whole job costs without its reduce, by the sample; None if unknown.
        output_tokens: The same for the tokens of answers.
        input_tokens: The same for those of prompts.
        failures: The same for branches without an answer.
        elapsed_s: What the branches of the sample took, one after the other.
        time_s: What the job takes at the known limits, by the calls of the sample; None if unknown, or
            in a batch. No job is faster than the slowest branch of its sample.
        time_s_low: The low end of the 95 % interval of that, by how much the branches of the sample differ;
            None if unknown, as of one branch.
        time_s_high: Its high end.
        answers: The lengths of the answers in tokens: the shortest, the median and the longest.
        budget: For how many branches of the whole job its budget is enough, by the sample; None without a
            budget.
        cut_chunks: How many chunks (documents, where a model splits them) of the sample the budget had no
            room for. Nothing is projected by them.
        estimate: The estimate of the whole job, made without the sample. Where a model splits, it does
            not know the chunks.
    """

    run_id: str
    documents: int = 0
    chunks: int
    branches: int
    succeeded: int
    errors: dict[str, int]
    cached: int
    cost_usd: Projection | None
    output_tokens: Projection | None
    input_tokens: Projection | None
    failures: Projection | None
    elapsed_s: float
    time_s: float | None
    time_s_low: float | None = None
    time_s_high: float | None = None
    answers: tuple[int, int, int] | None
    budget: BudgetRoom | None = None
    cut_chunks: int = 0
    estimate: Estimate

    def __repr__(self) -> str:
        cost, failed = self.cost_usd, self.failures
        shown = {
            "run_id": self.run_id,
            "branches": self.branches,
            "succeeded": self.succeeded,
            **({"errors": self.errors} if self.errors else {}),
            "cost_usd": None if cost is None else cost.value,
            **({} if cost is None else {"cost_usd_low": cost.low, "cost_usd_high": cost.high}),
            "failures": None if failed is None else failed.value,
            "time_s": self.time_s,
            **({} if self.time_s_low is None else {"time_s_low": self.time_s_low}),
            **({} if self.time_s_high is None else {"time_s_high": self.time_s_high}),
            **({} if self.budget is None else {"budget_branches": self.budget.enough_likely}),
            "estimate": self.estimate,
        }
        return one_line("Trial", shown)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values; unknown values are None."""
        return {
            **msgspec.to_builtins(self),
            "budget": room_dict(self.budget),
            "estimate": self.estimate.to_dict(),
        }


class BegunTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A trial whose run goes on; ``plan`` is the run in which a model has split its documents."""

    run: Any
    spec: RunSpec
    estimate: Estimate
    places: int | None
    rates: Rates
    plan: Any = None


def begin_trial(
    client: Client,
    given: RunSpec | Mapping[str, Any],
    documents: Chunks | None,
    *,
    size: int,
    notify: Notify = log_notice,
    on_created: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BegunTrial:
    """Choose the sample while the whole input is counted, and begin its run.

    The chunks of the sample are those of the job: same texts, same numbers, same seeds. So their
    calls are those of the job, and the response cache has their answers when it runs. Where a model
    splits documents, the sample is one of documents, and the model splits these.
    """
    spec, source, estimator = estimator_of(client, given, documents, notify=notify)
    planner = planner_of(client, spec)
    numbered: Iterable[Any] = (
        estimator.documents(source)
        if planner is None
        else _whole(source, lambda them: estimator.documents(planner.counted(them)))
    )
    # The whole sample is kept: a second reading of the input might differ.
    picked: list[Any] = list(sampled(numbered, size, seed=spec.seed or 0, again=None))
    run = client.begin(
        spec_of_trial(spec),
        iter(picked if planner else [_document(chunk) for chunk in picked]),
        on_notice=notify,
        on_created=on_created,
        should_stop=should_stop,
    )
    rates, places = estimator.limits_of(spec.model)
    found = estimator.result()
    return BegunTrial(
        run=run,
        spec=spec,
        estimate=found if planner is None else planner.added_to(found),
        places=places,
        rates=rates,
        plan=client.run(plan_run(run.run_id)) if planner and picked else None,
    )


def _whole(
    documents: Iterable[Document], counted: Callable[[Iterable[Document]], Iterable[Chunk]]
) -> Iterator[Document]:
    """Yield the documents that can be used, while their chunks are counted."""
    read: deque[Document] = deque()

    def kept() -> Iterator[Document]:
        for document in documents:
            if document.error is None and document.text.strip():
                read.append(document)
            yield document

    for _ in counted(kept()):
        while read:
            yield read.popleft()
    yield from read


def spec_of_trial(spec: RunSpec) -> RunSpec:
    """Return the job of a sample: its calls are those of the job, and there is no more to it."""
    # The lane ``auto`` goes by the deadline.
    names = [name for name in _LEFT_OUT if name != "deadline_s" or spec.lane != "auto"]
    if spec.retrieval_sources:
        # It decides how many passages a prompt has.
        names.remove("context_tokens")
    if spec.split == "model":
        names = [name for name in names if name not in _OF_MODEL_SPLIT]
    kept = {name: getattr(spec, name) for name in RunSpec.model_fields if name not in names}
    bare = RunSpec.model_construct(**kept)
    left_out = {name: getattr(bare, name) for name in names}
    # What its own texts would show must not change the layout of its prompts.
    left_out["tokenizer"] = spec.tokenizer or bytes_tokenizer(BYTES_PER_TOKEN)
    own = spec.model_copy(update=left_out)
    own.model_fields_set.difference_update(names)
    return own


def _document(chunk: Chunk) -> Document:
    return Document(
        name=chunk.document,
        index=chunk.document_index,
        text=chunk.text,
        columns=chunk.columns,
        text_at=chunk.text_at,
        text_column=chunk.text_column,
        page_numbers=chunk.pages,
        headings=[(0, chunk.headings)] if chunk.headings else [],
        number=chunk.number,
        around=chunk.around,
    )


def trial_of(begun: BegunTrial) -> Trial:
    """Return what a trial has shown, once its run has ended."""
    run: Run = begun.run
    outputs = list(run.outcomes())
    plan = [] if begun.plan is None else list(begun.plan.outcomes())
    of_chunk: dict[int, list[Output[Any]]] = defaultdict(list)
    for one in [*plan, *outputs]:
        of_chunk[_sampled(begun, one)].append(one)
    # Which branches a budget ends is no chance: they say nothing about the others.
    cut = {at for at, some in of_chunk.items() if any(map(_is_cut, some))}
    chunks = [some for at, some in of_chunk.items() if at not in cut]
    whole = [one for one in outputs if _sampled(begun, one) not in cut]
    total, branches = begun.estimate.chunks, begun.estimate.branches
    if plan:
        # What the model makes of the other documents is not known.
        total = begun.estimate.documents - begun.estimate.bad_documents
        branches = round(len(whole) * total / max(1, len(chunks)))
    lengths = sorted(int(n) for one in outputs if (n := _used(one, "output_tokens")))
    time = _time(begun, branches, [one for one in whole if not one.cached])
    failed = sum(one.kind is not None for one in outputs)
    return Trial(
        run_id=run.run_id,
        documents=len(of_chunk) if plan else 0,
        chunks=len({one.chunk for one in outputs}),
        branches=len(outputs),
        succeeded=len(outputs) - failed,
        errors=dict(Counter(one.kind.value for one in outputs if one.kind is not None)),
        cached=sum(one.cached for one in outputs),
        cost_usd=_projected(chunks, total, "cost_usd"),
        output_tokens=_projected(chunks, total, "output_tokens"),
        input_tokens=_projected(chunks, total, "input_tokens"),
        failures=_failures(whole, branches),
        elapsed_s=sum(one.elapsed_s for one in outputs),
        time_s=None if time is None else time.value,
        time_s_low=None if time is None else time.low,
        time_s_high=None if time is None else time.high,
        answers=(lengths[0], lengths[len(lengths) // 2], lengths[-1]) if lengths else None,
        budget=_room(begun.spec, chunks, total, branches),
        cut_chunks=len(cut),
        estimate=begun.estimate,
    )


def _sampled(begun: BegunTrial, one: Output[Any]) -> int:
    """Return the number of the chunk, or document, of the sample to which a branch belongs."""
    return one.chunk if begun.plan is None else one.document_index


def _is_cut(one: Output[Any]) -> bool:
    return one.kind is ErrorKind.BUDGET


def _failures(outputs: list[Output[Any]], branches: int) -> Projection | None:
    share = share_estimate(sum(one.kind is not None for one in outputs), len(outputs))
    if share is None:
        return None
    return Projection(
        value=share.value * branches, low=share.low * branches, high=share.high * branches
    )


def _room(
    spec: RunSpec, chunks: list[list[Output[Any]]], total: int, branches: int
) -> BudgetRoom | None:
    """Return for how many branches the budget is enough, by the chunks of a sample."""

    def ends(*names: str) -> tuple[float | None, float | None, float | None]:
        found = _projected(chunks, total, *names)
        return (None, None, None) if found is None else (found.low, found.value, found.high)

    return budget_room(
        spec,
        branches=branches,
        used_by=branches,
        usd=ends("cost_usd"),
        calls=ends("calls"),
        tokens=ends("input_tokens", "output_tokens"),
    )


def _used(one: Output[Any], name: str) -> float | None:
    """Return what a branch used, with what its answers had used that were cached, as steps may be."""
    parts = [one.usage, one.saved] if one.saved.calls else [one.usage]
    if one.cached:
        parts = [one.saved]
    found: float | None = getattr(total_usage(parts), name)
    return found


def _projected(chunks: list[list[Output[Any]]], total: int, *names: str) -> Projection | None:
    """Return the sum of what the branches of chunks used, for all of them."""
    values = [[_used(one, name) for one in some for name in names] for some in chunks]
    if any(one is None for some in values for one in some):
        return None
    return project([sum(one for one in some if one is not None) for some in values], total)


def _time(begun: BegunTrial, branches: int, called: list[Output[Any]]) -> Projection | None:
    """Return how long the job takes by branches of which none was answered from the cache."""
    estimate = begun.estimate
    if estimate.lane == "batch":
        return None
    found = project([one.elapsed_s for one in called], branches)
    if found is None:
        low, high = estimate.chosen.time_s_low, estimate.chosen.time_s_high
        return None if high is None else Projection(value=high, low=low, high=high)
    # Of each step, and of those that are made again.
    each = max(1.0, sum(one.attempts + one.saved.calls for one in called) / len(called))

    def at_least(branch_s: float | None) -> float | None:
        if branch_s is None:
            return None
        taken = _at_the_limits(begun, branches * each, call_s=branch_s / each, in_turn=each)
        return known_most([taken, max(one.elapsed_s for one in called)])

    least, mean, most = (
        None if one is None else one / branches for one in (found.low, found.value, found.high)
    )
    value = at_least(mean)
    if value is None:
        return None
    return Projection(value=value, low=at_least(least), high=at_least(most))


def _at_the_limits(
    begun: BegunTrial, calls: float, *, call_s: float, in_turn: float
) -> float | None:
    """Return the seconds of a job whose branches make so many calls, each of so many in turn."""
    calls += begun.estimate.plan.calls_likely
    low, _ = time_range(
        Calls(calls_low=calls, calls_high=calls),
        # How many tokens the calls will use is not asked here.
        rates=Rates(requests_per_minute=begun.rates.requests_per_minute),
        places=begun.places,
        call_s=call_s,
        in_turn=(in_turn, in_turn),
    )
    return low
