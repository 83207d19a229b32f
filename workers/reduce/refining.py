"""The fold ``refine``: one call after the other, each of which revises the answer of those before it.

The calls are the shards of one stage, with one branch each. When one has ended, and the branches that follow
in the order of the input have, too, the next is written; so the calls begin while the map goes on. Who writes
a call first writes with it how far the branches are taken, in one step, and its chunk has all that the call
begins with. Any process goes on from there. Once the map has ended, and no answer is left, the stage is
sealed.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol

from fanout.aggregators.refine import Chain, next_step, step_columns, step_input
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import Chunk, RunStatus
from fanout.core.state import Frontier
from fanout.runs.token_counts import packing_ratio, reduce_room
from workers.reduce.items import ended_branches, reduce_branches
from workers.reduce.writing import SHOWN_PARTS, StageWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.aggregators import Part
    from fanout.core.records import Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from workers.context.worker_context import WorkerContext

__all__ = ["RefineCalls", "refined"]


class PartReader(Protocol):
    """Reads the branches of the map as parts."""

    def __call__(self, begins: Frontier, *, is_complete: bool) -> Iterator[tuple[Frontier, Part]]:
        """Yield those that follow a frontier, up to the first shard that has not ended."""


class RefineCalls:
    """The calls of a run that refine its aggregate.

    Args:
        context: The worker's process.
        run: The run.
        spec: Its job.
        reduce: Its reduce.
        parts: Reads the branches of the map.
    """

    def __init__(
        self,
        context: WorkerContext,
        run: RunRecord,
        spec: RunSpec,
        reduce: Reduce,
        parts: PartReader,
    ) -> None:
        self._context = context
        self._store = context.connections.store
        self._publisher = context.connections.publisher
        self._run_id = run.run_id
        self._spec = spec
        self._reduce = reduce
        self._parts = parts
        self._target = StageId(run.run_id, run.base_stage + 1)
        self._writer = StageWriter(context, self._target, reduce)

    def follow(self, run: RunRecord) -> None:
        """Publish the next call, if all that it needs has ended."""
        is_complete = run.stage >= self._target.stage
        if run.halt is not None:
            if is_complete:
                self._stop()
            return
        try:
            is_done = self._advance(is_complete=is_complete)
        except SpecError:
            # What the job cannot do is reported once all branches have ended.
            is_done = is_complete
        if is_done:
            # The other reduces have written what they have; the stage may be sealed.
            self._publisher.aggregate(StageId(self._run_id, 0))

    def finish(self) -> bool:
        """Publish what is left to call, as the map has ended; return whether the calls have ended, too.

        Raises:
            SpecError: The job leaves no room for answers.
        """
        self._store.set_status(self._run_id, RunStatus.REDUCING, stage=self._target.stage)
        return self._advance(is_complete=True)

    def require_all(self) -> None:
        """Check that no answers are left, once the stage is sealed.

        Raises:
            SpecError: The job leaves no room for them.
        """
        self._advance(is_complete=True)

    def _advance(self, *, is_complete: bool) -> bool:
        """Write and publish the next call, if it is known; return whether none is left."""
        begins = self._writer.begin()
        number = begins.branches
        so_far = self._so_far(number)
        is_done = False
        if so_far is not None:
            places = self._parts(begins, is_complete=is_complete)
            head = list(islice(places, SHOWN_PARTS))
            if not head:
                is_done = is_complete
            elif number or is_complete or len(head) == SHOWN_PARTS:
                is_done = not self._write(number, so_far, head, places, is_complete=is_complete)
        # Also of a call that another process has written, and died.
        self._writer.open()
        return is_done and is_complete

    def _so_far(self, number: int) -> Chain | None:
        """Return what so many calls have come to; None if the last of them has not ended."""
        if not number:
            return Chain()
        own = self._store.shards_of(self._target, reduce=self._reduce.name)
        if len(own) < number:
            # A retry has discarded the stage since.
            return None
        found = ended_branches(self._context, self._target.shard(own[number - 1]))
        if not found:
            return None
        _, chunk, outcome = found[-1]
        return _after(self._reduce, chunk, outcome)

    def _write(
        self,
        number: int,
        so_far: Chain,
        head: list[tuple[Frontier, Part]],
        rest: Iterator[tuple[Frontier, Part]],
        *,
        is_complete: bool,
    ) -> bool:
        """Write the next call, if it is known which answers it has; return whether there is one."""
        ratio = packing_ratio(
            self._store, self._run_id, self._spec, self._reduce, (part.text for _, part in head)
        )
        room = reduce_room(self._spec, self._reduce, ratio)
        taken: list[Frontier] = []

        def parts() -> Iterator[Part]:
            for place, part in chain(head, rest):
                taken.append(place)
                yield part

        # A part of some JSON would be no answer.
        most = self._reduce.max_tokens if self._reduce.schema is None else None
        step = next_step(
            parts(),
            so_far,
            room_tokens=room,
            bytes_per_token=ratio,
            is_complete=is_complete,
            most_tokens=most,
        )
        if step is None:
            return not is_complete
        last = taken[step.taken - 1]
        text, places = step_input(
            so_far,
            step,
            room_tokens=room,
            bytes_per_token=ratio,
            cites=self._spec.sources,
            most_tokens=most,
        )
        chunk = Chunk(
            text=text,
            document="",
            document_index=0,
            position=number,
            columns={**step_columns(so_far, step), **places, **self._reduce.columns},
        )
        frontier = Frontier(shard=last.shard, position=last.position + 1, branches=number + 1)
        self._writer.write([chunk], lambda _count: frontier)
        if is_complete and self._store.run(self._run_id).halt is not None:
            self._stop()
        return True

    def _stop(self) -> None:
        """Let the stage end as it is, as the run was stopped."""
        sealed = self._store.seal_stage(self._target)
        self._publisher.seal(self._target, shards=sealed.shards)


def _after(reduce: Reduce, chunk: Chunk, outcome: Outcome) -> Chain:
    return Chain.after(chunk.columns, outcome, is_json=reduce.schema is not None)


def refined(context: WorkerContext, run: RunRecord, reduce: Reduce) -> tuple[Chain, list[Outcome]]:
    """Return what the calls of a run have come to, and the outcomes of those that failed."""
    so_far, failed = Chain(), []
    for chunk, outcome in reduce_branches(context, StageId(run.run_id, run.base_stage + 1), reduce):
        so_far = _after(reduce, chunk, outcome)
        if outcome.kind is not None:
            failed.append(outcome)
    return so_far, failed
