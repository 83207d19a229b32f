"""The reduces ``best`` and ``pairwise``: a model compares outputs by two, in stages after the map.

Each comparison is two calls, as a model may prefer the answer that it sees first: one with each answer
first. Where they disagree, it is a tie. A stage is a round: its comparisons do not depend on each other.
Nothing but the stages holds what was found: each round is played again from their verdicts.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators import Aggregate, GroupedRecords, Streamed, row_place
from fanout.core.ids import StageId
from fanout.core.records import Chunk
from fanout.core.tokens import BYTES_PER_TOKEN
from fanout.core.units import plural
from fanout.inputs.comparison_prompts import (
    comparison_frame,
    comparison_prompt,
    comparison_room,
    fitted,
    winner_of,
)
from fanout.policy.steps import output_step
from fanout.policy.tournaments import Knockout, Ranking
from fanout.runs.token_counts import comparison_tokens, packing_ratio
from fanout.system.external_sort import Scratch
from workers.reduce.compared_tasks import Tasks
from workers.reduce.coverage import with_coverage
from workers.reduce.entrants import Entrants
from workers.reduce.items import item_of
from workers.reduce.made import FirstFailedCalls, Made
from workers.reduce.writing import StageWriter, write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fanout.core.records import Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.policy.tournaments import Pair
    from fanout.runs.status import ReduceError
    from workers.context.worker_context import WorkerContext
    from workers.reduce.entrants import Group

__all__ = ["compare"]

_CALLS = 2  # of each comparison


def _as_ties(count: int) -> str:
    return "counts as a tie" if count == 1 else "count as ties"


class _Tally(msgspec.Struct):
    """What has become of the comparisons so far."""

    calls: FirstFailedCalls
    comparisons: int = 0
    failed: int = 0
    by_position: int = 0

    @property
    def errors(self) -> list[ReduceError]:
        """The first calls that failed."""
        return self.calls.errors

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate, or None.

        Without a budget for them, comparisons would be ties by the order in which they are made; a retry
        with a larger budget makes them all.
        """
        if not self.errors:
            return None
        why = self.calls.why
        if self.calls.over_budget:
            calls = plural(self.calls.over_budget, "call that compares", "calls that compare")
            return f"no aggregate could be made: {calls} answers did not fit: {why}"
        return f"no comparison could be made: {why}" if self.failed == self.comparisons else None

    @property
    def notes(self) -> list[str]:
        """What a reader must know of them."""
        all_of_them = plural(self.comparisons, "comparison", "comparisons")
        found = []
        if self.failed:
            found.append(f"{self.failed:,} of {all_of_them} failed, and {_as_ties(self.failed)}")
        if self.by_position:
            found.append(
                f"{self.by_position:,} of {all_of_them} {_as_ties(self.by_position)}, as the judge's choice "
                "changed with the order of the two answers"
            )
        return found


def compare(
    context: WorkerContext,
    run: RunRecord,
    stage_id: StageId,
    spec: RunSpec,
    reduce: Reduce,
) -> Made | None:
    """Write the next comparisons, and return None; or return how the reduce ends.

    Also None if the run was stopped before all comparisons of a round were written.

    Args:
        context: The worker's process.
        run: The run.
        stage_id: The stage that has ended: the map, or a round.
        spec: The job.
        reduce: The reduce.

    Raises:
        SpecError: No answers fit the window of the judge.
    """
    entrants = Entrants(context, run.run_id, spec, reduce)
    tournament = _tournament(entrants, spec, reduce)
    tally, store = _Tally(FirstFailedCalls(reduce.name)), context.connections.store
    stage, last = run.base_stage, max(run.base_stage, stage_id.stage)
    while pairs := tournament.pairs():
        passes = entrants.passes(pairs)
        stage += 1
        round_id = StageId(run.run_id, stage)
        if stage > last or not store.shards_of(round_id, reduce=reduce.name):
            # Other reduces may have gone on without one whose comparisons do not fit.
            _write(context, spec, reduce, entrants, pairs, passes, round_id)
            return None
        order = [at for one in passes for at in one]
        verdicts = _verdicts(context, round_id, reduce, order, tally)
        if verdicts is None:
            return None
        tournament.settle(verdicts)
        if tally.problem is not None:
            return Made((), tally.errors, tally.problem)
    made: Iterable[tuple[str, Streamed]]
    if isinstance(tournament, Knockout):
        made = [("", _best(entrants, tournament, spec, reduce, tally))]
    else:
        made = _ranked(entrants, tournament, spec, reduce, tally)
    return with_coverage(spec, made, entrants.behind)._replace(errors=tally.errors)


