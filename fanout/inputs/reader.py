"""The reading of documents by workers: a function that runs have as their model.

The prompt of a branch is a request: the path or the URL of one file. The answer is the document as
JSON, with its pages and headings. The documents of ``run:RUN`` are those that such a run has read.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from fanout.core.errors import InputError, LLMError, SpecError
from fanout.core.records import ErrorKind
from fanout.core.settings import load_settings
from fanout.core.spec import RunSpec, make_spec
from fanout.core.store_urls import missing_package
from fanout.inputs.documents.copies import TooLargeError, copy_file, file_name
from fanout.inputs.documents.parsed import Parsed, Request
from fanout.inputs.documents.parsing import ParserPool
from fanout.inputs.documents.remote import RemoteError, one_line, open_remote, remote_file
from fanout.inputs.documents.shared_parsers import SharedParsers
from fanout.system.resources import usable_cores
from fanout.system.threads import ReadyThreads

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ReadRequest", "read", "reading_fields"]

# The fields of a job that say how one document is read; a request passes those that were given.
_FIELDS = ("max_document_mb", "encoding", "parse_timeout_s")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?:/|:)")
_FILE_URL = "file://"
# Files here are no documents: they show processes and devices, of which some never end.
_SYSTEM = ("/proc", "/sys", "/dev")
# Errors of stores that a further attempt gives again.
_FINAL = (
    FileNotFoundError, PermissionError, IsADirectoryError, ValueError, TypeError, NotImplementedError,
)  # fmt: skip
# Branches that must fail before a run is stopped in which no worker can parse.
_FEW = 3


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file to read.

    Attributes:
        source: Its absolute path, or its URL.
        fields: How: fields of a job, such as ``max_document_mb``.
    """

    source: str
    fields: dict[str, Any] = {}

    def to_prompt(self) -> str:
        """Return the request as the prompt of a branch."""
        return msgspec.json.encode(self).decode()


def reading_fields(spec: RunSpec) -> dict[str, Any]:
    """Return the fields of a job that its workers need for reading, without those not given."""
    given = {name: getattr(spec, name) for name in _FIELDS}
    return {name: value for name, value in given.items() if value is not None}


async def read(prompt: str) -> str:
    """Read one document that this machine can reach; the model of runs that read documents.

    As many documents are parsed at once as there are cores, and one more is fetched. Other calls
    wait for their turn, and block nothing.

    Args:
        prompt: A path, a URL that fsspec knows, or a ``ReadRequest`` as JSON.

    Returns:
        The document as JSON: ``{"text": ..., "pages": [...], "headings": [[0, "..."], ...]}``, with
        the attributes of ``Document``.

    Raises:
        LLMError: The file cannot be reached (kind ``connection``, which is tried again), or it is
            no document that can be used (``bad_request``).
    """
    return await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), _read, prompt)


@cache
def _threads(_pid: int) -> ReadyThreads:
    # By process: a forked child has no threads of its parent.
    return ReadyThreads(usable_cores() + 1, "fanout-read", first=1)


@cache
def _parsers(_pid: int) -> SharedParsers[ParserPool]:
    return SharedParsers(lambda: ParserPool(processes=1))


def _read(prompt: str) -> str:
    request = _request(prompt)
    spec = _spec(request)
    with _local(request.source) as path:
        parsed = _parsed(path, spec)
    if parsed.error is not None:
        _refuse(parsed.error)
    answer = msgspec.json.encode(msgspec.structs.replace(parsed, is_last=False)).decode()
    # The same JSON. A tag that ends reasoning would be taken for that of a model.
    return answer.replace("</", "<\\/")


def _parsed(path: Path, spec: RunSpec) -> Parsed:
    wanted = Request(
        path=str(path),
        name=path.name,
        max_bytes=int(spec.max_document_mb * 1_000_000),
        timeout_s=spec.parse_timeout_s,
        encoding=spec.encoding,
    )
    try:
        with _parsers(os.getpid()).lent() as parser:
            return parser.parse(wanted)
    except InputError as error:
        # No parser starts here. Another worker may have one.
        raise LLMError(ErrorKind.INTERNAL, str(error), stop_after=_FEW) from error


