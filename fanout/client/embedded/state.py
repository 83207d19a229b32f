"""The state folder of the embedded server: its files, locks, owner and format."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.core.errors import EmbeddedError
from fanout.system.file_locks import FileLock

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["FORMAT", "StateFolder", "format_problem"]

# The version of the folder's content. Raise it with a change that the version before cannot read, or
# that cannot read what the version before wrote. The wire format has a version of its own.
FORMAT = 1
# A socket's name has 108 bytes at most on Linux, 104 on macOS.
_LONGEST_SOCKET = 100
_PRIVATE = 0o077
_MARKER = "format.json"


class StateFolder:
    """The folder of one embedded server, which its user alone may enter.

    Attributes:
        path: The folder.
        socket: The address of the server.
        users: Every client holds a shared lock on this file; the server ends with the last one.
        keeper: The process that keeps the server holds a lock on this file.
        server: The server holds a lock on this file, whichever keeper started it.
        log: What the server and its keeper print.
        databases: A folder with a file for each database; its owner holds a lock on the file.
        data: The server's own files; the folder exists once a server has started.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = _socket(path)
        self.users = path / "users.lock"
        self.keeper = path / "keeper.lock"
        self.server = path / "server.lock"
        self.log = path / "server.log"
        self.databases = path / "databases"
        self.data = path / "data"

    @classmethod
    def open(cls, settings: Settings, *, wire: int) -> StateFolder:
        """Return the folder of the settings; create it if it does not exist.

        Args:
            settings: They have the path.
            wire: The version of the wire format.

        Raises:
            EmbeddedError: It cannot be used, other users may enter it, or another version of
                fanout has written it.
        """
        folder = cls(settings.state_dir.expanduser().absolute())
        try:
            _make_private(folder.path)
            if folder.socket.parent != folder.path:
                _make_private(folder.socket.parent, follows=False)
            folder.databases.mkdir(mode=0o700, exist_ok=True)
            with FileLock(folder.path / "format.lock"):
                folder.claim(wire)
        except OSError as error:
            raise EmbeddedError(
                f"embedded runs cannot be kept in {folder.path}: {error.strerror}; set "
                "FANOUT_STATE_DIR to a folder of yours"
            ) from error
        return folder

    @classmethod
    def temporary(cls) -> StateFolder:
        """Return a new folder, to be deleted with its server."""
        folder = cls(Path(tempfile.mkdtemp(prefix="fanout-")))
        folder.databases.mkdir(mode=0o700)
        return folder

    def claim(self, wire: int) -> None:
        """Write the format's version. Raises EmbeddedError if the folder has another one."""
        marker = self.path / _MARKER
        own = {"format": FORMAT, "wire": wire}
        text = marker.read_text() if marker.exists() else None
        if text is None and not self.data.is_dir():
            from importlib import metadata

            _write(marker, json.dumps({**own, "fanout": metadata.version("fanout-llm")}))
            return
        problem = format_problem(str(self.path), text, own)
        if problem is not None:
            raise EmbeddedError(problem)


def format_problem(folder: str, text: str | None, own: dict[str, int]) -> str | None:
    """Return why a folder with the marker ``text`` cannot be used, or None if it can."""
    try:
        marker = json.loads(text or "{}")
        known = {name: marker.get(name) for name in own}
    except (ValueError, AttributeError):
        marker, known = {}, {}
    if known == own:
        return None
    writer = f"fanout {marker['fanout']}" if marker.get("fanout") else "another program"
    formats = ", ".join(f"{name} {known.get(name, 'unknown')}" for name in own)
    mine = ", ".join(f"{name} {value}" for name, value in own.items())
    return (
        f"{writer} has written the embedded runs in {folder} ({formats}; this version reads {mine}); "
        "nothing there was changed: use that version for them, or set FANOUT_STATE_DIR to another "
        "folder for this one"
    )


def _write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves it complete or absent."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _make_private(path: Path, *, follows: bool = True) -> None:
    """Create a folder that only its user may enter, or check that it is one."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
    # A link in a folder that all users may write to may belong to another user.
    status = path.stat(follow_symlinks=follows)
    if not stat.S_ISDIR(status.st_mode):
        raise EmbeddedError(f"embedded runs cannot be kept: {path} is a link of somebody's")
    if status.st_uid != os.geteuid():
        raise EmbeddedError(
            f"embedded runs cannot be kept in {path}: it belongs to user {status.st_uid}, and not "
            f"to you ({os.geteuid()}); set FANOUT_STATE_DIR to a folder of yours"
        )
    if status.st_mode & _PRIVATE:
        if any(path.iterdir()):
            mode = f"{status.st_mode & 0o777:o}"
            raise EmbeddedError(
                f"embedded runs cannot be kept in {path}: others may enter it (mode {mode}); "
                f"`chmod 700 {path}`, or set FANOUT_STATE_DIR to a folder of yours"
            )
        path.chmod(0o700)


def _socket(path: Path) -> Path:
    """Return the address of a folder's server: a socket in it, unless the path is too long."""
    socket = path / "server.sock"
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET:
        return socket
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(f"/tmp/fanout-{os.geteuid()}-{digest}/server.sock")  # noqa: S108 - checked above
