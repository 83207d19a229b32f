"""The files of an input, in little memory: there may be a million."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.inputs.documents.files import InputFile

__all__ = ["FileList"]

# The files that are unpacked together.
_MOST = 1_000


class FileList:
    """Files, in order. Those of a folder share its name, and are made anew when they are read.

    Args:
        files: The files.
        make: Makes a file of its name and its kind, as all are that have nothing else.
    """

    def __init__(self, files: Iterable[InputFile], make: Callable[[str, Any], InputFile]) -> None:
        self._make = make
        self._starts: list[int] = []
        # The folder, the names in it, and the kind of each.
        self._groups: list[tuple[str, bytes, list[Any]]] = []
        self._others: dict[int, InputFile] = {}
        self._unpacked: tuple[int, list[InputFile]] = (-1, [])
        self._size = 0
        self._add(files)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[InputFile]:
        return (self[at] for at in range(self._size))

    def __getitem__(self, at: int) -> InputFile:
        other = self._others.get(at)
        if other is not None:
            return other
        group = bisect_right(self._starts, at) - 1
        if self._unpacked[0] != group:
            self._unpacked = group, self._files_of(group)
        return self._unpacked[1][at - self._starts[group]]

    def __setitem__(self, at: int, file: InputFile) -> None:
        self._others[at] = file

    def _add(self, files: Iterable[InputFile]) -> None:
        names: list[str] = []
        kinds: list[Any] = []
        folder = ""
        for file in files:
            above, slash, name = file.name.rpartition("/")
            if names and (above + slash != folder or len(names) == _MOST):
                self._close(folder, names, kinds)
                names, kinds = [], []
            folder = above + slash
            # A name of a file system has no NUL; a URL is not split.
            if file != self._make(file.name, file.kind) or "\0" in name:
                self._others[self._size] = file
                name = ""
            names.append(name)
            kinds.append(file.kind)
            self._size += 1
        if names:
            self._close(folder, names, kinds)

    def _close(self, folder: str, names: list[str], kinds: list[Any]) -> None:
        self._starts.append(self._size - len(names))
        packed = "\0".join(names).encode("utf-8", "surrogatepass")
        same = kinds[:1] if len(set(kinds)) == 1 else kinds
        self._groups.append((folder, packed, same))

    def _files_of(self, group: int) -> list[InputFile]:
        folder, packed, kinds = self._groups[group]
        names = packed.decode("utf-8", "surrogatepass").split("\0")
        kinds = kinds if len(kinds) == len(names) else kinds * len(names)
        return [self._make(folder + name, kind) for name, kind in zip(names, kinds, strict=True)]
