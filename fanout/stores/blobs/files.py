"""Blob storage in files: in a shared folder, in S3, or in any other store that fsspec supports."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import time
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from fanout.core.errors import FanoutError, LostDataError, SettingsError, StorageError
from fanout.core.ids import run_of
from fanout.core.redaction import redacted
from fanout.core.store_urls import OBJECT_STORES, missing_package
from fanout.stores.blobs.base import (
    MARKER,
    RUN_MARKER,
    Blobs,
    Reference,
    run_marker,
    valid_storage_id,
)
from fanout.stores.retrying import call_with_retries

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FileBlobs", "check_storage", "load_elsewhere", "make_blobs"]

_T = TypeVar("_T")

# Seconds of retries for callers that do not wait for the server either.
_SHORT_S = 3.0
# Files of runs end with the token of their reference; some are unfinished.
_OURS = re.compile(r"\.[0-9a-f]{8}(\.unfinished)?\Z")
_RUN = re.compile(r"[\w-]+(/s\d+)?", re.ASCII)
_MOST_WORDS = 200
_MOST_CLAIMED = 10_000
_CLAIMED_S = 60.0

_log = logging.getLogger(__name__)


def make_blobs(storage: str | None, *, patience_s: float = _SHORT_S) -> Blobs:
    """Return the blob storage: the folder or URL ``storage``, or the run store if it is None.

    Args:
        storage: The value of ``FANOUT_STORAGE``.
        patience_s: Seconds of retries if the storage does not answer.
    """
    if storage is None:
        return Blobs(patience_s=patience_s)
    return FileBlobs(storage, patience_s=patience_s)


def check_storage(storage: str | None) -> None:
    """Make sure that files can be written to the storage, read and deleted.

    Raises:
        SettingsError: They cannot, or a package is missing; the message says what to do.
    """
    if storage is None:
        return
    blobs = FileBlobs(storage, patience_s=0.0)
    name = f"check-{secrets.token_hex(4)}"
    try:
        held = blobs.keep(name, b"fanout")
        blobs.load(name, held)
        blobs.drop(name, held)
    except (LostDataError, StorageError) as error:
        raise SettingsError(f"FANOUT_STORAGE: {error}") from None


class FileBlobs(Blobs):
    """Keeps blobs in files. Safe to share between threads.

    Args:
        root: An existing folder, or a URL that fsspec supports.
        patience_s: Seconds of retries if the storage does not answer.
    """

    _known_ids: ClassVar[dict[str, str]] = {}
    # By run folder: monotonic time until which its marker is assumed to exist.
    _claimed: ClassVar[dict[str, float]] = {}

    def __init__(self, root: str, *, patience_s: float = _SHORT_S) -> None:
        super().__init__(patience_s=patience_s)
        self.root = self._where = root.rstrip("/")

    @property
    def known_id(self) -> str | None:
        """See Blobs. All stores of this process share it."""
        return self._known_ids.get(self._where)

    @known_id.setter
    def known_id(self, storage_id: str | None) -> None:
        if storage_id is not None:
            self._known_ids[self._where] = storage_id

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        # Opened on first use: the import of an S3 client takes a second, and few processes need it.
        return _open(self._where)

    def claim(self, run_id: str) -> None:
        """See Blobs."""
        self._patiently(lambda: self._claim(run_id), "written to")

    def _claim(self, run_id: str) -> None:
        path, key = f"{run_id}/{RUN_MARKER}", f"{self._where}/{run_id}"
        fs, base = self._opened
        # In a folder the check is cheap compared with the write. In an object store it is cached for
        # a while: only the deletion of the run removes the marker.
        if not self._is_folder and self._claimed.get(key, 0.0) > time.monotonic():
            return
        if not fs.exists(f"{base}/{path}"):
            storage_id = self._storage_id()
            if storage_id is None:
                raise OSError(errno.ENOENT, f"it has no id: see {MARKER} in it")
            self._write(path, run_marker(run_id, storage_id))
        if len(self._claimed) >= _MOST_CLAIMED:
            self._claimed.clear()
        self._claimed[key] = time.monotonic() + _CLAIMED_S

    def _storage_id(self) -> str | None:
        return self.known_id or self._marker()

    def keep(self, name: str, blob: bytes) -> bytes:
        """See Blobs."""
        reference = Reference(root=self._where, token=secrets.token_hex(4))
        self._patiently(lambda: self._write(_file(name, reference), blob), "written to")
        return reference.encode()

    def load(self, name: str, held: bytes) -> bytes:
        """See Blobs."""
        reference = Reference.decode(held)
        if reference is None or reference.root != self._where:
            return super().load(name, held)
        return self.read(name, reference)

    def read(self, name: str, reference: Reference) -> bytes:
        """Return a file under this root. Raises LostDataError, StorageError."""
        path = _file(name, reference)

        def step() -> bytes:
            fs, base = self._opened
            try:
                blob: bytes = fs.cat_file(f"{base}/{path}")
            except FileNotFoundError:
                self._require_root()
                raise LostDataError(
                    f"{self._where}/{path} is not there: the storage has lost it, or is another "
                    "one on this machine"
                ) from None
            return blob

        return self._patiently(step, "read from")

    def marker(self) -> str | None:
        """See Blobs."""
        return self._patiently(self._marker, "read from", patience_s=0.0)

    def _marker(self) -> str | None:
        fs, base = self._opened
        try:
            return valid_storage_id(fs.cat_file(f"{base}/{MARKER}"))
        except FileNotFoundError:
            return None

    def mark(self, storage_id: str) -> None:
        """See Blobs."""
        self._patiently(lambda: self._write(MARKER, f"{storage_id}\n".encode()), "written to")

    def drop(self, name: str, held: bytes) -> None:
        """See Blobs."""
        reference = Reference.decode(held)
        if reference is None or reference.root != self._where:
            return
        try:
            fs, base = self._opened
            fs.rm_file(f"{base}/{_file(name, reference)}")
        except Exception as error:  # noqa: BLE001 - it is deleted with its run
            _log.debug("a file of the storage stays for now: %s", type(error).__name__)

    def drop_all(self, folder: str) -> bool:
        """See Blobs."""
        if not _RUN.fullmatch(folder):
            raise StorageError(f"no folder of a run: {folder!r}")
        return self._patiently(lambda: self._drop_all(folder), "deleted from")

    def _drop_all(self, folder: str) -> bool:
        fs, base = self._opened
        self._require_root()
        try:
            files = fs.find(f"{base}/{folder}")
        except FileNotFoundError:
            files = []
        if not files:
            return True
        run_id = run_of(folder)
        problem = self._foreign(run_id, files)
        if problem is not None:
            # A user of the server may have named a folder that belongs to another program.
            _log.warning("%s/%s is left where it is: %s", self._where, folder, problem)
            return False
        blobs = [file for file in files if not file.endswith(f"/{RUN_MARKER}")]
        with suppress(FileNotFoundError):
            if blobs:
                fs.rm(blobs)
            # The marker last: after a crash before it, the folder is still marked as the run's.
            fs.rm(f"{base}/{folder}", recursive=True)
        if folder == run_id:
            self._claimed.pop(f"{self._where}/{run_id}", None)
        return True

    def _foreign(self, run_id: str, files: list[str]) -> str | None:
        """Return why files are not those of a run in this storage, or None if they are."""
        fs, base = self._opened
        marker = f"{base}/{run_id}/{RUN_MARKER}"
        storage_id = self._storage_id()
        try:
            found = fs.cat_file(marker)
        except FileNotFoundError:
            return f"it has no {RUN_MARKER}, so it may be no run's"
        if storage_id is None or found != run_marker(run_id, storage_id):
            return f"its {RUN_MARKER} names another run or storage"
        if not all(_OURS.search(file) or file == marker for file in files):
            return "not all of it is the run's"
        return None

    def _write(self, path: str, blob: bytes) -> None:
        fs, base = self._opened
        self._require_root()
        where = f"{base}/{path}"
        if self._is_folder:
            _write_to_disk(Path(where), blob)
            return
        if not OBJECT_STORES.intersection(_protocols(fs)):
            fs.makedirs(where.rpartition("/")[0], exist_ok=True)
        # A partial file does no harm: nothing refers to it before it is complete.
        fs.pipe_file(where, blob)

    @property
    def _is_folder(self) -> bool:
        return "file" in _protocols(self._opened[0])

    def _require_root(self) -> None:
        """Raise OSError if the folder is not mounted or is another one: no file is lost then."""
        base = self._opened[1]
        if not self._is_folder:
            return
        if not Path(base).is_dir():
            raise OSError(errno.ENOENT, "the folder is not there: make it, or mount it")
        if self.known_id is not None and self._marker() != self.known_id:
            raise OSError(errno.ENOENT, f"it is another one, or not mounted: see {MARKER} in it")

    def _patiently(
        self, step: Callable[[], _T], what: str, *, patience_s: float | None = None
    ) -> _T:
        def attempt() -> _T:
            try:
                return step()
            except FanoutError:
                raise
            except Exception as error:  # noqa: BLE001 - raised again as StorageError
                # S3's client raises errors of any class. Their texts may quote secrets.
                raise StorageError(
                    f"{self._where} cannot be {what}: {_words(error)}", is_passing=True
                ) from None

        longest_s = self._patience_s if patience_s is None else patience_s
        return call_with_retries(attempt, patience_s=longest_s, is_worth=_is_away)


def _is_away(error: BaseException) -> bool:
    return isinstance(error, StorageError)


def load_elsewhere(name: str, reference: Reference, *, patience_s: float) -> bytes:
    """Return a file of a run that was stored under another root than this process's.

    Raises:
        LostDataError: There is no such file.
        StorageError: The storage does not answer, or is of a kind that must be set here, too.
    """
    scheme = reference.root.partition("://")[0] if "://" in reference.root else "file"
    # A fsspec URL may chain protocols, for example a proxy: only the user's own settings may do so.
    if scheme not in {"file", *OBJECT_STORES} or "::" in reference.root:
        raise StorageError(
            f"the run keeps its files under {reference.root}: set FANOUT_STORAGE to that"
        )
    return _elsewhere(reference.root, patience_s).read(name, reference)


@lru_cache(maxsize=8)
def _elsewhere(root: str, patience_s: float) -> FileBlobs:
    return FileBlobs(root, patience_s=patience_s)


def _file(name: str, reference: Reference) -> str:
    return f"{name}.{reference.token}"


def _open(root: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    scheme = root.partition("://")[0]
    try:
        # Without cached listings, as other processes also write here.
        fs, base = url_to_fs(root, use_listings_cache=False)
    except ImportError as error:
        fix = missing_package(scheme, _words(error))
        raise SettingsError(f"FANOUT_STORAGE: {fix}") from None
    except ValueError as error:
        raise SettingsError(
            f"FANOUT_STORAGE: {scheme}:// is nothing that can be written to: {_words(error)}"
        ) from None
    return fs, str(base).rstrip("/")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _write_to_disk(path: Path, blob: bytes) -> None:
    """Write a file durably: like its reference, it survives a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _words(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(redacted(str(text)).split())[:_MOST_WORDS]
    return line or type(error).__name__