def _tournament(entrants: Entrants, spec: RunSpec, reduce: Reduce) -> Knockout | Ranking:
    items = [group.items for group in entrants.groups]
    if reduce.kind == "best":
        return Knockout(items)
    return Ranking(items, seed=spec.seed or 0, k=reduce.k, copies=entrants.weights)


def _write(
    context: WorkerContext,
    spec: RunSpec,
    reduce: Reduce,
    entrants: Entrants,
    pairs: list[Pair],
    passes: list[list[int]],
    round_id: StageId,
) -> None:
    first = (outcome.output or "" for _, outcome in entrants.read(pairs[0]))
    run_id = round_id.run_id
    ratio = packing_ratio(context.connections.store, run_id, spec, reduce, first)
    prompts = _Prompts(context, run_id, spec, reduce, ratio)

    def chunks(since: int) -> Iterator[Chunk]:
        return islice(_chunks(reduce, entrants, pairs, passes, prompts), since, None)

    write_all(StageWriter(context, round_id, reduce), chunks)


def _chunks(
    reduce: Reduce,
    entrants: Entrants,
    pairs: list[Pair],
    passes: list[list[int]],
    prompts: _Prompts,
) -> Iterator[Chunk]:
    """Yield the two prompts of each pair, in the order of the passes."""
    number = 0
    for positions in passes:
        others = {
            outcome.index: outcome.output or ""
            for _, outcome in entrants.read(pairs[at].other for at in positions)
        }
        ones = entrants.read(pairs[at].one for at in positions)
        chunk, outcome = next(ones)
        for at in positions:
            one, other = pairs[at]
            while outcome.index != one:
                chunk, outcome = next(ones)
            for text in prompts.of(chunk, outcome, others[other]):
                yield Chunk(
                    text=text,
                    document=chunk.document,
                    document_index=chunk.document_index,
                    position=number,
                    columns={"one": one, "other": other, **reduce.columns},
                )
                number += 1


class _Prompts:
    """Renders the prompts of comparisons; what does not fit the judge's window is cut.

    Raises:
        SpecError: No answers fit it.
    """

    def __init__(
        self,
        context: WorkerContext,
        run_id: str,
        spec: RunSpec,
        reduce: Reduce,
        bytes_per_token: float,
    ) -> None:
        self._criteria = reduce.criteria
        self._tasks = Tasks(context, run_id, spec, reduce)
        self._is_fenced = spec.is_fenced(reduce.model)
        self._has_task = reduce.kind == "best"
        window, answer = comparison_tokens(spec, reduce)
        frame = comparison_frame(reduce.criteria, has_task=self._has_task)
        room = comparison_room(
            context_tokens=window,
            frame_tokens=int(len(frame.encode()) / bytes_per_token) + 1,
            answer_tokens=answer,
        )
        self._room = int(room * bytes_per_token / BYTES_PER_TOKEN)

    def of(self, chunk: Chunk, first: Outcome, second: str) -> tuple[str, str]:
        """Return the prompts of two outputs of a chunk, and of other chunks where there is no task."""
        texts = [(first.output or "").strip(), second.strip()]
        if self._has_task:
            texts.append(self._tasks.of(chunk, first))
        one, other, *tasks = fitted(texts, self._room)
        task = tasks[0] if tasks else None
        criteria = self._criteria
        return (
            comparison_prompt(criteria, task, one, other, is_fenced=self._is_fenced),
            comparison_prompt(criteria, task, other, one, is_fenced=self._is_fenced),
        )


def _verdicts(
    context: WorkerContext, round_id: StageId, reduce: Reduce, order: list[int], tally: _Tally
) -> list[int] | None:
    """Return the verdicts of a round, in the order of its pairs; None if calls of it were not written.

    Args:
        context: The worker's process.
        round_id: The stage.
        reduce: The reduce.
        order: The position of each comparison of the stage in the pairs of the round.
        tally: Gets what has become of them.
    """
    calls: list[int | None] = [None] * (_CALLS * len(order))
    store, done = context.connections.store, 0
    for shard_id in map(round_id.shard, store.shards_of(round_id, reduce=reduce.name)):
        count = len(store.indices(shard_id))
        for position, outcome in store.outcomes(shard_id).items():
            calls[done + position] = _verdict(outcome, tally)
        done += count
    if done < len(calls):
        return None
    verdicts = [0] * len(order)
    for number, position in enumerate(order):
        as_first, as_second = calls[_CALLS * number : _CALLS * (number + 1)]
        tally.comparisons += 1
        if as_first is None or as_second is None:
            tally.failed += 1
        elif as_first == -as_second:
            verdicts[position] = as_first
        else:
            tally.by_position += 1
    return verdicts


