"""Splitters: how a document becomes chunks."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from fanout.core.errors import SpecError
from fanout.core.parts import Layout
from fanout.core.records import Chunk
from fanout.inputs.documents.rows import EMPTY
from fanout.inputs.token_counters import TokenCounter, make_counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.records import Document
    from fanout.core.spec import RunSpec

__all__ = ["Splitter", "make_splitter", "split_documents", "splitter_of"]

# Yields start and end (in characters, end excluded) of each chunk of a text, in order.
Splitter = Callable[[str], Iterator[tuple[int, int]]]

# The exception of a panic in Rust code, which is not a subclass of Exception.
_PANIC = "PanicException"

# Latin and CJK full stops with the closing quotes and brackets after them; blank lines.
# The lookbehind makes the search visit a series of full stops only once, from its beginning.
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]]*+(?=\s|$)"
    r"|[\u3002\uff01\uff1f]++[\u300d\u300f\u201d\u2019\uff09]*+"
    r"|\n[^\S\n]*+\n\s*+"
)


def splitter_of(spec: RunSpec) -> Splitter:
    """Return the splitter of a job. Raises SpecError as ``make_counter`` does."""
    return make_splitter(
        spec.split,
        chunk_tokens=spec.chunk_tokens,
        chunk_overlap_tokens=spec.chunk_overlap_tokens,
        count=make_counter(spec.tokenizer, model=spec.model),
    )


def make_splitter(
    name: str,
    *,
    chunk_tokens: int,
    chunk_overlap_tokens: int = 0,
    count: TokenCounter | None = None,
) -> Splitter:
    """Return the splitter with a name.

    Args:
        name: ``none``: the whole text; ``lines``: each line that is not blank; ``sentences``: as
            many whole sentences as fit, and a longer sentence as ``tokens``; ``tokens``: cut at the
            largest boundary that fits (paragraph, line, sentence, word, character); ``markdown``:
            as ``tokens``, and headings, lists, tables and code blocks are boundaries, too; so ``model`` cuts
            what a model has not split.
        chunk_tokens: The largest chunk, in tokens; not for ``none`` and ``lines``.
        chunk_overlap_tokens: The overlap of neighbouring chunks, in tokens.
        count: Counts tokens; None takes a quarter of the bytes.

    Raises:
        SpecError: The splitter cannot overlap.
    """
    sizes = _Sizes(count or TokenCounter(), chunk_tokens, chunk_overlap_tokens)
    if name == "tokens":
        return partial(_token_spans, sizes)
    if name in ("markdown", "model"):
        return partial(_token_spans, sizes, kind="MarkdownSplitter")
    if name == "sentences":
        return partial(_sentence_spans, sizes)
    if chunk_overlap_tokens:
        raise SpecError(f"split {name!r} has no overlap", field="chunk_overlap_tokens")
    return _line_spans if name == "lines" else _whole_span


def split_documents(documents: Iterable[Document], splitter: Splitter) -> Iterator[Chunk]:
    """Yield the chunks of documents, lazily.

    A document that cannot be used, or that yields no chunk, becomes one chunk with an error.
    """
    for document in documents:
        chunk = None
        for position, (start, end) in enumerate(_spans(document, splitter)):
            chunk = Chunk(
                text=document.text[start:end],
                document=document.name,
                document_index=document.index,
                position=position,
                start=start,
                end=end,
                columns=document.columns,
                text_at=document.text_at,
                text_column=document.text_column,
                pages=_pages(document.pages, start, end)
                if document.pages
                else document.page_numbers,
                headings=_heading(document.headings, start) if document.headings else "",
                number=document.number,
                around=document.around,
            )
            # Not above: Python calls with more than 15 keywords take three times as long.
            if document.parts is not None or document.keeps_layout:
                chunk = _for_model(chunk, document)
            yield chunk
        if chunk is not None:
            continue
        error = document.error or EMPTY
        yield Chunk(
            # White space is kept for the row that comes out.
            text="" if document.text_at is None else document.text,
            document=document.name,
            document_index=document.index,
            columns=document.columns,
            text_at=document.text_at,
            text_column=document.text_column,
            error=error,
        )


def _spans(document: Document, splitter: Splitter) -> Iterable[tuple[int, int]]:
    """Return start and end of what becomes the chunks of a document."""
    if document.error is not None:
        return ()
    if document.parts is not None:
        return [(part.start, part.end) for part in document.parts]
    return splitter(document.text)


def _for_model(chunk: Chunk, document: Document) -> Chunk:
    """Return a chunk of a document that a model has split, or is to split, with what it needs for that."""
    if document.parts is not None:
        part = document.parts[chunk.position]
        chunk = structs.replace(chunk, title=part.title, subtask=part.subtask)
    if document.keeps_layout and not chunk.position:
        layout = Layout(
            pages=document.pages, page_numbers=document.page_numbers, headings=document.headings
        )
        chunk = structs.replace(chunk, layout=layout)
    return chunk


def _pages(starts: list[int], start: int, end: int) -> list[int]:
    """Return the numbers of the pages that a piece of a text is on, from 1 on."""
    first = max(1, bisect_right(starts, start))
    return list(range(first, max(first, bisect_right(starts, max(start, end - 1))) + 1))


def _heading(headings: list[tuple[int, str]], start: int) -> str:
    """Return the path of headings at an offset."""
    at = bisect_right(headings, start, key=lambda one: one[0])
    return headings[at - 1][1] if at else ""


def _whole_span(text: str) -> Iterator[tuple[int, int]]:
    yield 0, len(text)


def _line_spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.splitlines(keepends=True):
        bare = line.rstrip()
        if bare:
            yield start, start + len(bare)
        start += len(line)


class _Sizes(NamedTuple):
    """The largest chunk and the overlap in tokens, and what counts these."""

    count: TokenCounter
    chunk_tokens: int
    overlap_tokens: int


def _token_spans(
    sizes: _Sizes, text: str, *, kind: str = "TextSplitter"
) -> Iterator[tuple[int, int]]:
    try:
        chunks = _library_splitter(kind, sizes, text).chunk_indices(text)
    except BaseException as error:
        # The library panics on some documents (0.33: Markdown with an overlap, after a letter of
        # two bytes), which would end the program: split these as plain text.
        if type(error).__name__ != _PANIC:
            raise
        plain = sizes._replace(overlap_tokens=0)
        chunks = _library_splitter("TextSplitter", plain, text).chunk_indices(text)
    for start, chunk in chunks:
        yield start, start + len(chunk)


def _library_splitter(kind: str, sizes: _Sizes, text: str) -> Any:
    import semantic_text_splitter

    made: Any = getattr(semantic_text_splitter, kind)
    per_token = sizes.count.bytes_per_token
    if text.isascii() and per_token is not None:
        # For ASCII, bytes are characters, and the library can count them itself.
        most = max(1, int(sizes.chunk_tokens * per_token))
        overlap = min(most - 1, int(sizes.overlap_tokens * per_token))
        return made(most, overlap=overlap)
    return made.from_callback(sizes.count, sizes.chunk_tokens, overlap=sizes.overlap_tokens)


class _Sentence(NamedTuple):
    """The position of a sentence, in characters and in units of what counts tokens.

    With both, the size of a series of sentences follows without reading its text again, and the
    time for a document is linear in its length.
    """

    start: int
    end: int
    first_unit: int
    last_unit: int


def _sentence_spans(sizes: _Sizes, text: str) -> Iterator[tuple[int, int]]:
    count = sizes.count
    pending: list[_Sentence] = []
    for sentence in _sentences(text, count):
        if pending and _tokens(count, pending[0], sentence) > sizes.chunk_tokens:
            yield pending[0].start, pending[-1].end
            pending = _overlap(pending, sentence, sizes)
        if _tokens(count, sentence, sentence) > sizes.chunk_tokens:
            long = text[sentence.start : sentence.end]
            for first, last in _token_spans(sizes, long):
                yield sentence.start + first, sentence.start + last
        else:
            pending.append(sentence)
    if pending:
        yield pending[0].start, pending[-1].end


def _tokens(count: TokenCounter, first: _Sentence, last: _Sentence) -> int:
    """Return the tokens from the beginning of a sentence to the end of another one."""
    return count.tokens_of(last.last_unit - first.first_unit)


def _overlap(before: list[_Sentence], following: _Sentence, sizes: _Sizes) -> list[_Sentence]:
    """Return the last sentences of ``before`` that the next chunk repeats."""
    count, first = sizes.count, len(before)
    while first > 1:
        earlier = before[first - 1]
        is_shared = _tokens(count, earlier, before[-1]) <= sizes.overlap_tokens
        if not is_shared or _tokens(count, earlier, following) > sizes.chunk_tokens:
            break
        first -= 1
    return before[first:]


def _sentences(text: str, count: TokenCounter) -> Iterator[_Sentence]:
    """Yield the sentences, without the white space around them."""
    at = at_unit = 0
    for start, end in _pieces(text):
        first_unit = at_unit + count.units(text[at:start])
        at, at_unit = end, first_unit + count.units(text[start:end])
        yield _Sentence(start, end, first_unit, at_unit)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        yield from _trimmed(text, start, match.end())
        start = match.end()
    yield from _trimmed(text, start, len(text))


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    right = len(piece.rstrip())
    if left < right:
        yield start + left, start + right
