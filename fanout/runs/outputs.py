"""The outputs of a run: its branches with their place in the input and their outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN, EMPTY
from fanout.policy.packing import shard_chunk
from fanout.runs.results import Output

if TYPE_CHECKING:
    from fanout.core.records import Chunk, Outcome, Shard
    from fanout.core.spec import RunSpec

__all__ = ["output_of"]


def output_of(spec: RunSpec, shard: Shard, outcome: Outcome, *, with_text: bool) -> Output:
    """Return the branch of an outcome, with its chunk's text if that is wanted, or is a cell of a row."""
    variants = spec.variants
    ref = variants.ref(outcome.index)
    chunk = shard_chunk(shard, outcome.index, variants.count)
    return Output(
        index=outcome.index,
        document=chunk.document,
        document_index=chunk.document_index,
        chunk=ref.chunk,
        position=chunk.position,
        start=chunk.start,
        end=chunk.end,
        aspect=ref.aspect,
        model=outcome.model or ref.model,
        sample=ref.sample,
        output=outcome.output,
        kind=outcome.kind,
        message=outcome.message,
        attempts=outcome.attempts,
        usage=outcome.usage,
        elapsed_s=outcome.elapsed_s,
        ended_at=outcome.ended_at,
        finish_reason=outcome.finish_reason,
        confidence=outcome.confidence,
        votes=outcome.votes,
        samples=outcome.samples,
        usage_of=outcome.usage_of,
        columns=chunk.columns,
        text_at=chunk.text_at,
        text_column=_text_column(spec, chunk),
        pages=chunk.pages,
        headings=chunk.headings,
        text=_text(chunk, with_text=with_text),
    )


def _text(chunk: Chunk, *, with_text: bool) -> str | None:
    """Return the text of a chunk; None where a row has none, or if nobody wants it."""
    if chunk.text_at is None:
        return chunk.text if with_text else None
    return chunk.text if chunk.error in {None, EMPTY} else None


def _text_column(spec: RunSpec, chunk: Chunk) -> str | None:
    """Return the name of the column that has the text of a row."""
    if chunk.text_at is None:
        return None
    return chunk.text_column or spec.text_column or DEFAULT_TEXT_COLUMN
