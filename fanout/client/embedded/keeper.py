"""The process that keeps the embedded server: ``keeper.py FOLDER SOCKET BINARY KEEPS``.

It starts the server, restarts it if it dies, and ends it when no client holds the lock on
``users.lock``. Each folder has one keeper, which may be killed at any time: the server then ends in
order, and the next keeper starts it again. (Off Linux the server goes on, and the next keeper takes it
over.) If KEEPS is ``no``, the folder is deleted with the server. It starts fast: it imports little, and
nothing of this package, and runs with ``python -I -S``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys
import time

__all__ = ["main"]

_LOOK_S = 0.2
_STOP_S = 60.0
_LOOKS = 5
# A server that dies so soon after its start counts as one that does not start.
_SOON_S = 5.0
_MOST_DEATHS = 3
# Bytes: more than a server takes in the second between two of its writes to the disk.
_MOST_DAMAGE = 64_000_000
# <linux/prctl.h>: the signal that a process gets when its parent has died.
_PR_SET_PDEATHSIG = 1
# Databases cost nothing before they are used.
_DATABASES = 16_384


def main(folder: str, address: str, binary: str, keeps: str) -> int:
    """Keep the server while a client uses it; return the exit status."""
    os.umask(0o077)
    os.closerange(3, 4096)
    # Clients that check the lock hold it for a moment.
    for _ in range(_LOOKS):
        keeper = _try_lock(f"{folder}/keeper.lock")
        if keeper is not None:
            break
        time.sleep(0.01)
    else:
        return 0
    # The child holds the lock too. The client that started this process stops waiting.
    if os.fork():
        os._exit(0)
    os.setsid()
    _lift_limits()
    server = _ServerProcess(folder, address, binary, keeps=keeps)
    try:
        return _keep(server, _open(f"{folder}/users.lock"))
    finally:
        if keeps == "no":
            from shutil import rmtree

            rmtree(folder, ignore_errors=True)


def _keep(server: _ServerProcess, users: int) -> int:
    deaths = 0
    while deaths < _MOST_DEATHS:
        began_at = time.monotonic()
        server.start()
        while server.is_alive():
            if _take(users):
                # A client that starts now waits for this lock, and then starts a new keeper.
                server.stop()
                return 0
            time.sleep(_LOOK_S)
        deaths = deaths + 1 if time.monotonic() - began_at < _SOON_S else 0
        if _take(users):
            return 0
        if deaths == 1:
            server.cut_damage()
    return 1


class _ServerProcess:
    """The server's process. It holds a lock as long as it lives, whichever keeper started it."""

    def __init__(self, folder: str, address: str, binary: str, *, keeps: str) -> None:
        self._lock = f"{folder}/server.lock"
        self._looked_at = _open(self._lock)
        self._data = f"{folder}/data"
        self._address = address
        self._child: int | None = None
        self._command = [binary, *_options(self._data, address, keeps)]

    def start(self) -> None:
        """Start it, unless the server of an earlier keeper runs."""
        lock = _try_lock(self._lock)
        if lock is None:
            return
        os.makedirs(self._data, mode=0o700, exist_ok=True)  # noqa: PTH103 - pathlib starts slowly
        os.set_inheritable(lock, True)  # noqa: FBT003 - it takes nothing else
        keeper = os.getpid()
        self._child = os.fork()
        if not self._child:
            try:
                _end_with(keeper)
                os.execv(self._command[0], self._command)  # noqa: S606 - our own server
            finally:
                os._exit(127)
        os.close(lock)

    def is_alive(self) -> bool:
        """Return whether the server process is alive."""
        with contextlib.suppress(ChildProcessError):
            if self._child is not None and os.waitpid(self._child, os.WNOHANG) != (0, 0):
                self._child = None
        # By its file descriptor, not its name, as the folder may have been deleted meanwhile.
        is_there = not _take(self._looked_at)
        if not is_there:
            fcntl.flock(self._looked_at, fcntl.LOCK_UN)
        return is_there

    def stop(self) -> None:
        """Make the server save its data and end."""
        until = time.monotonic() + _STOP_S
        if self._child is not None:
            os.kill(self._child, signal.SIGTERM)
        elif self._is_at_its_place():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_STOP_S)
                client.connect(self._address)
                client.sendall(b"SHUTDOWN\r\n")
                client.recv(64)
        while self.is_alive() and time.monotonic() < until:
            time.sleep(0.01)

    def _is_at_its_place(self) -> bool:
        """Return whether the process that listens at the address is this server."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self._lock), os.fstat(self._looked_at))  # noqa: PTH116
        return False

    def cut_damage(self) -> None:
        """Cut off an unreadable end of its file, and keep a copy of the file.

        A power failure may leave zeros or half of the last writes there. Larger damage is left alone.
        """
        import re
        import shutil
        import subprocess

        folder = f"{self._data}/appendonlydir"
        with contextlib.suppress(OSError):
            with open(f"{folder}/appendonly.aof.manifest") as manifest:  # noqa: PTH123 - as above
                files = re.findall(r"^file (\S+) seq \d+ type i", manifest.read(), re.MULTILINE)
            for name in files[-1:]:
                path = f"{folder}/{name}"
                checker = ["valkey-check-aof", path]
                checked = subprocess.run(  # noqa: S603 - the server's program, by its other name
                    checker, executable=self._command[0], stdout=subprocess.PIPE, check=False
                )
                match = re.search(rb"ok_up_to=(\d+), .*diff=(\d+)", checked.stdout)
                if match and 0 < int(match[2]) <= _MOST_DAMAGE:
                    shutil.copyfile(path, f"{self._data}/{name}.damaged")
                    os.truncate(path, int(match[1]))
                    # To the server's log.
                    os.write(
                        1, b"%b damaged bytes were cut off %b\n" % (match[2], os.fsencode(path))
                    )


def _options(data: str, address: str, keeps: str) -> list[str]:
    options = {
        # No port: only users who may enter the socket's folder can use the server.
        "port": "0",
        "unixsocket": address,
        "unixsocketperm": "700",
        "databases": str(_DATABASES),
        "dir": data,
        "save": "",
        "appendonly": keeps,
        "appendfsync": "everysec",
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "64mb",
        "aof-load-truncated": "yes",
        "maxmemory-policy": "noeviction",
        "maxclients": "10000",
        "loglevel": "warning",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _end_with(keeper: int) -> None:
    """Have the kernel signal this process to end when its keeper dies."""
    if sys.platform != "linux":
        return
    # A Python that was built without libffi lacks it: then it is as elsewhere.
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != keeper:
        # The keeper died before the call.
        os._exit(0)


def _lift_limits() -> None:
    """Free the server, which serves all clients, of the limits of the one that started it."""
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
        hard = resource.getrlimit(kind)[1]
        try:
            # Only root may. Of open files, the server needs no more than its clients.
            most = 65_536 if kind == resource.RLIMIT_NOFILE else resource.RLIM_INFINITY
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (hard, hard))


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock(path: str) -> int | None:
    lock = _open(path)
    if _take(lock):
        return lock
    os.close(lock)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
