"""Splitters at natural boundaries of a text, up to a size in estimated tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.core.tokens import BYTES_PER_TOKEN, estimate_tokens, tokens_of_bytes, utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MarkdownSplitter", "SentenceSplitter", "TokenSplitter"]

# The exception of a panic in Rust code, which is not a subclass of Exception.
_PANIC = "PanicException"

# Latin and CJK full stops with the closing quotes and brackets after them; blank lines.
# The lookbehind makes the search visit a series of full stops only once, from its beginning.
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]]*+(?=\s|$)"
    r"|[\u3002\uff01\uff1f]++[\u300d\u300f\u201d\u2019\uff09]*+"
    r"|\n[^\S\n]*+\n\s*+"
)


class TokenSplitter:
    """Chunks of up to ``chunk_tokens``, cut at the largest boundary that fits.

    Boundaries are paragraphs, lines, sentences, words and characters, in this order.
    """

    def __init__(self, chunk_tokens: int, overlap_tokens: int = 0) -> None:
        self._chunk_tokens = chunk_tokens
        self._overlap_tokens = overlap_tokens

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """See Splitter."""
        for start, chunk in self._chunks(text):
            yield start, start + len(chunk)

    def _chunks(self, text: str) -> list[tuple[int, str]]:
        try:
            chunks: list[tuple[int, str]] = self._splitter(text).chunk_indices(text)
        except BaseException as error:
            # The library panics on some documents (0.33: Markdown with an overlap, after a letter
            # of two bytes), which would end the program: split these as plain text.
            if type(error).__name__ != _PANIC:
                raise
            chunks = TokenSplitter(self._chunk_tokens)._splitter(text).chunk_indices(text)  # noqa: SLF001 - our own class
        return chunks

    def _splitter(self, text: str) -> Any:
        from semantic_text_splitter import TextSplitter

        return self._make(TextSplitter, text)

    def _make(self, kind: Any, text: str) -> Any:
        if text.isascii():
            # For ASCII, four characters are a token, and the library can count them itself.
            size, overlap = self._chunk_tokens * BYTES_PER_TOKEN, self._overlap_tokens * 4
            return kind(size, overlap=overlap)
        return kind.from_callback(estimate_tokens, self._chunk_tokens, overlap=self._overlap_tokens)


class MarkdownSplitter(TokenSplitter):
    """A token splitter for which headings, lists, tables and code blocks are boundaries, too."""

    def _splitter(self, text: str) -> Any:
        from semantic_text_splitter import MarkdownSplitter as Markdown

        return self._make(Markdown, text)


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


class SentenceSplitter:
    """Chunks of as many whole sentences as fit; a longer sentence is split by tokens."""

    def __init__(self, chunk_tokens: int, overlap_tokens: int = 0) -> None:
        self._chunk_tokens = chunk_tokens
        self._overlap_tokens = overlap_tokens
        self._long = TokenSplitter(chunk_tokens, overlap_tokens)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """See Splitter."""
        pending: list[_Sentence] = []
        for sentence in _sentences(text):
            if pending and pending[0].tokens_to(sentence) > self._chunk_tokens:
                yield pending[0].start, pending[-1].end
                pending = self._overlap(pending, sentence)
            if sentence.tokens_to(sentence) > self._chunk_tokens:
                yield from self._cut(text, sentence.start, sentence.end)
            else:
                pending.append(sentence)
        if pending:
            yield pending[0].start, pending[-1].end

    def _cut(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last in self._long.spans(text[start:end]):
            yield start + first, start + last

    def _overlap(self, before: list[_Sentence], following: _Sentence) -> list[_Sentence]:
        """Return the last sentences of ``before`` that the next chunk repeats."""
        first = len(before)
        while first > 1:
            earlier = before[first - 1]
            is_shared = earlier.tokens_to(before[-1]) <= self._overlap_tokens
            if not is_shared or earlier.tokens_to(following) > self._chunk_tokens:
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
