"""Processes of this package that begin with what they import, forked from one that has imported it.

A command or a worker takes half of its CPU time to import its modules. Where tests start hundreds, a server
imports them once and forks for each. The process is otherwise as if it were executed: it has the words,
environment, working directory and streams it is given, and ends as an interpreter ends, except that its
modules are not taken down.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

__all__ = ["ForkServer", "Forked", "ask"]

_PROGRAM = Path(__file__).with_name("fork_server.py")
_NUMBER_BYTES = 4


class Forked:
    """A process of a fork server, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, state: socket.socket, words: list[str]) -> None:
        self._state = state
        self.args = words
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        told = self._state.recv(_NUMBER_BYTES, socket.MSG_WAITALL)
        if len(told) < _NUMBER_BYTES:
            self._state.close()
            raise RuntimeError("the fork server has ended")
        return int.from_bytes(told, signed=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Return what is left in its streams once it has ended; None for one that is no pipe.

        Raises TimeoutExpired if it has not ended in time.
        """
        streams = (self.stdout, self.stderr)
        read: dict[int, Any] = {}

        def take(number: int, stream: IO[Any]) -> None:
            with stream:
                read[number] = stream.read()

        takers = [
            threading.Thread(target=take, args=(number, stream), daemon=True)
            for number, stream in enumerate(streams)
            if stream and not stream.closed
        ]
        for taker in takers:
            taker.start()
        self.wait(timeout)
        for taker in takers:
            taker.join()
        return read.get(0), read.get(1)

    def poll(self) -> int | None:
        """Return the status, or None while the process runs; a signal that killed it is negative."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the status once the process has ended. Raises TimeoutExpired if it has not in time."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _ended(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._state], [], [], timeout_s)[0]:
            self.returncode = self._number()
            self._state.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def ask(
    server: socket.socket,
    job: Mapping[str, object],
    words: list[str],
    streams: tuple[int, int, int],
) -> Forked:
    """Have the server behind a socket fork for a job; ``streams`` are as for ``ForkServer.start``."""
    mine, its = socket.socketpair()
    with its:
        socket.send_fds(server, [json.dumps(job).encode()], [*streams, its.fileno()])
    return Forked(mine, words)


class ForkServer:
    """Starts processes of a server that it starts at the first; a context manager."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._control and self._server:
            self._control.close()
            self._server.wait(120)

    @property
    def pid(self) -> int | None:
        """The server's own process, which outlives the test that starts the first."""
        return self._server.pid if self._server else None

    def start(
        self,
        program: str,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        streams: tuple[int, int, int],
        starts_session: bool = False,
        forks_embedded: bool = False,
    ) -> Forked:
        """Start ``fanout``, ``workers`` or a ``script`` of Python with its words.

        Args:
            program: Which of the three. The first word of a script is its file; its warnings are errors.
            words: Its arguments.
            env: Its whole environment.
            cwd: Its working directory.
            streams: What it has copies of as standard input, output and error.
            starts_session: Whether it leads a session, and so a group of processes, of its own.
            forks_embedded: Whether what it starts embedded is forked, too. It is no child of its then.
        """
        with self._lock:
            control = self._control or self._begin()
        job = {
            "program": program,
            "words": list(words),
            "env": dict(env),
            "cwd": str(cwd),
            "starts_session": starts_session,
            "forks_embedded": forks_embedded,
        }
        return ask(control, job, [program, *words], streams)

    def popen(
        self,
        program: str,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = False,
        forks_embedded: bool = False,
    ) -> Forked:
        """Start what ``start`` starts, with the streams that ``subprocess.Popen`` takes and no input."""
        mine: list[int | None] = []
        its: list[int] = [os.open(os.devnull, os.O_RDONLY)]
        for number, stream in enumerate((stdout, stderr), start=1):
            read, write = None, number
            if stream == subprocess.PIPE:
                read, write = os.pipe()
            elif stream == subprocess.DEVNULL:
                write = os.open(os.devnull, os.O_WRONLY)
            elif stream is not None:
                write = os.dup(stream)
            mine.append(read)
            its.append(write)
        process = self.start(
            program,
            words,
            env=os.environ if env is None else env,
            cwd=cwd or Path.cwd(),
            streams=(its[0], its[1], its[2]),
            forks_embedded=forks_embedded,
        )
        for number, given in enumerate(its):
            if given != number:
                os.close(given)
        mode, encoding = ("r", "utf-8") if text else ("rb", None)
        process.stdout, process.stderr = (
            None if read is None else os.fdopen(read, mode, encoding=encoding) for read in mine
        )
        return process

    def _begin(self) -> socket.socket:
        self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The path of the first test's process is not that of all.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with its:
            self._server = subprocess.Popen(
                # Named as what it becomes: a test looks for what is left of fanout's processes.
                [sys.executable, str(_PROGRAM), str(its.fileno()), "fanout", "workers.app"],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**env, "TESTS_OWNER": str(os.getpid())},
            )
        return self._control
