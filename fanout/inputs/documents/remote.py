"""Files behind URLs that fsspec knows, such as ``s3://bucket/folder/*.parquet``."""

from __future__ import annotations

import errno
import glob
import io
import re
import time
from typing import Any, BinaryIO, NamedTuple, cast

from fanout.core.errors import InputError
from fanout.core.redaction import learn, redacted
from fanout.core.store_urls import missing_package
from fanout.inputs.documents.urls import StoreRoot, shown

__all__ = [
    "Remote",
    "RemoteError",
    "named",
    "one_line",
    "open_remote",
    "remote_file",
    "remote_paths",
]

_BUFFER_BYTES = 1_000_000
# What web servers answer if there is no such file, or no more.
_MISSING = (404, 410)
# Seconds without a byte after which a web server is given up, and seconds of waiting in which any
# store must have given so many bytes.
_SILENT_S = 60.0
_SLOW_S = 60.0
_SLOW_BYTES = 60_000
# What a client quotes.
_QUOTED = re.compile(r"""\bb(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
_MOST_WORDS = 300
# Of these, only the address itself is read: they have no folders.
_NO_FOLDERS = frozenset({"http", "https"})


class RemoteError(OSError):
    """A store did not give what was asked of it; the message is one line without credentials.

    Attributes:
        error: The error of its client, which may be of any class.
    """

    def __init__(self, error: BaseException) -> None:
        message = one_line(error)
        super().__init__(message)
        self.strerror = message
        self.error = error


class Remote(NamedTuple):
    """A file behind a URL.

    Attributes:
        store: The fsspec file system. All files of an input share it.
        path: The file's path there.
        name: The URL, without credentials.
        root: The place that the user named, which tells the URLs of all files there.
    """

    store: Any
    path: str
    name: str
    root: StoreRoot

    @property
    def url(self) -> str:
        """Its URL as it is: one that is signed holds a key."""
        return _url(self.store, self.root, self.path)

    def below(self, name: str) -> Remote:
        """Return a file in this folder."""
        return self._replace(path=f"{self.path}/{name}", name=f"{self.name}/{name}")


def one_line(error: BaseException) -> str:
    """Return the reason of an error as one short line without credentials."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # A client may quote what the file holds.
    line = " ".join(redacted(_QUOTED.sub("...", str(text))).split())
    line = line if len(line) <= _MOST_WORDS else f"{line[:_MOST_WORDS]}..."
    return line or type(error).__name__


def remote_paths(url: str) -> tuple[Remote, list[str] | None]:
    """Look up a URL: a file, a folder, or a pattern.

    Returns:
        The place; and, for a folder or pattern, the paths of all files in it, sorted. They are None
        for a single file.

    Raises:
        InputError: There is nothing there, it cannot be asked, or a package is missing.
    """
    # Stores may quote any part of it.
    learn(url)
    try:
        place = remote_file(url)
    except ImportError as error:
        reason = missing_package(url.partition(":")[0].lower(), one_line(error))
        raise InputError(reason, source=shown(url)) from None
    except RemoteError as error:
        raise InputError(f"is no URL that can be read: {error}", source=shown(url)) from None
    store, path = place.store, place.path
    try:
        if url.partition("://")[0].lower() in _NO_FOLDERS:
            store.info(path)
            return place, None
        # What was listed before, by this process, may have changed.
        store.invalidate_cache()
        if store.isfile(path):
            return place, None
        if store.isdir(path):
            return place, sorted(store.find(path))
        if glob.has_magic(path):
            found = store.glob(path, detail=True)
            return place, sorted(name for name, one in found.items() if one["type"] == "file")
    except FileNotFoundError as error:
        if (other := _other_reason(error)) is not None:
            raise InputError(f"cannot be read: {one_line(other)}", source=place.name) from None
    except Exception as error:  # noqa: BLE001 - each store has errors of its own
        raise InputError(f"cannot be read: {one_line(error)}", source=place.name) from None
    raise InputError("there is no such file or folder", source=place.name)


def named(place: Remote, path: str) -> Remote:
    """Return a file that was found in a folder or by a pattern."""
    return place._replace(path=path, name=shown(_url(place.store, place.root, path)))


def _url(store: Any, root: StoreRoot, path: str) -> str:
    return root.url(path) or str(store.unstrip_protocol(path))


def remote_file(url: str, **options: Any) -> Remote:
    """Return the file of a URL, without asking its store whether it is there.

    Args:
        url: The URL.
        options: Options of the fsspec file system.

    Raises:
        ImportError: A package is missing.
        RemoteError: The URL is wrong, or its store has no client.
    """
    from fsspec.core import url_to_fs

    try:
        if "::" not in url and url.partition("://")[0].lower() in _NO_FOLDERS:
            options = {**options, "client_kwargs": _web_options()}
        store, path = url_to_fs(url, **options)
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - each store has errors of its own
        raise RemoteError(error) from None
    return Remote(store, str(path), shown(url), StoreRoot(url, str(path)))


def _web_options() -> dict[str, Any]:
    # Other clients, such as those of S3, have such limits of their own.
    from aiohttp import ClientTimeout

    return {
        "timeout": ClientTimeout(total=5 * _SILENT_S, sock_read=_SILENT_S, sock_connect=_SILENT_S)
    }


def open_remote(remote: Remote, *, is_sequential: bool = True) -> BinaryIO:
    """Open a file, to be read in parts. Raises OSError, with one line without credentials.

    A store reads ahead, unless ``is_sequential`` says that this is in vain.
    """
    options: dict[str, Any] = {} if is_sequential else {"cache_type": "none"}
    try:
        if remote.path.partition("://")[0].lower() in _NO_FOLDERS and not _takes_ranges(remote):
            options = {"block_size": 0}
        raw = remote.store.open(remote.path, "rb", **options)
    except FileNotFoundError as error:
        if (other := _other_reason(error)) is not None:
            raise RemoteError(other) from None
        raise FileNotFoundError(errno.ENOENT, "there is no such file") from None
    except Exception as error:  # noqa: BLE001 - each store has errors of its own
        raise RemoteError(error) from None
    return cast("BinaryIO", io.BufferedReader(_Raw(raw), _BUFFER_BYTES))


def _other_reason(error: FileNotFoundError) -> BaseException | None:
    """Return what a client took for a missing file, such as an error of the server; None: it is."""
    cause = error.__cause__
    is_missing = isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in _MISSING
    return None if is_missing else cause


def _takes_ranges(remote: Remote) -> bool:
    """Say whether a web server gives parts of a file; from others, it comes in one stream."""
    with remote.store.open(remote.path, "rb", cache_type="none") as file:
        if file.size is None:
            return True
        file.seek(min(1, file.size))
        try:
            file.read(1)
        except ValueError:
            return False
    return True


class _Raw(io.RawIOBase):
    """A file of fsspec whose errors are all RemoteErrors."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._waited_s = 0.0
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable()) and self.size is not None

    def readinto(self, buffer: Any) -> int:
        began_at = time.monotonic()
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            raise RemoteError(error) from None
        self._waited_s += time.monotonic() - began_at
        self._bytes += len(data)
        if self._waited_s > _SLOW_S:
            if self._bytes < _SLOW_BYTES:
                words = (
                    f"it gave {self._bytes:,} bytes in {self._waited_s:.0f} s, which is too slow"
                )
                raise RemoteError(TimeoutError(words))
            self._waited_s, self._bytes = 0.0, 0
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return int(self._file.seek(offset, whence))
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            raise RemoteError(error) from None

    def tell(self) -> int:
        return int(self._file.tell())

    @property
    def size(self) -> int | None:
        """The size of the file in bytes, or None."""
        return getattr(self._file, "size", None)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
