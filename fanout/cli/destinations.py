"""``--out`` and its options: a folder, or a table file."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from fanout.core.errors import InputError
from fanout.inputs.documents.files import STDIN, find_files
from fanout.inputs.intake import checked_documents
from fanout.inputs.sources import has_only_rows
from fanout.inputs.splitters import split_documents, splitter_of
from fanout.runs.output_files import RESULTS, OutputFolder
from fanout.runs.rows import layout_of
from fanout.runs.tables.formats import FORMATS, format_of
from fanout.runs.tables.output_file import OutputFile
from fanout.system.private_files import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.cli.progress import Progress
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec

__all__ = [
    "Destination",
    "out_options",
    "require_no_input",
    "require_room",
    "require_room_for_rows",
    "warn_of_room",
]

Destination = OutputFolder | OutputFile
_MODE = re.compile("0?[0-7]{3}")
_SUFFIXES = ", ".join(FORMATS)


class FileMode(click.ParamType[int]):
    """The permissions of a file, in octal, with which its user can read and write it."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        if not _MODE.fullmatch(value) or int(value, 8) & 0o711 != PRIVATE:
            self.fail(f"{value!r} is none of 600, 640, 644, 660, 664, 666 and the like", param, ctx)
        return int(value, 8)


class _Out(NamedTuple):
    """Where ``--out`` leads."""

    path: Path
    is_file: bool


def _out(_context: click.Context, _parameter: click.Parameter, value: str | None) -> _Out | None:
    if value is None:
        return None
    path = Path(value)
    if value.endswith("/") or path.is_dir():
        return _Out(path, is_file=False)
    try:
        return _Out(path, is_file=format_of(path) is not None)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


_OPTIONS = (
    click.option(
        "--out",
        type=click.Path(),
        callback=_out,
        metavar="PATH",
        help="A folder for outputs.jsonl, errors.jsonl, the aggregate and run.json; or a file with "
        f"a row for each branch: {_SUFFIXES}.",
    ),
    click.option(
        "--wide",
        is_flag=True,
        help="In a file of --out, a row for each chunk, with a column for each aspect, model and sample.",
    ),
    click.option("--force", is_flag=True, help="Replace results that are at --out already."),
    click.option(
        "--out-mode",
        metavar="MODE",
        type=FileMode(),
        default=f"{PRIVATE:o}",
        help="Who may read the files of --out, as for chmod: 640, 644, ... [default: 600]",
    ),
)


def out_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--out`` and its options; the command gets ``open_out``, which opens what they name."""

    @wraps(command)
    def with_out(
        *, out: _Out | None, wide: bool, force: bool, out_mode: int, **options: Any
    ) -> Any:
        context = click.get_current_context()
        for name, option in (("wide", "--wide"), ("force", "--force"), ("out_mode", "--out-mode")):
            is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if is_given and out is None:
                raise click.UsageError(
                    f"{option} has no effect without --out: leave it out, or give it"
                )
        if wide and out is not None and not out.is_file:
            raise click.UsageError(
                f"--wide has no effect on a folder: leave it out, or give a file ({_SUFFIXES})"
            )

        def open_out(spec: RunSpec) -> AbstractContextManager[Destination | None]:
            if out is None:
                return nullcontext()
            targets = [out.path] if out.is_file else [out.path / name for name in RESULTS]
            require_no_input(targets, spec, "--out")
            layout = layout_of(spec)
            if not out.is_file:
                return OutputFolder(out.path, replaces=force, mode=out_mode)
            return OutputFile(out.path, layout, replaces=force, mode=out_mode, is_wide=wide)

        return command(open_out=open_out, **options)

    for option in reversed(_OPTIONS):
        with_out = option(with_out)
    return with_out


def require_no_input(targets: Iterable[Path], spec: RunSpec, option: str) -> None:
    """Check that a job reads none of the files that are to be written.

    Args:
        targets: The files.
        spec: The job.
        option: What names them.

    Raises:
        InputError: It reads one.
    """
    there = {identity: target for target in targets if (identity := _identity(target))}
    for path in _local_files(spec) if there else ():
        identity = _identity(path)
        if identity in there:
            raise InputError(
                f"cannot write to {option} {there[identity]}: it is a file of the input"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is the same for all paths of a file; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _local_files(spec: RunSpec) -> Iterator[Path]:
    """Yield the files of a job's input that are on this machine."""
    base = Path(spec.base_dir or "")
    try:
        files = find_files(spec.inputs, base, lambda _notice: None, encoding=spec.encoding)
    except InputError:
        # The reader of the input raises it again.
        return
    for file in files:
        if file.remote is None and file.kind != "run" and file.name != STDIN:
            path = base / file.place
            yield from path.iterdir() if path.is_dir() else (path,)


def require_room(out: Destination | None, branches: int) -> None:
    """Raise InputError if a file cannot hold so many branches."""
    if isinstance(out, OutputFile):
        out.require_room(branches)


def require_room_for_rows(out: Destination | None, spec: RunSpec) -> None:
    """Raise InputError if a file cannot hold the branches of an input of rows.

    These are counted before the first call. Others, such as PDF files, would take long.
    """
    most = out.most_branches if isinstance(out, OutputFile) else None
    if most is None or not has_only_rows(spec):
        return
    documents = checked_documents(spec, None, notify=lambda _notice: None)
    chunks = split_documents(documents, splitter_of(spec))
    counted = sum(1 for _ in islice(chunks, most // spec.branches_per_chunk + 1))
    require_room(out, counted * spec.branches_per_chunk)


def warn_of_room(out: Destination | None, run: Run, progress: Progress) -> None:
    """Say of a run that has begun if its file cannot hold it: it is kept, for another file."""
    try:
        require_room(out, run.status().total)
    except InputError as error:
        progress.warn(f"{error}: `fanout results {run.run_id} --out FILE` writes it after the run")
