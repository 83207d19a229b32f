"""The server of forked.py: it imports what commands and workers import, and forks for each of them.

A job comes as one message, with the descriptors of its streams and of a socket that is told the process's
id and, in the end, its status.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import socket
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

_MAX_BYTES = 1 << 20
_NUMBER_BYTES = 4
_STREAMS = 3
_BIN = Path(sys.executable).parent
# Not workers.app, which reads the settings of its process.
_LOADED = (
    "celery.bin.worker",
    "celery.worker.components",
    "celery.worker.consumer",
    "fanout.cli.main",
    "fanout.cli.run",
    "fanout.client.client",
    "fanout.client.embedded.fleet",
    "workers.__main__",
    "workers.config",
    "workers.telemetry.logs",
)


def main() -> None:
    """Serve until the tests end, or become the process of a job."""
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        job = _serve(control)
    if job:
        _become(job)


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each job. Returns the job in its process, and None here once the tests have ended."""
    # By the descriptor that tells the end of a process.
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            ready = [key.fd for key, _ in selector.select()]
            for ended in running.keys() & set(ready):
                selector.unregister(ended)
                os.close(ended)
                _tell_end(*running.pop(ended))
            if control.fileno() not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(control, _MAX_BYTES, _STREAMS + 1)
            if not message:
                return None
            pid = os.fork()
            if not pid:
                _take(descriptors, running)
                return dict(json.loads(message))
            for stream in descriptors[:_STREAMS]:
                os.close(stream)
            state = socket.socket(fileno=descriptors[_STREAMS])
            _tell(state, pid)
            ended = os.pidfd_open(pid)
            running[ended] = (pid, state)
            selector.register(ended, selectors.EVENT_READ)


def _take(descriptors: list[int], others: dict[int, tuple[int, socket.socket]]) -> None:
    """Have the streams of a job in place of the server's; nothing of other processes stays open."""
    for number, stream in enumerate(descriptors[:_STREAMS]):
        os.dup2(stream, number)
    for descriptor in (*descriptors, *others):
        os.close(descriptor)
    for _, state in others.values():
        state.close()


def _tell_end(pid: int, state: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with state:
        _tell(state, os.waitstatus_to_exitcode(status))


def _tell(state: socket.socket, number: int) -> None:
    # The test may have ended.
    with contextlib.suppress(OSError):
        state.sendall(number.to_bytes(_NUMBER_BYTES, signed=True))


def _become(job: dict[str, Any]) -> None:
    """Run the program of a job as if it were executed."""
    if job["starts_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(job["env"])
    time.tzset()
    os.chdir(job["cwd"])
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [job["cwd"], *filter(None, more)]
    importlib.invalidate_caches()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream.isatty())
    _PROGRAMS[job["program"]](job["words"])


def _worker(words: list[str]) -> None:
    from workers.__main__ import main as run

    sys.argv = [run.__code__.co_filename, *words]
    run()


def _command(words: list[str]) -> None:
    from fanout.cli import main as run

    sys.path[0] = str(_BIN)
    sys.argv = [str(_BIN / "fanout"), *words]
    run()


def _script(words: list[str]) -> None:
    """Run the file that is the first word; each warning is an error."""
    warnings.simplefilter("error")
    path = Path(words[0])
    sys.path[0] = str(path.resolve().parent)
    sys.argv = words
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)


_PROGRAMS = {"fanout": _command, "script": _script, "workers": _worker}


if __name__ == "__main__":
    main()
