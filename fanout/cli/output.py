"""Where an answer goes: standard output, and the files of ``--out``."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Any

from fanout.errors import InputError, RunError
from fanout.results import branch_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from fanout.handle import Run
    from fanout.results import Output, Status

__all__ = ["OutputFolder", "answer_text", "error_row", "output_row"]

_UNFINISHED = ".unfinished"


def output_row(branch: Output) -> dict[str, Any]:
    """Return a branch with an output as a row of ``outputs.jsonl``."""
    row = _place(branch)
    row["output"] = branch.output
    row.update(attempts=branch.attempts, elapsed_s=round(branch.elapsed_s, 4))
    return {**row, "usage": branch.usage.to_dict()}


def error_row(branch: Output) -> dict[str, Any]:
    """Return a failed branch as a row of ``errors.jsonl``."""
    error = branch_error(branch)
    return {
        **_place(branch),
        "kind": error.kind.value,
        "message": error.message,
        "attempts": error.attempts,
    }


def _place(branch: Output) -> dict[str, Any]:
    return {
        "index": branch.index,
        "document": branch.document,
        "chunk": branch.chunk,
        "position": branch.position,
        "start": branch.start,
        "end": branch.end,
        "aspect": branch.aspect,
        "sample": branch.sample,
    }


def answer_text(aggregated: Any) -> str:
    """Return an aggregate for people: text as it is, groups under headings, the rest as JSON."""
    if isinstance(aggregated, str):
        return aggregated
    is_grouped_text = (
        isinstance(aggregated, dict)
        and aggregated
        and all(isinstance(value, str) for value in aggregated.values())
    )
    if is_grouped_text:
        return "\n\n".join(f"## {group}\n\n{text}" for group, text in aggregated.items())
    return json.dumps(aggregated, ensure_ascii=False, indent=2)


class OutputFolder:
    """The folder of ``--out``.

    Files get their names when all of them are complete, ``run.json`` last: a folder with a
    ``run.json`` is whole.

    Raises:
        InputError: The folder cannot be made or written to; found out before anything is run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        probe = path / f"probe{_UNFINISHED}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write to --out {path}: {error.strerror}") from None

    def write(self, run: Run, status: Status, aggregated: Any, notes: list[str]) -> None:
        """Write outputs, errors, the aggregate and the run's record.

        Raises:
            RunError: The disk is full, or the like; what was there before is left as it was.
        """
        try:
            with ExitStack() as stack:
                stack.callback(self._remove_unfinished)
                written = self._write_rows(run.outcomes())
                written += self._write_aggregate(aggregated)
                written.append(self._write_record(run, status, notes))
                self._finish(written)
        except OSError as error:
            raise RunError(
                f"cannot write the results to {self._path}: {error.strerror}; nothing was written"
            ) from error

    def _write_rows(self, branches: Iterable[Output]) -> list[str]:
        with self._open("outputs.jsonl") as outputs, self._open("errors.jsonl") as errors:
            for branch in branches:
                file, row = (
                    (outputs, output_row(branch))
                    if branch.kind is None
                    else (errors, error_row(branch))
                )
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for file in (outputs, errors):
                _sync(file)
        return ["outputs.jsonl", "errors.jsonl"]

    def _write_aggregate(self, aggregated: Any) -> list[str]:
        if aggregated is None:
            return []
        name = "aggregated.txt" if isinstance(aggregated, str) else "aggregated.json"
        with self._open(name) as file:
            file.write(
                answer_text(aggregated) if isinstance(aggregated, str) else _pretty(aggregated)
            )
            file.write("\n")
            _sync(file)
        return [name]

    def _write_record(self, run: Run, status: Status, notes: list[str]) -> str:
        record = {**status.to_dict(), "notes": notes, "spec": run.spec.model_dump(mode="json")}
        with self._open("run.json") as file:
            file.write(_pretty(record) + "\n")
            _sync(file)
        return "run.json"

    def _open(self, name: str) -> IO[str]:
        return (self._path / (name + _UNFINISHED)).open("w", encoding="utf-8")

    def _finish(self, names: list[str]) -> None:
        # An older run.json would vouch for files that are being replaced.
        for name in ("run.json", "aggregated.txt", "aggregated.json"):
            (self._path / name).unlink(missing_ok=True)
        for name in names:
            (self._path / (name + _UNFINISHED)).replace(self._path / name)

    def _remove_unfinished(self) -> None:
        for path in self._unfinished():
            with suppress(OSError):
                path.unlink()

    def _unfinished(self) -> Iterator[Path]:
        yield from self._path.glob(f"*{_UNFINISHED}")


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _sync(file: IO[str]) -> None:
    # A full disk may only be noticed here; better now than after the files got their names.
    file.flush()
    os.fsync(file.fileno())
