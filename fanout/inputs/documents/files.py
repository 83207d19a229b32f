"""The search for the files of an input, and the kind of each."""

from __future__ import annotations

import glob
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.notices import Notice, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.inputs.documents.notices import Notify

__all__ = ["RUN", "STDIN", "InputFile", "Kind", "find_files"]

Kind = Literal["text", "table", "jsonl", "json", "run"]

STDIN = "-"
# What stands before the id of a run whose outputs are an input.
RUN = "run:"
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".csv": "table",
    ".tsv": "table",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
}
ALLOWED = ", ".join(KINDS)
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".7z", ".tar", ".tgz"})
_SAMPLE_BYTES = 8_192
# The beginnings of binary files that may look like text.
_MAGIC = (b"%PDF", b"{\\rtf", b"PK\x03\x04", b"\x1f\x8b")


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an input, named relative to the folder of the inputs; with a fault, it is unreadable."""

    name: str
    kind: Kind = "text"
    fault: str | None = None


def find_files(inputs: Sequence[str], base: Path, notify: Notify) -> list[InputFile]:
    """Return the files of inputs, in order, and send notices of files that are left out.

    A folder stands for the files of known kinds in it. A file that is named, or that matches a
    pattern, may have any name if it is text.

    Raises:
        InputError: An input does not exist, or holds no text.
    """
    search = _Search(base)
    found = [file for one in inputs for file in search.files(one)]
    if search.left_out:
        text = (
            f"left out: {listed(search.left_out)} (folders are searched for {ALLOWED}; "
            "hidden files are passed over)"
        )
        notify(Notice(text=text, is_warning=True))
    for line in search.unreadable:
        notify(Notice(text=f"left out: {line}", is_warning=True))
    return found


class _Search:
    """Looks up inputs, and counts the files that it leaves out."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.left_out: Counter[str] = Counter()
        self.unreadable: list[str] = []

    def files(self, one: str) -> Iterator[InputFile]:
        path = self._base / one
        if one == STDIN:
            yield InputFile(name=one)
        elif one.startswith(RUN):
            yield InputFile(name=one, kind="run")
        elif path.is_file():
            yield self._named(one, path)
        elif path.is_dir():
            yield from self._folder(one, path)
        elif glob.has_magic(one):
            yield from self._pattern(one)
        elif path.is_symlink():
            raise InputError("is a broken symbolic link", source=str(path))
        elif path.exists():
            raise InputError("is neither a file nor a folder", source=str(path))
        else:
            raise InputError("there is no such file or folder", source=str(path))

    def _named(self, name: str, path: Path) -> InputFile:
        kind = KINDS.get(path.suffix.lower())
        try:
            is_text = _is_text(path)
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
            return InputFile(name=name, kind=kind or "text", fault=fault)
        if kind is None and not is_text:
            raise InputError(_no_text(path), source=name)
        return InputFile(name=name, kind=kind or "text")

    def _pattern(self, pattern: str) -> Iterator[InputFile]:
        # Path.glob takes no absolute pattern, which a user may give.
        matches = glob.glob(pattern, recursive=True, root_dir=self._base)  # noqa: PTH207
        count = 0
        for name in sorted(matches):
            path = self._base / name
            if path.is_dir():
                # "**" also matches the folders on the way.
                self.left_out["folders"] += 0 if "**" in pattern else 1
                continue
            kind = KINDS.get(path.suffix.lower())
            if not path.is_file() or (kind is None and not _may_be_text(path)):
                self.left_out[_label(path)] += 1
                continue
            count += 1
            yield InputFile(name=name, kind=kind or "text")
        if not count:
            raise InputError(f"no file matches{self._rest()}", source=pattern)

    def _folder(self, name: str, folder: Path) -> Iterator[InputFile]:
        count = 0
        for path in sorted(self._below(folder)):
            kind = KINDS.get(path.suffix.lower())
            if kind is None or not path.is_file():
                self.left_out[_label(path)] += 1
                continue
            count += 1
            yield InputFile(name=str(Path(name) / path.relative_to(folder)), kind=kind)
        if not count:
            raise InputError(f"no {ALLOWED} file in this folder{self._rest()}", source=str(folder))

    def _below(self, folder: Path) -> Iterator[Path]:
        for top, folders, files in os.walk(folder, onerror=self._on_error):
            shown = [name for name in folders if not name.startswith(".")]
            # A link may point to a folder above, which would never end.
            links = [name for name in shown if (Path(top) / name).is_symlink()]
            folders[:] = [name for name in shown if name not in links]
            self.left_out["links to folders"] += len(links)
            yield from (Path(top) / name for name in files if not name.startswith("."))
        self.left_out = +self.left_out

    def _on_error(self, error: OSError) -> None:
        self.unreadable.append(f"{error.filename}: {error.strerror}")

    def _rest(self) -> str:
        left = +self.left_out
        return f" (there are: {listed(left)})" if left else ""


def _label(path: Path) -> str:
    """Return the kind of a file for messages: ``.pdf``, ``.jsonl.gz``."""
    if not path.exists():
        return "broken links"
    if not path.is_file():
        return "special files"
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if not suffixes:
        return "without an extension"
    return "".join(suffixes) if suffixes[-1] in _PACKED else suffixes[-1]


def _is_text(path: Path) -> bool:
    """Say whether a file begins with UTF-8 text. Raises OSError."""
    with path.open("rb") as file:
        sample, is_longer = file.read(_SAMPLE_BYTES), bool(file.read(1))
    if b"\0" in sample or sample.startswith(_MAGIC):
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end within a character.
        return is_longer and error.reason == "unexpected end of data"
    return True


def _may_be_text(path: Path) -> bool:
    try:
        return _is_text(path)
    except OSError:
        return True


def _no_text(path: Path) -> str:
    suffix = path.suffix.lower()
    way_out = "uncompress it first" if suffix in _PACKED else "convert it to text first"
    return (
        f"is not UTF-8 text, and {suffix or 'such'} files are not supported: {way_out} "
        f"(supported are {ALLOWED}, and text files of any other name)"
    )
