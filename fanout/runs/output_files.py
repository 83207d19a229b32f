"""Writes a run's output files: rows of its branches, its aggregate, and its record."""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import suppress
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from fanout.core.errors import InputError, RunError
from fanout.runs.rows import call_row, error_row, output_row
from fanout.runs.spaced_json import object_json
from fanout.runs.stored_aggregate import StoredAggregate
from fanout.runs.stored_aggregates import StoredAggregates
from fanout.system.private_files import PRIVATE, UNFINISHED, finish, open_unfinished, whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from fanout.runs.branch_output import Output
    from fanout.runs.status import ReduceError

__all__ = ["RESULTS", "OutputFolder", "require_no_wide", "write_json"]

# Locked while a command writes to the folder.
_LOCK = ".fanout.lock"
RESULTS = frozenset(
    {"outputs.jsonl", "errors.jsonl", "aggregated.txt", "aggregated.json", "run.json"}
)
_NO_PARTS: Mapping[str, Iterable[str]] = MappingProxyType({})
# That of each reduce of a list.
_NAMED = re.compile(r"aggregated\.[A-Za-z0-9_-]+\.(?:txt|json)")


class OutputFolder:
    """The folder of ``--out``; one command at a time owns it, until it is closed.

    Files get their names when all of them are complete, ``run.json`` last: a folder with a
    ``run.json`` is complete. Symbolic links are not followed.

    Args:
        path: The folder; it is created if it does not exist.
        replaces: Whether existing results may be replaced.
        mode: The permissions of the files.
        words: How the caller names the folder, and the option that replaces results.

    Raises:
        InputError: The folder cannot be created or written to, has results, or another command
            writes to it.
    """

    def __init__(
        self,
        path: Path,
        *,
        replaces: bool = False,
        mode: int = PRIVATE,
        words: tuple[str, str] = ("--out ", "--force"),
    ) -> None:
        self.path = path
        self._named, self._replacing = f"{words[0]}{path}", words[1]
        self._mode = mode
        self._lock: int | None = None
        try:
            self._folder = _open_folder(path, mode)
        except OSError as error:
            raise InputError(f"cannot write to {self._named}: {_reason(path, error)}") from None
        try:
            self._lock = self._locked()
            self._require_empty(replaces=replaces)
            self._probe()
        except OSError as error:
            self.close()
            raise InputError(f"cannot write to {self._named}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def _locked(self) -> int:
        """Lock the folder for this command; return the lock, which ends with the process."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            lock = os.open(_LOCK, flags, PRIVATE, dir_fd=self._folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise InputError(
                    f"{self._named}: another fanout is about to write its results there; give "
                    "a folder for each run"
                ) from None
            if self._is_named(lock):
                return lock
            # The previous owner has just ended and removed the file.
            os.close(lock)

    def _is_named(self, lock: int) -> bool:
        try:
            named = os.stat(_LOCK, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(lock))

    def _require_empty(self, *, replaces: bool) -> None:
        names = os.listdir(self._folder)  # noqa: PTH208 - an open folder has no path
        found = sorted(name for name in names if name in RESULTS or _NAMED.fullmatch(name))
        if found and not replaces:
            raise InputError(
                f"{self._named} has results already ({', '.join(found)}): give another folder, or "
                f"{self._replacing} to replace them"
            )

    def _probe(self) -> None:
        with open_unfinished("probe", folder=self._folder):
            pass
        os.unlink(f"probe{UNFINISHED}", dir_fd=self._folder)

    def close(self) -> None:
        """Unlock the folder. Safe to call twice."""
        if self._lock is not None:
            with suppress(OSError):
                os.unlink(_LOCK, dir_fd=self._folder)
            os.close(self._lock)
            self._lock = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def write(
        self,
        branches: Iterable[Output[Any]],
        aggregated: Any,
        record: Mapping[str, Any],
        *,
        is_by_name: bool = False,
        failed_calls: Iterable[ReduceError] = (),
        parts: Mapping[str, Iterable[str]] = _NO_PARTS,
    ) -> None:
        """Write outputs, errors, the aggregate and the run's record.

        Args:
            branches: The branches.
            aggregated: The aggregate: a JSON value, None, or a StoredAggregate, which is read in parts.
            record: The record, without the aggregate.
            is_by_name: Whether the aggregate is one for each reduce of a list, by name: each then has a
                file of its own.
            failed_calls: The calls of reduces that failed.
            parts: The JSON of some values of the record, indented and in parts, as they may be larger than
                memory.

        Raises:
            RunError: A file cannot be written, for example on a full disk; existing results stay.
        """
        try:
            written = self._write_rows(branches, failed_calls)
            named: Mapping[str, Any] = {"": aggregated}
            if isinstance(aggregated, StoredAggregates):
                named = aggregated.by_name
            elif is_by_name:
                named = aggregated or {}
            for name, one in named.items():
                written += self._write_aggregate(f"aggregated.{name}".rstrip("."), one)
            written.append(self._write_file("run.json", _record_json(record, parts)))
            self._finish(written)
        except OSError as error:
            raise RunError(
                f"cannot write the results to {self.path}: {error.strerror}; nothing was written"
            ) from error
        finally:
            self._remove_unfinished()

    def _write_rows(
        self, branches: Iterable[Output[Any]], failed_calls: Iterable[ReduceError]
    ) -> list[str]:
        with self._open("outputs.jsonl") as outputs, self._open("errors.jsonl") as errors:
            for branch in branches:
                is_ok = branch.kind is None
                row = output_row(branch) if is_ok else error_row(branch)
                file = outputs if is_ok else errors
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for error in failed_calls:
                errors.write(json.dumps(call_row(error), ensure_ascii=False) + "\n")
            for file in (outputs, errors):
                finish(file)
        return ["outputs.jsonl", "errors.jsonl"]

    def _write_aggregate(self, stem: str, value: Any) -> list[str]:
        if value is None or (isinstance(value, StoredAggregate) and not value):
            return []
        if isinstance(value, StoredAggregate):
            if value.is_text:
                return [self._write_file(f"{stem}.txt", value.texts())]
            return [self._write_file(f"{stem}.json", value.json(is_indented=True))]
        if isinstance(value, str):
            return [self._write_file(f"{stem}.txt", [value])]
        return [self._write_file(f"{stem}.json", [_pretty(value)])]

    def _write_file(self, name: str, parts: Iterable[str]) -> str:
        with self._open(name) as file:
            file.writelines(parts)
            file.write("\n")
            finish(file)
        return name

    def _open(self, name: str) -> IO[str]:
        return open_unfinished(name, folder=self._folder, mode=self._mode)

    def _finish(self, names: list[str]) -> None:
        # An older run.json would vouch for files that are being replaced.
        names_now = os.listdir(self._folder)  # noqa: PTH208 - an open folder has no path
        older = [name for name in names_now if _NAMED.fullmatch(name)]
        for name in ("run.json", "aggregated.txt", "aggregated.json", *older):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)
        for name in names:
            here = self._folder
            os.replace(name + UNFINISHED, name, src_dir_fd=here, dst_dir_fd=here)

    def _remove_unfinished(self) -> None:
        names = os.listdir(self._folder)  # noqa: PTH208
        for name in names:
            whole = name.removesuffix(UNFINISHED)
            if name != whole and (whole in RESULTS or _NAMED.fullmatch(whole)):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)


def write_json(
    target: Path, rows: Iterable[Mapping[str, Any]], *, indent: int | None, replaces: bool
) -> None:
    """Write rows as JSON to a file, which is there once it is complete.

    Raises:
        InputError: The file is there already, and must not be replaced.
        RunError: It cannot be written.
    """
    if target.exists() and not replaces:
        raise InputError("is there already: give replace=True to replace it", source=str(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, indent=indent) + "\n")
    except OSError as error:
        raise RunError(f"cannot write the results to {target}: {error.strerror}") from error


def require_no_wide(target: Path, *, wide: bool) -> None:
    """Raise InputError if rows are to be wide, which only tables can be."""
    if wide:
        raise InputError(
            f"wide has no effect on {target}: leave it out, or give a .csv, .tsv, .parquet, .xlsx "
            "or .sqlite file"
        )


def _open_folder(path: Path, mode: int) -> int:
    """Open a folder; make it if it is missing. Users who may read its files may enter it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700 | mode | (mode & 0o444) >> 2)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _reason(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return "it is a symbolic link, which is not followed; give the folder itself"
    return error.strerror or str(error)


def _record_json(record: Mapping[str, Any], parts: Mapping[str, Iterable[str]]) -> Iterator[str]:
    values = (
        (name, parts[name] if name in parts else [_pretty(value)]) for name, value in record.items()
    )
    return object_json(values, is_indented=True)


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
