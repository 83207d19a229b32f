"""The server of forked.py: it imports what commands and workers import, and forks for each of them.

A job comes as one message, with the descriptors of its streams and of a socket that is told the process's
id and, in the end, its status.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MAX_BYTES = 1 << 20
_NUMBER_BYTES = 4
_STREAMS = 3
# As an interpreter's that cannot write what its program has printed.
_UNFLUSHED = 120
_BACKENDS = "celery.result_backends"
_GUARD = "fanout.client.embedded.guard"
_BIN = Path(sys.executable).parent
# Not by its name: what is tested is what is installed, and the tests are not.
_ask = runpy.run_path(str(Path(__file__).with_name("forked.py")))["ask"]
# Not workers.app, which reads the settings of its process, and not uvloop, which a test replaces.
_LOADED = (
    "celery.app.control",
    "celery.app.log",
    "celery.bin.worker",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "encodings.idna",
    "fanout.cli.main",
    "fanout.cli.run",
    "fanout.client.client",
    "fanout.client.connections",
    "fanout.client.embedded.databases",
    "fanout.client.embedded.fleet",
    "fanout.client.run",
    "kombu.matcher",
    "workers.__main__",
    "workers.config",
    "workers.consumer.consumer",
    "workers.consumer.control_commands",
    "workers.consumer.liveness",
    "workers.consumer.mailbox",
    "workers.telemetry.logs",
)


def main() -> None:
    """Serve until the tests end, or become the process of a job."""
    for name in _LOADED:
        importlib.import_module(name)
    # Celery looks at what is installed once in a process.
    importlib.import_module("celery.utils.imports").load_extension_class_names(_BACKENDS)
    gc.freeze()
    forked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if not forked:
        return
    status: Any = None
    try:
        _become(*forked)
    except SystemExit as end:
        status = end.code
    _end(status)


def _end(status: Any) -> None:
    """End as an interpreter ends, except that what was imported stays.

    To take it down would copy most of the server's memory, and take half of the CPU time of a command.
    """
    if isinstance(status, str):
        sys.stderr.write(f"{status}\n")
    threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter does
    atexit._run_exitfuncs()
    program = vars(sys.modules["__main__"])
    if program is not globals():
        program.clear()
    # What is unreachable warns if it is open.
    gc.collect()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        os._exit(_UNFLUSHED)
    os._exit(int(bool(status)) if isinstance(status, str) else status or 0)


def _serve(control: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Fork for each job, and for those of what was forked.

    Returns the job in its process, with the descriptor to ask for others; None here once the tests
    have ended.
    """
    # By the descriptor that tells the end of a process.
    running: dict[int, tuple[int, socket.socket]] = {}
    askers = {control.fileno(): control}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while askers.get(control.fileno()) is control:
            ready = {key.fd for key, _ in selector.select()}
            for ended in running.keys() & ready:
                selector.unregister(ended)
                os.close(ended)
                _tell_end(*running.pop(ended))
            for number in askers.keys() & ready:
                message, descriptors, _, _ = socket.recv_fds(
                    askers[number], _MAX_BYTES, _STREAMS + 1
                )
                if not message:
                    selector.unregister(number)
                    askers.pop(number).close()
                    continue
                mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                pid = os.fork()
                if not pid:
                    _take(descriptors, running, [mine, *askers.values()])
                    # Only its number: what ends a program warns of sockets that are open.
                    return json.loads(message), its.detach()
                its.close()
                askers[mine.fileno()] = mine
                ended, state = _begun(pid, descriptors)
                running[ended] = (pid, state)
                selector.register(mine, selectors.EVENT_READ)
                selector.register(ended, selectors.EVENT_READ)
    return None


def _begun(pid: int, descriptors: list[int]) -> tuple[int, socket.socket]:
    """Tell of a process; return the descriptor that tells its end, and the socket that is told it."""
    for stream in descriptors[:_STREAMS]:
        os.close(stream)
    state = socket.socket(fileno=descriptors[_STREAMS])
    _tell(state, pid)
    return os.pidfd_open(pid), state


def _take(
    descriptors: list[int],
    others: dict[int, tuple[int, socket.socket]],
    askers: list[socket.socket],
) -> None:
    """Have the streams of a job in place of the server's; nothing of other processes stays open."""
    for number, stream in enumerate(descriptors[:_STREAMS]):
        os.dup2(stream, number)
    for descriptor in (*descriptors, *others):
        os.close(descriptor)
    for _, state in others.values():
        state.close()
    for asker in askers:
        asker.close()


def _tell_end(pid: int, state: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with state:
        _tell(state, os.waitstatus_to_exitcode(status))


def _tell(state: socket.socket, number: int) -> None:
    # The test may have ended.
    with contextlib.suppress(OSError):
        state.sendall(number.to_bytes(_NUMBER_BYTES, signed=True))


def _become(job: dict[str, Any], server: int) -> None:
    """Run the program of a job as if it were executed; a descriptor is of the server's socket."""
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
    popen: Callable[..., Any] = subprocess.Popen
    if job["forks_embedded"]:
        popen = _forking(server)
    else:
        os.close(server)
    _PROGRAMS[job["program"]](job["words"], popen)


def _forking(server: int) -> Callable[..., Any]:
    """Return what starts the guards of embedded workers and these workers as ``subprocess.Popen`` does."""

    def popen(
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes] = sys.stdout.buffer,
        stderr: IO[bytes] = sys.stderr.buffer,
        start_new_session: bool = False,
    ) -> Any:
        assert (command[:2], stdin) == ([sys.executable, "-m"], subprocess.PIPE)
        words = list(command[2:])
        job = {
            "program": words[0],
            "words": words[1:],
            "forks_embedded": words[0] == _GUARD,
            "env": dict(env),
            "cwd": str(Path.cwd()),
            "starts_session": start_new_session,
        }
        read, write = os.pipe()
        with os.fdopen(read) as given, socket.socket(fileno=os.dup(server)) as asked:
            streams = (given.fileno(), stdout.fileno(), stderr.fileno())
            process = _ask(asked, job, words, streams)
        process.stdin = os.fdopen(write, "wb")
        return process

    return popen


def _start_embedded_with(popen: Callable[..., Any]) -> None:
    from fanout.client.embedded import fleet

    vars(fleet)["subprocess"] = types.SimpleNamespace(**{**vars(subprocess), "Popen": popen})


def _guard(words: list[str], popen: Callable[..., Any]) -> None:
    vars(subprocess)["Popen"] = popen
    sys.argv[1:] = words
    runpy.run_module(_GUARD, run_name="__main__", alter_sys=True)


def _worker(words: list[str], _popen: Callable[..., Any]) -> None:
    from workers.__main__ import main as run

    sys.argv = [run.__code__.co_filename, *words]
    run()


def _patched(words: list[str], _popen: Callable[..., Any]) -> None:
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _command(words: list[str], popen: Callable[..., Any]) -> None:
    from fanout.cli import main as run

    _start_embedded_with(popen)
    sys.path[0] = str(_BIN)
    sys.argv = [str(_BIN / "fanout"), *words]
    run()


def _script(words: list[str], popen: Callable[..., Any]) -> None:
    """Run the file that is the first word; each warning is an error."""
    _start_embedded_with(popen)
    warnings.simplefilter("error")
    path = Path(words[0])
    sys.path[0] = str(path.resolve().parent)
    sys.argv = words
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)


_PROGRAMS = {
    "fanout": _command,
    "patched": _patched,
    "script": _script,
    "workers": _worker,
    _GUARD: _guard,
}


if __name__ == "__main__":
    main()