def _verdict(outcome: Outcome, tally: _Tally) -> int | None:
    if outcome.output is not None:
        return winner_of(outcome.output)
    tally.calls.add(outcome)
    return None


def _best(
    entrants: Entrants, knockout: Knockout, spec: RunSpec, reduce: Reduce, tally: _Tally
) -> Streamed:
    best = dict(zip([group.name for group in entrants.groups], knockout.best(), strict=True))
    found = {name: index for name, index in best.items() if index is not None}
    without = sum(not group.succeeded for group in entrants.groups)
    notes = tally.notes
    if without:
        notes.append(f"{plural(without, 'chunk has', 'chunks have')} no answer, and no best one")
    end = partial(
        Aggregate,
        value=None,
        succeeded=sum(group.succeeded for group in entrants.groups),
        failed=sum(group.failed for group in entrants.groups),
        notes=notes,
    )

    def chunks() -> Iterator[bytes]:
        places = {index: (0, at) for at, index in enumerate(found.values())}
        rows = _rows(entrants, spec, reduce, places).taken(0)
        mark = b"{"
        for (name, index), (_, (row,)) in zip(found.items(), rows, strict=True):
            counts = {"wins": knockout.wins(index), "comparisons": knockout.comparisons(index)}
            yield mark + msgspec.json.encode(name) + b":" + _row(counts, row)
            mark = b","
        yield b"}" if found else b"{}"

    return Streamed(form="json", chunks=chunks(), end=end)


def _ranked(
    entrants: Entrants, ranking: Ranking, spec: RunSpec, reduce: Reduce, tally: _Tally
) -> Iterator[tuple[str, Streamed]]:
    ranks = [
        sorted(
            (rank, copy) for rank, one in ranked for copy in (one, *entrants.copies.get(one, ()))
        )
        for ranked in ranking.ranked()
    ]
    kept = [some[: reduce.k] for some in ranks]
    places = {one: (at, rank, one) for at, some in enumerate(kept) for rank, one in some}
    rows = _rows(entrants, spec, reduce, places)
    of_all = tally.notes
    for at, (group, some, all_of_them) in enumerate(zip(entrants.groups, kept, ranks, strict=True)):
        end = partial(
            Aggregate,
            value=None,
            succeeded=group.succeeded,
            failed=group.failed,
            notes=[*_left_out(group), *_cut_ties(some, all_of_them), *of_all],
        )
        of_all = []
        chunks = (_row({"rank": rank}, row) + b"\n" for (rank, _), (row,) in rows.taken(at))
        yield group.name, Streamed(form="rows", chunks=chunks, end=end)


def _left_out(group: Group) -> list[str]:
    return [] if group.missing is None else group.missing.notes("failed and left out")


def _cut_ties(kept: list[tuple[int, int]], ranks: list[tuple[int, int]]) -> list[str]:
    if len(kept) == len(ranks):
        return []
    last = kept[-1][0]
    count = sum(rank == last for rank, _ in ranks)
    shown = sum(rank == last for rank, _ in kept)
    which = "the first in the input is" if shown == 1 else f"the first {shown:,} in the input are"
    return [f"{count:,} answers share rank {last:,}: {which} kept, and {count - shown:,} left out"]


def _rows(
    entrants: Entrants, spec: RunSpec, reduce: Reduce, places: Mapping[int, tuple[int, ...]]
) -> GroupedRecords:
    """Return the rows of outputs as JSON, by group and place.

    Args:
        entrants: The outputs.
        spec: The job.
        reduce: The reduce.
        places: By index, the number of the group, and the place there.
    """
    rows = GroupedRecords(Scratch())
    for chunk, outcome in entrants.read(places):
        output: Any = outcome.output or ""
        step = output_step(spec, outcome.steps) if spec.steps else None
        is_json = spec.schema is not None if step is None else step.is_json
        if is_json:
            output = msgspec.json.decode(output)
        row = {**dict(row_place(item_of(spec, reduce, chunk, outcome))), "output": output}
        group, *place = places[outcome.index]
        rows.add(group, tuple(place), (msgspec.json.encode(row),))
    return rows


def _row(fields: Mapping[str, int], row: bytes) -> bytes:
    """Return the JSON of a row with further fields before its own."""
    return msgspec.json.encode(fields)[:-1] + b"," + row[1:]
