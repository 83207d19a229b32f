"""The indexes that are on this machine: files in a folder of the cache, which processes share."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING

from fanout.core.errors import LostDataError, StorageError
from fanout.retrieval.building import UNFINISHED
from fanout.system.file_locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["PIECE_BYTES", "LocalIndexes", "pieces_of"]

PIECE_BYTES = 4_000_000
# What the folder may hold; what a process has mapped stays until it lets go of it.
_MOST_BYTES = 8_000_000_000
# A file of a process that died while it wrote it.
_OLD_S = 24 * 3_600
_SUFFIX = ".passages"
_CONTENT = re.compile(r"[0-9a-f]{32}")


class LocalIndexes:
    """A folder of indexes, each named by the hash of its passages. Safe for several processes.

    Args:
        cache_dir: The folder of the cache.
        most_bytes: What all files may hold together; those that were not used for longest go first.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(self, cache_dir: Path, *, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = cache_dir / "passages"
        self._most_bytes = most_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"the folder {self.folder} for passages cannot be made ({error.strerror}); "
                "FANOUT_CACHE_DIR chooses another one"
            ) from None

    def path(self, content: str) -> Path:
        """Return where the index of some content is, or would be."""
        if not _CONTENT.fullmatch(content):
            raise LostDataError(f"no index of passages has the name {content[:40]!r}")
        return self.folder / f"{content}{_SUFFIX}"

    def found(self, content: str) -> Path | None:
        """Return the file of an index if it is here, and note that it is used."""
        path = self.path(content)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def lock(self, content: str) -> FileLock:
        """Wait until no other process makes the file of an index. Raises OSError."""
        return FileLock(self.path(content).with_suffix(".lock"))

    def adopt(self, unfinished: Path, content: str) -> Path:
        """Give a finished file its name; return that. Raises OSError."""
        path = self.path(content)
        unfinished.replace(path)
        self._trim(path)
        return path

    def fetched(self, content: str, pieces: Iterable[bytes], digest: str) -> Path:
        """Return the file of an index, which is written of ``pieces`` if no other process has done so.

        Raises:
            LostDataError: The pieces are not those of the index.
            StorageError: The file cannot be written.
        """
        try:
            with self.lock(content):
                return self.found(content) or self._written(content, pieces, digest)
        except OSError as error:
            raise StorageError(
                f"the folder {self.folder} for passages cannot be written to: {error.strerror}"
            ) from None

    def _written(self, content: str, pieces: Iterable[bytes], digest: str) -> Path:
        unfinished = self.folder / f"{secrets.token_hex(8)}{UNFINISHED}"
        seen = blake2b(digest_size=16)
        try:
            with unfinished.open("xb") as file:
                unfinished.chmod(0o600)
                for piece in pieces:
                    seen.update(piece)
                    file.write(piece)
            if seen.hexdigest() != digest:
                raise LostDataError("the index of the passages that the store has is not complete")
            return self.adopt(unfinished, content)
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()

    def _trim(self, own: Path) -> None:
        """Remove what was not used for longest, until the rest fits; a mapped file stays readable."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                known = path.stat()
                files.append((known.st_mtime, known.st_size, path))
        total = sum(size for _, size, _ in files)
        newest = max((used for used, _, _ in files), default=0.0)
        for used, size, path in sorted(files):
            if path == own:
                continue
            is_left = path.suffix != _SUFFIX and used < newest - _OLD_S
            if is_left or (total > self._most_bytes and path.suffix == _SUFFIX):
                with suppress(FileNotFoundError):
                    path.unlink()
                total -= size


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces. Raises OSError."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
