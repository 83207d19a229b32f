"""The search for the files of an input."""

from __future__ import annotations

import glob
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.dataset_folders import (
    DATASET,
    SPLITS,
    is_dataset,
    read_splits,
    splits_error,
)
from fanout.inputs.documents.file_kinds import (
    ALLOWED,
    Kind,
    is_text,
    kind_by_content,
    kind_of,
    kind_of_found,
    label_of,
    label_of_file,
    may_be_text,
    why_no_text,
)
from fanout.inputs.documents.file_list import FileList
from fanout.inputs.documents.folders import Found, walk
from fanout.inputs.documents.notices import Notice, listed
from fanout.inputs.documents.remote import Remote, named, open_remote, remote_paths
from fanout.inputs.documents.urls import SqliteUrl, is_url, sqlite_url
from fanout.system.private_files import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.inputs.documents.notices import Notify

__all__ = ["RUN", "STDIN", "InputFile", "find_files"]

STDIN = "-"
# What stands before the id of a run whose outputs are an input.
RUN = "run:"


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an input, or a folder that is read as one.

    Attributes:
        name: What documents and messages call it: its path relative to the folder of the inputs.
        kind: How it is read.
        fault: Why it cannot be read, or None.
        packing: The file extension of its compression, or None.
        remote: Where it is, if it is not on this machine.
        sqlite: What is read of a database; its path takes the place of the name.
        is_named: Whether the user named it, and did not have it found in a folder or by a pattern.
    """

    name: str
    kind: Kind = "text"
    fault: str | None = None
    packing: str | None = None
    remote: Remote | None = None
    sqlite: SqliteUrl | None = None
    is_named: bool = False

    @property
    def place(self) -> str:
        """Its path on this machine, relative to the folder of the inputs."""
        return self.name if self.sqlite is None else self.sqlite.path

    def below(self, name: str) -> InputFile:
        """Return a file in this folder."""
        remote = None if self.remote is None else self.remote.below(name)
        return InputFile(name=f"{self.name}/{name}", kind=self.kind, remote=remote)


def find_files(
    inputs: Sequence[str], base: Path, notify: Notify, *, encoding: str | None = None
) -> FileList:
    """Return the files of inputs, in order, and send notices of files that are left out.

    A folder stands for the files of known kinds in it, and for those that begin as a document does. A
    file that is named, or that matches a pattern, may have any name if it is text, in the encoding if
    one is given; one that is named and is no text has a fault. A folder or pattern may be a URL.

    Raises:
        InputError: An input does not exist, a folder holds no file to read, or all files are named and
            no text.
    """
    search = _Search(base, encoding)
    every = (file for one in inputs for file in search.files(one))
    found = FileList(every, lambda name, kind: InputFile(name=name, kind=kind))
    if search.refused and len(search.refused) == len(found):
        name, reason = search.refused[0]
        raise InputError(reason, source=name)
    if left_out := +search.left_out:
        text = f"left out: {listed(left_out)} (not of a kind that is read; hidden files are passed over)"
        notify(Notice(text=text, is_warning=True))
    for line in search.unreadable:
        notify(Notice(text=f"left out: {line}", is_warning=True))
    return found


class _Search:
    """Looks up inputs, and counts the files that it leaves out."""

    def __init__(self, base: Path, encoding: str | None) -> None:
        self._base = base
        self._encoding = encoding
        self.left_out: Counter[str] = Counter()
        self.unreadable: list[str] = []
        # Named files that are no text, with the reason.
        self.refused: list[tuple[str, str]] = []

    def files(self, one: str) -> Iterator[InputFile]:
        if one == STDIN:
            yield InputFile(name=one, is_named=True)
        elif one.startswith(RUN):
            yield InputFile(name=one, kind="run", is_named=True)
        elif is_url(one):
            yield from self._url(one)
        else:
            yield from self._local(one, self._base / one)

    def _local(self, one: str, path: Path) -> Iterator[InputFile]:
        if path.is_file():
            yield self._named(one, path)
        elif (path / SPLITS).is_file():
            raise InputError(splits_error(read_splits(path / SPLITS)), source=one)
        elif is_dataset(path):
            yield InputFile(name=one, kind="dataset", is_named=True)
        elif path.is_dir():
            yield from self._folder(one, path)
        elif glob.has_magic(one):
            yield from self._pattern(one)
        elif path.exists():
            raise InputError("is neither a file nor a folder", source=str(path))
        elif path.is_symlink():
            raise InputError("is a broken symbolic link", source=str(path))
        else:
            raise InputError("there is no such file or folder", source=str(path))

    def _url(self, url: str) -> Iterator[InputFile]:
        sqlite = sqlite_url(url) if url.lower().startswith("sqlite:") else None
        if sqlite is not None:
            yield _database(url, sqlite, self._base)
            return
        place, paths = remote_paths(url)
        if paths is None:
            kind, packing = kind_of(urlsplit(place.path).path)
            yield InputFile(
                name=place.name,
                kind=kind or "text",
                packing=packing,
                remote=place,
                is_named=True,
            )
            return
        count = 0
        for file in self._remote_files(place, paths):
            count += 1
            yield file
        if not count:
            raise InputError(
                f"no file of a known kind is there{self._rest()}; {ALLOWED}", source=place.name
            )

    def _remote_files(self, place: Remote, paths: list[str]) -> Iterator[InputFile]:
        known = frozenset(paths)
        datasets = {
            top for top in map(_folder_of, paths) if {f"{top}/{f}" for f in DATASET} <= known
        }
        if f"{place.path}/{SPLITS}" in known:
            with open_remote(place.below(SPLITS)) as opened:
                splits = opened.read()
            raise InputError(splits_error(splits), source=place.name)
        done = set[str]()
        for path in paths:
            folder = _folder_of(path)
            if folder in datasets:
                if folder not in done:
                    done.add(folder)
                    found = named(place, folder)
                    yield InputFile(name=found.name, kind="dataset", remote=found)
                continue
            kind, packing = kind_of(path)
            if any(part.startswith(".") for part in path.removeprefix(place.path).split("/")):
                continue
            if kind is None:
                self.left_out[label_of(path)] += 1
                continue
            found = named(place, path)
            yield InputFile(name=found.name, kind=kind, packing=packing, remote=found)

    def _named(self, name: str, path: Path) -> InputFile:
        kind, packing = kind_of(path.name)
        try:
            kind = kind_by_content(path, kind)
            has_text = is_text(path, self._encoding)
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
            return InputFile(name=name, kind=kind or "text", fault=fault)
        if kind is None and not has_text:
            reason = why_no_text(path)
            self.refused.append((name, reason))
            return InputFile(name=name, fault=f"it {reason}", is_named=True)
        return InputFile(name=name, kind=kind or "text", packing=packing, is_named=True)

    def _pattern(self, pattern: str) -> Iterator[InputFile]:
        # Path.glob takes no absolute pattern, which a user may give.
        matches = glob.glob(pattern, recursive=True, root_dir=self._base)  # noqa: PTH207
        count = 0
        for name in sorted(one for one in matches if not one.endswith(UNFINISHED)):
            path = self._base / name
            if is_dataset(path):
                count += 1
                yield InputFile(name=name, kind="dataset")
                continue
            if path.is_dir():
                # "**" also matches the folders on the way.
                self.left_out["folders"] += 0 if "**" in pattern else 1
                continue
            kind, packing = kind_of_found(Found(name, str(path), is_file=path.is_file()))
            if not path.is_file() or (kind is None and not may_be_text(path, self._encoding)):
                self.left_out[label_of_file(path)] += 1
                continue
            count += 1
            yield InputFile(name=name, kind=kind or "text", packing=packing)
        if not count:
            raise InputError(f"no file matches{self._rest()}", source=pattern)

    def _folder(self, name: str, folder: Path) -> Iterator[InputFile]:
        count = 0
        for found in walk(str(Path(name)), str(folder), is_dataset, self._on_error):
            if found.name.endswith(UNFINISHED):
                continue
            kind, packing = ("dataset", None) if found.is_folder else kind_of_found(found)
            if kind is None or not (found.is_file or found.is_folder):
                label = "links to folders" if found.is_link else label_of_file(Path(found.path))
                self.left_out[label] += 1
                continue
            count += 1
            yield InputFile(name=found.name, kind=kind, packing=packing)
        if not count:
            raise InputError(
                f"no file of a known kind in this folder{self._rest()}; {ALLOWED}",
                source=str(folder),
            )

    def _on_error(self, error: OSError) -> None:
        self.unreadable.append(f"{error.filename}: {error.strerror}")

    def _rest(self) -> str:
        left = +self.left_out
        return f" (there are: {listed(left)})" if left else ""


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _database(url: str, sqlite: SqliteUrl, base: Path) -> InputFile:
    """Return the database of a URL. Raises InputError if there is none."""
    path = base / sqlite.path
    if not path.is_file():
        # Many write three slashes before an absolute path.
        if not Path(f"/{sqlite.path}").is_file():
            raise InputError("there is no such file", source=f"{path} (of {url})")
        sqlite = sqlite._replace(path=f"/{sqlite.path}")
    name = sqlite.path if sqlite.table is None else f"{sqlite.path}#{sqlite.table}"
    return InputFile(name=name, kind="sqlite", sqlite=sqlite, is_named=True)
