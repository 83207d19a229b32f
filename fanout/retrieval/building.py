"""The building of an index: passages are written to its file as they come, and then their scores."""

from __future__ import annotations

import mmap
import secrets
from array import array
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.retrieval.extra import numpy_module
from fanout.retrieval.index_file import (
    FORMAT,
    Section,
    Sections,
    StoredPassage,
    word_hash,
)
from fanout.retrieval.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["UNFINISHED", "IndexBuilder"]

UNFINISHED = ".unfinished"
_HASH_BYTES = 16
_ALIGNED = 8
# Passages that are counted at once: more take more memory.
_BLOCK = 65_536
# BM25 as Lucene has it, and as bm25s adds it up.
_K1, _B = 1.5, 0.75


class IndexBuilder:
    """Writes an index: ``add`` each passage, then ``finish``. Leaving the context removes the file.

    Args:
        folder: Where the file is written.

    Attributes:
        path: The file.
        count: How many passages it has.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{secrets.token_hex(8)}{UNFINISHED}"
        self._file = self.path.open("xb")
        self.path.chmod(0o600)
        self._file.write(FORMAT)
        self._hash = blake2b(FORMAT, digest_size=_HASH_BYTES)
        self._offsets = array("q", [0])

    def add(self, text: str, source: str, title: str = "") -> None:
        """Write a passage. Raises OSError."""
        data = msgspec.json.encode(StoredPassage(text, source, title))
        self._hash.update(b"%d\n" % len(data))
        self._hash.update(data)
        self._file.write(data)
        self._offsets.append(self._offsets[-1] + len(data))

    @property
    def count(self) -> int:
        """How many passages there are."""
        return len(self._offsets) - 1

    @property
    def content(self) -> str:
        """The hash of the passages: two indexes with the same one are the same."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Write the scores, and close the file. Raises OSError."""
        self._file.flush()
        numpy = numpy_module()
        tokens, ends, words = self._words()
        scores = self._scores(tokens, ends, words)
        parts = {"texts": Section(len(FORMAT), self._offsets[-1])}
        arrays = {
            "offsets": (numpy.asarray(self._offsets), "<i8"),
            "words": (numpy.unique(words), "<u8"),
            "starts": (scores["indptr"], "<i8"),
            "numbers": (scores["indices"], "<i4"),
            "scores": (scores["data"], "<f4"),
        }
        for name, (values, kind) in arrays.items():
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNED))
            start = self._file.tell()
            values.astype(kind, copy=False).tofile(self._file)
            parts[name] = Section(start, self._file.tell() - start, kind)
        self._file.write(Sections(count=self.count, parts=parts).end())
        self._file.close()

    def _words(self) -> tuple[array[int], array[int], Any]:
        """Return the words of all passages by number, where each passage ends, and their hashes."""
        numbers: dict[str, int] = {}
        tokens, ends = array("i"), array("q")
        for text in self._texts():
            for word in words_of(text):
                tokens.append(numbers.setdefault(word, len(numbers)))
            ends.append(len(tokens))
        hashes = numpy_module().fromiter(map(word_hash, numbers), dtype="<u8", count=len(numbers))
        return tokens, ends, hashes

    def _texts(self) -> Iterator[str]:
        """Yield the text of each passage, with its title."""
        if not self._offsets[-1]:
            return
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            for first, last in zip(self._offsets, self._offsets[1:], strict=False):
                data = mapped[len(FORMAT) + first : len(FORMAT) + last]
                passage = msgspec.json.decode(data, type=StoredPassage)
                yield f"{passage.title}\n{passage.text}"

    def _scores(self, tokens: array[int], ends: array[int], words: Any) -> dict[str, Any]:
        numpy = numpy_module()
        # By their hashes, in whose order they are searched.
        distinct, places = numpy.unique(words, return_inverse=True)
        ends_of = numpy.concatenate(([0], numpy.asarray(ends)))
        lengths = numpy.diff(ends_of)
        blocks = [
            _counted(places, numpy.asarray(tokens), ends_of[first : first + _BLOCK + 1], first)
            for first in range(0, self.count, _BLOCK)
        ]
        passages_of = numpy.zeros(len(distinct), "i8")
        for words_in, _, _ in blocks:
            passages_of += numpy.bincount(words_in, minlength=len(distinct))
        starts = numpy.concatenate(([0], numpy.cumsum(passages_of)))
        rarity = numpy.log(1 + (self.count - passages_of + 0.5) / (passages_of + 0.5))
        weight = _K1 * (1 - _B + _B * lengths / max(1.0, lengths.sum() / max(1, self.count)))
        found, scores = numpy.empty(starts[-1], "i4"), numpy.empty(starts[-1], "f4")
        free = starts[:-1].copy()
        while blocks:
            words_in, numbers, times = blocks.pop(0)
            here = numpy.bincount(words_in, minlength=len(distinct))
            # The passages of a word follow those of earlier blocks.
            shift = free - (numpy.cumsum(here) - here)
            at = shift[words_in] + numpy.arange(len(words_in))
            found[at] = numbers
            scores[at] = rarity[words_in] * times / (times + weight[numbers])
            free += here
        return {"indptr": starts, "indices": found, "data": scores}

    def close(self) -> None:
        """Remove the file, unless it was given another name."""
        self._file.close()
        with suppress(FileNotFoundError):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


def _counted(places: Any, tokens: Any, ends: Any, first: int) -> tuple[Any, Any, Any]:
    """Return the words of a block of passages in order, with the passages and how often they have them.

    Args:
        places: The place of each word in the order, by its number.
        tokens: The words of all passages, by number.
        ends: Where the words of each passage of the block end, after where the first one begins.
        first: The number of its first passage.
    """
    numpy = numpy_module()
    own = numpy.repeat(numpy.arange(len(ends) - 1), numpy.diff(ends))
    keys = places[tokens[ends[0] : ends[-1]]].astype("i8") * _BLOCK + own
    keys, times = numpy.unique(keys, return_counts=True)
    words, numbers = (keys // _BLOCK).astype("i4"), (keys % _BLOCK + first).astype("i4")
    return words, numbers, times.astype("f4")
