"""What compared outputs are answers to, as a judge sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import FanoutError
from fanout.inputs.prompt_layout import branch_values
from fanout.inputs.retrieval_prompts import has_context
from fanout.retrieval.context import context_of, named

if TYPE_CHECKING:
    from fanout.core.records import Chunk, Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["Tasks"]

# Bytes of passages: the room of a comparison is shared with the answers, and cuts what is longer.
_ROOM = 1_000_000


class Tasks:
    """Renders the prompts that outputs answer.

    Args:
        context: The context of this worker process.
        run_id: The run.
        spec: Its job.
        reduce: The reduce that compares.
    """

    def __init__(self, context: WorkerContext, run_id: str, spec: RunSpec, reduce: Reduce) -> None:
        self._context = context
        self._run_id = run_id
        self._spec = spec
        self._is_fenced = spec.is_fenced(reduce.model)
        self._last: tuple[str, str] = "", ""

    def of(self, chunk: Chunk, outcome: Outcome) -> str:
        """Return what both outputs are answers to: their prompt, or the chunk if these differ."""
        spec, runs = self._spec, self._context.runs
        ref = spec.variants.ref(outcome.index)
        if spec.steps or len(spec.variants.models) * spec.variants.samples == 1:
            return chunk.text
        template = runs.template(self._run_id, ref.aspect)
        values = branch_values(chunk, ref, ref.sample, chunk.around)
        if has_context(template):
            query = runs.query(self._run_id)
            if query is not None:
                values["context"] = self._passages(query.render(values, chunk.columns), outcome)
        return template.render(values, chunk.columns, is_fenced=self._is_fenced)

    def _passages(self, query: str, outcome: Outcome) -> str:
        """Return the passages for a query. Those of a function are not looked for again: they are named."""
        retrieval, context = self._spec.retrieval(), self._context
        if retrieval is None or retrieval.is_function:
            return named(outcome.passages)
        # The comparisons of a chunk follow each other.
        if self._last[0] != query:
            search = context.passages.search(self._run_id, retrieval.source, query, retrieval.top_k)
            try:
                found = context_of(context.loop.wait_for(search), _ROOM, is_fenced=self._is_fenced)
            except FanoutError:
                return named(outcome.passages)
            self._last = query, found.text
        return self._last[1]