def _spec(request: ReadRequest) -> RunSpec:
    fields = {name: value for name, value in request.fields.items() if name in _FIELDS}
    try:
        return make_spec(model="fake", prompt="{input}", **fields)
    except SpecError as error:
        _refuse(f"the request to read it is wrong: {error}")


def _refuse(reason: str) -> NoReturn:
    """Fail the branch for good: no further call would help, and no other document is concerned."""
    raise LLMError(ErrorKind.BAD_REQUEST, reason, stop_after=0, is_own=True)


def _request(prompt: str) -> ReadRequest:
    text = prompt.strip()
    if not text.startswith("{"):
        return ReadRequest(source=text)
    try:
        return msgspec.json.decode(text, type=ReadRequest)
    except msgspec.DecodeError as error:
        _refuse(f"the prompt must be a path, a URL, or a request to read one: {error}")


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """Give the path of a file; one with a URL is fetched for as long."""
    if not _URL.match(source) or source.startswith(_FILE_URL):
        _require_allowed("file")
        yield _regular(Path(source.removeprefix(_FILE_URL)))
        return
    if "::" in source:
        _refuse("chained URLs are not read by workers")
    _require_allowed(source.partition(":")[0])
    with tempfile.TemporaryDirectory(prefix="fanout-read-") as folder:
        # By its name, as that may tell its kind.
        path = Path(folder) / file_name(source.partition("?")[0])
        _fetch(source, path)
        yield path


@cache
def _allowed(_pid: int) -> tuple[str, ...]:
    return load_settings().read_schemes


def _require_allowed(scheme: str) -> None:
    """Refuse a URL whose scheme the settings do not list: a run must not choose any host."""
    allowed = _allowed(os.getpid())
    if scheme not in allowed and "*" not in allowed:
        what = "files" if scheme == "file" else f"{scheme}:// URLs"
        _refuse(
            f"workers do not read {what}: FANOUT_READ_SCHEMES where they run lists only "
            f"{', '.join(allowed) or 'nothing'}"
        )


def _regular(path: Path) -> Path:
    if not path.is_absolute():
        _refuse(f"{path} is no absolute path: workers have other working directories")
    try:
        real = path.resolve(strict=True)
        is_regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, ValueError) as error:
        # A name with a NUL is a ValueError.
        _refuse(f"the worker cannot read it: {one_line(error)}")
    if not is_regular or any(real.is_relative_to(top) for top in _SYSTEM):
        _refuse("it is no regular file")
    return path


def _fetch(url: str, path: Path) -> None:
    """Copy a file from where its URL is."""
    from fsspec.implementations.local import LocalFileSystem

    try:
        # What was listed before, by this process, may have changed.
        remote = remote_file(url, use_listings_cache=False)
        if isinstance(remote.store, LocalFileSystem):
            _refuse("a file of the worker's machine is named by its absolute path")
        with open_remote(remote) as there, path.open("wb") as here:
            copy_file(there, here)
    except ImportError as error:
        fix = missing_package(url.partition("://")[0], str(error))
        _refuse(f"{fix} where the workers run")
    except FileNotFoundError as error:
        _refuse(f"the worker cannot read it: {error.strerror}")
    except TooLargeError as error:
        _refuse(str(error.strerror))
    except RemoteError as error:
        _refuse_or_retry(error)
    except OSError as error:
        # Of the copy, as on a disk that is full.
        raise LLMError(ErrorKind.CONNECTION, f"the file cannot be fetched: {error}") from None


def _refuse_or_retry(error: RemoteError) -> NoReturn:
    if isinstance(error.error, _FINAL):
        _refuse(f"the worker cannot read it: {error}")
    has_rights = "Credentials" not in type(error.error).__name__
    kind = ErrorKind.CONNECTION if has_rights else ErrorKind.AUTH
    raise LLMError(kind, f"the file cannot be fetched: {error}")
