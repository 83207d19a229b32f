"""Splitters: how a document becomes chunks."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.core.errors import SpecError
from fanout.core.records import Chunk
from fanout.core.tokens import BYTES_PER_TOKEN, estimate_tokens, tokens_of_bytes, utf8_bytes
from fanout.inputs.documents.rows import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.records import Document

__all__ = ["Splitter", "make_splitter", "split_documents"]

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


def make_splitter(name: str, *, chunk_tokens: int, chunk_overlap_tokens: int = 0) -> Splitter:
    """Return the splitter with a name.

    Args:
        name: ``none``: the whole text; ``lines``: each line that is not blank; ``sentences``: as
            many whole sentences as fit, and a longer sentence as ``tokens``; ``tokens``: cut at the
            largest boundary that fits (paragraph, line, sentence, word, character); ``markdown``:
            as ``tokens``, and headings, lists, tables and code blocks are boundaries, too.
        chunk_tokens: The largest chunk, in estimated tokens; not for ``none`` and ``lines``.
        chunk_overlap_tokens: The overlap of neighbouring chunks, in estimated tokens.

    Raises:
        SpecError: The splitter cannot overlap.
    """
    if name == "tokens":
        return partial(_token_spans, chunk_tokens, chunk_overlap_tokens)
    if name == "markdown":
        return partial(_token_spans, chunk_tokens, chunk_overlap_tokens, kind="MarkdownSplitter")
    if name == "sentences":
        return partial(_sentence_spans, chunk_tokens, chunk_overlap_tokens)
    if chunk_overlap_tokens:
        raise SpecError(f"split {name!r} has no overlap", field="chunk_overlap_tokens")
    return _line_spans if name == "lines" else _whole_span


def split_documents(documents: Iterable[Document], splitter: Splitter) -> Iterator[Chunk]:
    """Yield the chunks of documents, lazily.

    A document that cannot be used, or that yields no chunk, becomes one chunk with an error.
    """
    for document in documents:
        spans = splitter(document.text) if document.error is None else iter(())
        chunk = None
        for position, (start, end) in enumerate(spans):
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
            )
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


def _token_spans(
    chunk_tokens: int, overlap_tokens: int, text: str, *, kind: str = "TextSplitter"
) -> Iterator[tuple[int, int]]:
    try:
        chunks = _library_splitter(kind, chunk_tokens, overlap_tokens, text).chunk_indices(text)
    except BaseException as error:
        # The library panics on some documents (0.33: Markdown with an overlap, after a letter of
        # two bytes), which would end the program: split these as plain text.
        if type(error).__name__ != _PANIC:
            raise
        chunks = _library_splitter("TextSplitter", chunk_tokens, 0, text).chunk_indices(text)
    for start, chunk in chunks:
        yield start, start + len(chunk)


def _library_splitter(kind: str, chunk_tokens: int, overlap_tokens: int, text: str) -> Any:
    import semantic_text_splitter

    made: Any = getattr(semantic_text_splitter, kind)
    if text.isascii():
        # For ASCII, four characters are a token, and the library can count them itself.
        return made(chunk_tokens * BYTES_PER_TOKEN, overlap=overlap_tokens * BYTES_PER_TOKEN)
    return made.from_callback(estimate_tokens, chunk_tokens, overlap=overlap_tokens)


class _Sentence(NamedTuple):
    """The position of a sentence, in characters and in UTF-8 bytes.

    With both, the size of a series of sentences follows without reading its text again, and the
    time for a document is linear in its length.
    """

    start: int
    end: int
    first_byte: int
    last_byte: int

    def tokens_to(self, last: _Sentence) -> int:
        """Return the estimated tokens from here to the end of ``last``."""
        return tokens_of_bytes(last.last_byte - self.first_byte)


def _sentence_spans(chunk_tokens: int, overlap_tokens: int, text: str) -> Iterator[tuple[int, int]]:
    pending: list[_Sentence] = []
    for sentence in _sentences(text):
        if pending and pending[0].tokens_to(sentence) > chunk_tokens:
            yield pending[0].start, pending[-1].end
            pending = _overlap(pending, sentence, chunk_tokens, overlap_tokens)
        if sentence.tokens_to(sentence) > chunk_tokens:
            long = text[sentence.start : sentence.end]
            for first, last in _token_spans(chunk_tokens, overlap_tokens, long):
                yield sentence.start + first, sentence.start + last
        else:
            pending.append(sentence)
    if pending:
        yield pending[0].start, pending[-1].end


def _overlap(
    before: list[_Sentence], following: _Sentence, chunk_tokens: int, overlap_tokens: int
) -> list[_Sentence]:
    """Return the last sentences of ``before`` that the next chunk repeats."""
    first = len(before)
    while first > 1:
        earlier = before[first - 1]
        is_shared = earlier.tokens_to(before[-1]) <= overlap_tokens
        if not is_shared or earlier.tokens_to(following) > chunk_tokens:
            break
        first -= 1
    return before[first:]


def _sentences(text: str) -> Iterator[_Sentence]:
    """Yield the sentences, without the white space around them."""
    at = at_byte = 0
    for start, end in _pieces(text):
        first_byte = at_byte + utf8_bytes(text[at:start])
        at, at_byte = end, first_byte + utf8_bytes(text[start:end])
        yield _Sentence(start, end, first_byte, at_byte)


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
