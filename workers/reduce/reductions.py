"""The reduce of a run: an aggregate computed at once, or a further stage of LLM calls."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators import (
    Aggregate,
    CoverageCounter,
    Fields,
    GroupedAggregates,
    Item,
    Node,
    Part,
    Tally,
    covered,
    lacking,
    nodes_of,
)
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.policy.packing import pack
from fanout.runs.enqueue import has_frontier, open_stage
from fanout.runs.result_writer import ResultTooLargeError, write_result
from fanout.runs.status import ReduceError
from fanout.runs.token_counts import packing_ratio, reduce_room
from workers.reduce.cited import with_checked_sources
from workers.reduce.comparisons import compare
from workers.reduce.frontier import (
    group_counts,
    leaf_of,
    node_chunk,
    node_places,
    node_tally,
    part_of,
    reduce_rest,
)
from workers.reduce.items import branches, item_of, tally_of
from workers.reduce.refining import refined
from workers.reduce.resolving import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.aggregators import Source, Streamed
    from fanout.core.records import Chunk, Outcome
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from workers.context.worker_context import WorkerContext

__all__ = ["end_run", "reduce"]


def reduce(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> None:
    """Reduce the outcomes of a stage: end the run, or open the next stage."""
    try:
        _reduce(context, run, stage_id, spec)
    except SpecError as error:
        # It would be the same for ever.
        _end(context, run.run_id, problem=str(error))


def _reduce(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> None:
    run_id = run.run_id
    if spec.reduction == "none":
        _end(context, run_id)
    elif spec.reduction == "llm":
        _reduce_by_calls(context, run, stage_id, spec)
    elif spec.compares:
        _compare(context, run, stage_id, spec)
    elif spec.resolves:
        _resolve(context, run, stage_id, spec)
    else:
        _aggregate(context, run_id, spec)


def _aggregate(context: WorkerContext, run_id: str, spec: RunSpec) -> None:
    """End a run with an aggregate that no call is made for."""
    fields = Fields(
        by=spec.by,
        measures=spec.measures,
        k=spec.k,
        schema=spec.answer_schema,
        choices=spec.answer_choices,
        model=spec.model,
        steps=spec.step_names,
    )
    counter = CoverageCounter()
    with GroupedAggregates(spec.reduction, fields) as groups:
        for item in _items(context, run_id, spec, counter):
            groups.add(item)
        tallies = counter.tallies()
        made = ((group, _covered(spec, one, tallies[group])) for group, one in groups.results())
        problems = [lacking(tally, spec.min_group_success) for tally in tallies.values()]
        _end(context, run_id, made, problem=_of_all(problems))


def _covered(spec: RunSpec, made: Aggregate | Streamed, tally: Tally) -> Aggregate | Streamed:
    """Return an aggregate with what is behind it; one with too little says so in place of its value."""
    return covered(made, tally.coverage(lacking(tally, spec.min_group_success)))


def _of_all(problems: Sequence[str | None]) -> str | None:
    """Return why there is no aggregate at all; None if a group has one, or there is no group."""
    if not problems or not all(problems):
        return None
    return f"no aggregate could be made: {problems[-1]}"


def _compare(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> None:
    """Open the next round of comparisons, or end the run."""
    ended = compare(context, run, stage_id, spec)
    if ended is not None:
        _end(context, run.run_id, ended.made, ended.errors, problem=ended.problem)


def _resolve(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> None:
    """Open the next stage of pairs of values, or end the run."""
    ended = resolve(context, run, stage_id, spec)
    if ended is None:
        return
    lack = lacking(ended.tally, spec.min_group_success)
    made = [] if ended.problem else [("", _covered(spec, ended.made, ended.tally))]
    _end(context, run.run_id, made, ended.errors, problem=ended.problem or _of_all([lack]))


def _end(
    context: WorkerContext,
    run_id: str,
    made: Iterable[tuple[str, Aggregate | Streamed]] = (),
    errors: Sequence[ReduceError] = (),
    *,
    problem: str | None = None,
) -> None:
    """End a run with the aggregates of its groups, or because of a problem."""
    store = context.connections.store
    try:
        write_result(store, run_id, made, errors)
    except ResultTooLargeError:
        # The answers themselves remain in the store.
        write_result(store, run_id, (), errors)
        problem = (
            "the aggregate has more groups than can be stored: use another group_by, or "
            f"`fanout results {run_id} --out DIR`, which has all answers"
        )
    status = RunStatus.FAILED if problem else RunStatus.SUCCEEDED
    end_run(context, run_id, status, error=problem)


def end_run(
    context: WorkerContext, run_id: str, status: RunStatus, *, error: str | None = None
) -> None:
    """Give a run its final status; report its end unless another process already has."""
    store = context.connections.store
    if store.end_run(run_id, status, ended_at=store.now(), error=error):
        context.reports.run_ended(run_id)


def _items(
    context: WorkerContext, run_id: str, spec: RunSpec, counter: CoverageCounter
) -> Iterator[Item]:
    for chunk, outcome in branches(context, StageId(run_id, 0)):
        item = item_of(spec, chunk, outcome)
        counter.add(item.group, tally_of(spec, chunk, outcome))
        yield item


def _reduce_by_calls(
    context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec
) -> None:
    """Open a stage of LLM calls over the outcomes of a stage, or end the run.

    A group is done at the first reduce stage in which it has a single chunk.
    """
    if has_frontier(spec) and stage_id.stage == 0 and _ends_lacking(context, run.run_id, spec):
        return
    reduce = reduce_rest if has_frontier(spec) else _reduce_groups
    if reduce(context, run, spec, stage_id):
        return
    if spec.refines:
        _end_refined(context, run, spec)
    else:
        last = max(stage_id.stage, run.base_stage)
        _end_with_answers(context, run.run_id, spec, range(run.base_stage + 1, last + 1))


def _ends_lacking(context: WorkerContext, run_id: str, spec: RunSpec) -> bool:
    """End a run without groups of which too few branches succeeded; return whether it has ended."""
    record = context.connections.store.stage(StageId(run_id, 0))
    if record.succeeded >= spec.min_group_success * record.total:
        return False
    counter = CoverageCounter()
    for chunk, outcome in branches(context, StageId(run_id, 0)):
        counter.add("", tally_of(spec, chunk, outcome))
    [tally] = counter.tallies().values()
    none = Aggregate(value=None, succeeded=record.succeeded, failed=record.failed)
    problem = _of_all([lacking(tally, spec.min_group_success)])
    _end(context, run_id, [("", _covered(spec, none, tally))], problem=problem)
    return True


def _end_refined(context: WorkerContext, run: RunRecord, spec: RunSpec) -> None:
    """End a run with the answer that its calls have refined."""
    chain, failed = refined(context, run, spec)
    errors = [_error("", outcome) for outcome in failed]
    made = Aggregate(
        value=_value(chain.answer, is_json=spec.aggregate_schema is not None),
        succeeded=chain.tally.behind,
        failed=chain.failed,
        notes=chain.remarks,
    )
    problem = _of_all([lacking(chain.tally, spec.min_group_success)])
    if problem is None and chain.answer is None:
        silent = ["no call had anything to say of the answers"]
        problem = f"no aggregate could be made: {_last_problem(errors, [] if errors else silent)}"
    _end(context, run.run_id, [("", _covered(spec, made, chain.tally))], errors, problem=problem)


def _reduce_groups(
    context: WorkerContext, run: RunRecord, spec: RunSpec, stage_id: StageId
) -> bool:
    """Open a stage for the groups with several answers; return whether there are any.

    Raises:
        SpecError: The job leaves no room for answers.
    """
    run_id, stage = run.run_id, stage_id.stage
    level = stage - run.base_stage if stage else 0
    groups = _leaves(context, run_id, spec) if stage == 0 else _partials(context, stage_id)
    if not groups:
        return False
    store, publisher = context.connections.store, context.connections.publisher
    texts = (part.text for some in groups.values() for part in some)
    per_token = packing_ratio(store, run_id, spec, texts)
    chunks = list(_plan_chunks(groups, level, spec, per_token))
    next_id = StageId(run_id, run.base_stage + level + 1)
    open_stage(store, publisher, next_id, pack(chunks, branches_per_chunk=1))
    return True


def _leaves(context: WorkerContext, run_id: str, spec: RunSpec) -> dict[str, list[Part]]:
    groups: dict[str, list[Part]] = defaultdict(list)
    for chunk, outcome in branches(context, StageId(run_id, 0)):
        part = leaf_of(spec, chunk, outcome)
        groups[part.group].append(part)
    return groups


def _partials(context: WorkerContext, stage_id: StageId) -> dict[str, list[Part]]:
    """Return the partial answers of a reduce stage, for the groups that need a further stage."""
    groups: dict[str, list[Part]] = defaultdict(list)
    for chunk, outcome in branches(context, stage_id):
        part = part_of(chunk, outcome)
        groups[part.group].append(part)
    return {group: parts for group, parts in groups.items() if len(parts) > 1}


def _plan_chunks(
    groups: dict[str, list[Part]], level: int, spec: RunSpec, bytes_per_token: float
) -> Iterator[Chunk]:
    room = reduce_room(spec, bytes_per_token)
    for group, parts in groups.items():
        nodes = nodes_of(parts, room_tokens=room, level=level, bytes_per_token=bytes_per_token)
        tally = Tally.total(part.tally for part in parts)
        problem = lacking(tally, spec.min_group_success)
        if level == 0 and problem is not None:
            # No call could change it.
            failed = tally.branches - tally.behind
            none = Part(group=group, text="", count=tally.behind, failed=failed)
            node = Node(parts=[none], taken=len(parts), key=0, tally=tally)
            yield node_chunk(node, group=group, position=0, level=level, problem=problem)
            continue
        for position, node in enumerate(nodes):
            yield node_chunk(node, group=group, position=position, level=level, cites=spec.sources)


def _end_with_answers(context: WorkerContext, run_id: str, spec: RunSpec, stages: range) -> None:
    aggregates: dict[str, Aggregate] = {}
    answered: dict[str, bool] = {}
    problems: list[str] = []
    errors: list[ReduceError] = []
    for stage in stages:
        behind: dict[str, Tally] = {}
        for chunk, outcome in branches(context, StageId(run_id, stage)):
            group, count, failed = group_counts(chunk)
            if outcome.kind is not None and chunk.error is None:
                errors.append(_error(group, outcome))
            # A group with several chunks here is answered by a later stage, which overwrites this.
            tally = Tally.total([behind.get(group, Tally()), node_tally(chunk, outcome)])
            behind[group] = tally
            problem = chunk.error or lacking(tally, spec.min_group_success)
            value = None
            if problem is None:
                value = _value(outcome.output, is_json=spec.aggregate_schema is not None)
            else:
                problems.append(problem)
            sources: list[Source] = []
            if value is not None and (places := node_places(chunk)):
                is_deep = stage > stages.start
                value, sources = with_checked_sources(
                    context, run_id, spec, value, places, is_deep=is_deep
                )
            aggregates[group] = Aggregate(
                value=value,
                succeeded=count,
                failed=failed,
                coverage=tally.coverage(problem),
                sources=sources,
            )
            answered[group] = value is not None
    problem = None
    if not any(answered.values()):
        problem = f"no aggregate could be made: {_last_problem(errors, problems)}"
    _end(context, run_id, aggregates.items(), errors, problem=problem)


def _value(answer: str | None, *, is_json: bool) -> Any:
    return msgspec.json.decode(answer) if is_json and answer is not None else answer


def _error(group: str, outcome: Outcome) -> ReduceError:
    return ReduceError(
        group=group,
        kind=outcome.kind or ErrorKind.INTERNAL,
        message=outcome.message or "",
        attempts=outcome.attempts,
    )


def _last_problem(errors: list[ReduceError], problems: list[str]) -> str:
    if problems:
        return problems[-1]
    last = errors[-1]
    return f"{last.kind.value}: {last.message} (after {last.attempts} attempts)"
