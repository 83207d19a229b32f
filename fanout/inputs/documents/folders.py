"""The files in a folder and below it, in order, one at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Found", "walk"]


class Found(NamedTuple):
    """Something in a folder.

    Attributes:
        name: Its path, below the name of the folder.
        path: Its path on this machine.
        is_folder: Whether it is a folder that is one input.
        is_link: Whether it is a link to a folder, which may be above and so never end.
        is_file: Whether it is a file.
    """

    name: str
    path: str
    is_folder: bool = False
    is_link: bool = False
    is_file: bool = False


def walk(
    name: str, folder: str, is_input: Callable[[str], bool], on_error: Callable[[OSError], None]
) -> Iterator[Found]:
    """Yield what is in a folder and its folders, by name, without what is hidden.

    Only the entries of the folders on the way are in memory.

    Args:
        name: What the folder is called.
        folder: Its path.
        is_input: Says whether a folder is one input, which is not searched.
        on_error: Receives the error of a folder that cannot be read.
    """
    # No recursion: folders may be nested deeper than Python's stack.
    above = [("" if name == "." else name, _entries(folder, on_error))]
    while above:
        shown, entries = above[-1]
        entry = next(entries, None)
        if entry is None:
            above.pop()
            continue
        below = os.path.join(shown, entry.name)  # noqa: PTH118 - Path costs more than the rest
        if not _is_dir(entry):
            yield Found(below, entry.path, is_file=_is_file(entry))
        elif entry.is_symlink():
            yield Found(below, entry.path, is_link=True)
        elif is_input(entry.path):
            yield Found(below, entry.path, is_folder=True)
        else:
            above.append((below, _entries(entry.path, on_error)))


def _entries(folder: str, on_error: Callable[[OSError], None]) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        on_error(error)
        return iter(())
    return iter(sorted(shown, key=lambda entry: entry.name))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
