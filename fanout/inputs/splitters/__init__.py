"""Splitters: how a document becomes chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import SpecError
from fanout.core.records import Chunk
from fanout.inputs.splitters.base import Splitter
from fanout.inputs.splitters.semantic import MarkdownSplitter, SentenceSplitter, TokenSplitter
from fanout.inputs.splitters.whole import LineSplitter, WholeSplitter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Document

__all__ = [
    "LineSplitter",
    "MarkdownSplitter",
    "SentenceSplitter",
    "Splitter",
    "TokenSplitter",
    "WholeSplitter",
    "make_splitter",
    "split_documents",
]

_SIZED: dict[str, type[TokenSplitter | MarkdownSplitter | SentenceSplitter]] = {
    "tokens": TokenSplitter,
    "markdown": MarkdownSplitter,
    "sentences": SentenceSplitter,
}


def make_splitter(name: str, *, chunk_tokens: int, chunk_overlap_tokens: int = 0) -> Splitter:
    """Return the splitter with a name.

    Args:
        name: ``none``, ``lines``, ``tokens``, ``markdown`` or ``sentences``.
        chunk_tokens: The largest chunk, in estimated tokens; not for ``none`` and ``lines``.
        chunk_overlap_tokens: The overlap of neighbouring chunks, in estimated tokens.

    Raises:
        SpecError: The splitter cannot overlap.
    """
    if name in _SIZED:
        return _SIZED[name](chunk_tokens, chunk_overlap_tokens)
    if chunk_overlap_tokens:
        raise SpecError(f"split {name!r} has no overlap", field="chunk_overlap_tokens")
    return LineSplitter() if name == "lines" else WholeSplitter()


def split_documents(documents: Iterable[Document], splitter: Splitter) -> Iterator[Chunk]:
    """Yield the chunks of documents, lazily.

    A document that cannot be used, or that yields no chunk, becomes one chunk with an error.
    """
    for document in documents:
        spans = splitter.spans(document.text) if document.error is None else iter(())
        chunk = None
        for position, (start, end) in enumerate(spans):
            chunk = _chunk(document, position, start, end)
            yield chunk
        if chunk is not None:
            continue
        error = document.error or "the document is empty"
        yield Chunk(text="", document=document.name, document_index=document.index, error=error)


def _chunk(document: Document, position: int, start: int, end: int) -> Chunk:
    return Chunk(
        text=document.text[start:end],
        document=document.name,
        document_index=document.index,
        position=position,
        start=start,
        end=end,
        columns=document.columns,
    )
