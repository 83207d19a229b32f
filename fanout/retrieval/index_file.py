"""The file of an index: passages and their BM25 scores, which processes map into memory.

It has sections: the passages as JSON and where each begins, and the scores of each word as bm25s computes
them. A word is known by its hash. At the end stands where the sections are. So a process that searches
reads only the pages that it needs, and all processes of a machine share them.
"""

from __future__ import annotations

import mmap
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LostDataError
from fanout.retrieval.extra import bm25_module, numpy_module
from fanout.retrieval.passages import Passage
from fanout.retrieval.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["FORMAT", "PassageIndex", "Sections", "StoredPassage", "word_hash"]

# Changes with what is in a file: another version builds its own.
FORMAT = b"fanout passages 2\n"
_END = struct.Struct("<Q8s")
_MARK = b"passages"
# The words of a query that count: the rarest ones, where there are more.
_MOST_WORDS = 256
_WORD_BYTES = 8


class StoredPassage(msgspec.Struct, frozen=True, array_like=True):
    """A passage as a file has it; its number gives its id."""

    text: str
    source: str
    title: str = ""


class Section(msgspec.Struct, frozen=True, array_like=True):
    """Where a section is, in bytes, and the type of its numbers."""

    start: int
    size: int
    kind: str = ""


class Sections(msgspec.Struct, frozen=True):
    """What is where in a file.

    Attributes:
        count: How many passages there are.
        parts: The sections by name.
    """

    count: int
    parts: dict[str, Section]

    def end(self) -> bytes:
        """Return the end of a file with these sections."""
        data = msgspec.json.encode(self)
        return data + _END.pack(len(data), _MARK)


def word_hash(word: str) -> int:
    """Return the number that a word is known by."""
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=_WORD_BYTES).digest()
    return int.from_bytes(digest, "little")


class PassageIndex:
    """An index in a file, mapped into memory. Safe to share between threads.

    Args:
        path: The file.

    Raises:
        LostDataError: It is not there, or it is no complete index.
        ModelError: A package of the extra ``retrieval`` is not installed.

    Attributes:
        count: How many passages there are.
    """

    def __init__(self, path: Path) -> None:
        numpy = numpy_module()
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            sections = _sections(self._map)
        except (OSError, ValueError, KeyError, struct.error, msgspec.MsgspecError) as error:
            raise LostDataError(f"{path} is no index of passages: {error}") from None
        self.count = sections.count
        self._numpy = numpy
        self._texts = sections.parts["texts"].start

        def array(name: str) -> Any:
            part = sections.parts[name]
            size = part.size // numpy.dtype(part.kind).itemsize
            return numpy.frombuffer(self._map, part.kind, count=size, offset=part.start)

        self._offsets = array("offsets")
        self._words = array("words")
        self._starts = array("starts")
        self._bm25 = bm25_module().BM25(method="lucene", backend="numpy", csc_backend="numpy")
        self._bm25.nonoccurrence_array = None
        self._bm25.scores = {
            "data": array("scores"),
            "indices": array("numbers"),
            "indptr": self._starts,
            "num_docs": self.count,
        }

    def passage(self, number: int, score: float | None = None) -> Passage:
        """Return the passage with a 0-based number."""
        first, last = (
            self._texts + int(self._offsets[number]),
            self._texts + int(self._offsets[number + 1]),
        )
        stored = msgspec.json.decode(self._map[first:last], type=StoredPassage)
        return Passage(
            id=f"p{number + 1}",
            text=stored.text,
            source=stored.source,
            title=stored.title,
            score=score,
        )

    def search(self, query: str, k: int) -> list[Passage]:
        """Return the passages that fit a query best, best first; of equal ones, the earlier first.

        It has fewer than ``k`` where fewer have a word of the query.
        """
        numpy = self._numpy
        ids = self._ids(words_of(query))
        if not len(ids):
            return []
        scores = self._bm25.get_scores_from_ids(ids)
        found = numpy.flatnonzero(scores > 0)
        if len(found) > k:
            least = numpy.partition(scores[found], len(found) - k)[len(found) - k]
            found = found[scores[found] >= least]
        order = numpy.lexsort((found, -scores[found]))[:k]
        return [self.passage(int(number), float(scores[number])) for number in found[order]]

    def _ids(self, words: Iterable[str]) -> Any:
        """Return the ids of the words of a query that the index has, the rarest ones."""
        numpy = self._numpy
        hashes = numpy.unique(numpy.fromiter(map(word_hash, words), dtype="<u8"))
        if not len(hashes) or not len(self._words):
            return hashes[:0]
        at = numpy.minimum(numpy.searchsorted(self._words, hashes), len(self._words) - 1)
        ids = at[self._words[at] == hashes]
        if len(ids) > _MOST_WORDS:
            counts = self._starts[ids + 1] - self._starts[ids]
            ids = numpy.sort(ids[numpy.argsort(counts, kind="stable")[:_MOST_WORDS]])
        return ids


def _sections(mapped: mmap.mmap) -> Sections:
    if mapped[: len(FORMAT)] != FORMAT:
        raise ValueError("it begins otherwise")
    size, mark = _END.unpack(mapped[-_END.size :])
    if mark != _MARK:
        raise ValueError("its end is missing")
    end = len(mapped) - _END.size
    return msgspec.json.decode(mapped[end - size : end], type=Sections)
