"""Machines for tests: network namespaces, each with its own address, name and clock.

    with Hosts() as hosts:
        server, worker = hosts.add("server"), hosts.add("worker1")
        redis = server.start(["redis-server", "--bind", server.address], log=folder / "redis.log")
        worker.start(["fanout", "worker"], log=folder / "worker1.log", env={...})
        worker.cut()

A bridge connects them and this machine, which has the address ``hosts.address``. Each resolves the
names of the others. Nothing leaves the bridge. This needs Linux and root.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from signal import Signals
    from types import TracebackType
    from typing import Self

__all__ = ["Host", "Hosts", "Process", "why_not"]

_COMMANDS = ("ip", "unshare", "hostname", "mount")
# Names begin with the id of the creating process; names of links have at most 15 characters.
_MADE = re.compile(r"\bfo(\d+)x\d+\w*")
_numbers = count()
# As the same process throughout, so that a signal reaches what was asked for. ``ip`` gives it
# mounts of its own: names, and shared memory, of which a killed process leaves some behind.
_ENTER = """
hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs none /dev/shm || exit 125
shift 2
exec "$@"
"""
# The dynamic linker knows what $LIB is.
_CLOCK = "/usr/$LIB/faketime/libfaketimeMT.so.1"
_SKEWED = Path(__file__).with_name("skewed")


def why_not() -> str | None:
    """Return why hosts are impossible on this machine, or None if they are possible."""
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        return f"network namespaces need the commands {', '.join(missing)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts() as hosts:
            hosts.add("probe").run(["true"])
    except RuntimeError as error:
        return str(error)
    return None


def _ip(*words: str) -> str:
    try:
        done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True)  # noqa: S607 - as a user's PATH has it
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"ip {' '.join(words)}: {error.stderr.strip()}") from error
    return done.stdout


class Process:
    """A child process with a log, the leader of its own process group."""

    def __init__(self, command: Iterable[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                list(command),
                env={**os.environ, **env},
                # Celery puts the working directory first on its path, so do not start in the source tree.
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while the process runs."""
        return self._process.poll()

    def signal(self, number: Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def signal_all(self, number: Signals) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill it and its children at once."""
        self.signal_all(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; return whether it has."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def children(self) -> list[int]:
        """The process ids of its children."""
        try:
            return sorted(child.pid for child in psutil.Process(self.pid).children())
        except psutil.NoSuchProcess:
            return []


class Host:
    """One machine; made by ``Hosts.add``.

    Attributes:
        name: Its host name, which the other hosts resolve.
        address: Its IPv4 address.
    """

    def __init__(
        self, name: str, address: str, *, space: str, link: str, names: Path, ahead_s: float
    ) -> None:
        self.name = name
        self.address = address
        self._space = space
        self._link = link
        self._names = names
        self._ahead_s = ahead_s
        self._started: list[Process] = []

    def command(self, words: Sequence[str]) -> list[str]:
        """Return a command line that runs a command there, in the same process."""
        enter = ["ip", "netns", "exec", self._space, "unshare", "--uts", "sh", "-c", _ENTER, "sh"]
        return [*enter, self.name, str(self._names), *self._clock(), *words]

    def _clock(self) -> list[str]:
        if not self._ahead_s:
            return []
        fake = [f"LD_PRELOAD={_CLOCK}", f"FAKETIME={self._ahead_s:+.0f}s"]
        # Waits of some seconds take as long as on other hosts.
        return ["env", *fake, "FAKETIME_DONT_FAKE_MONOTONIC=1", f"PYTHONPATH={_SKEWED}"]

    def run(
        self, words: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end; the caller checks the exit status."""
        return subprocess.run(
            self.command(words),
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(
        self, words: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a command there, in the folder of its log; closing the hosts ends it."""
        process = Process(self.command(words), log=log, env=env or {})
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill all processes that were started here."""
        for process in self._started:
            process.kill()

    def cut(self) -> None:
        """Take its link down: all packets, in both directions, are lost silently."""
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        """Bring its link up again."""
        _ip("link", "set", self._link, "up")


class Hosts:
    """A bridge, and the machines on it; removed with all that runs there when it is closed.

    The next process removes the remains of one that was killed.

    Attributes:
        address: This machine's address on the bridge.

    Raises:
        RuntimeError: Hosts are impossible on this machine.
    """

    def __init__(self) -> None:
        _sweep()
        self._prefix = f"fo{os.getpid()}x{next(_numbers)}"
        self._hosts: dict[str, Host] = {}
        self._subnet = _free_subnet()
        self.address = f"{self._subnet}.1"
        self._names = Path(tempfile.gettempdir()) / f"{self._prefix}.hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        bridge = f"{self._prefix}b"
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("address", "add", f"{self.address}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
        except BaseException:
            self.close()
            raise

    def add(self, name: str, *, ahead_s: float = 0) -> Host:
        """Add a machine whose clock is some seconds ahead, or behind if negative.

        A different clock needs faketime.
        """
        number = len(self._hosts) + 2
        address = f"{self._subnet}.{number}"
        space, outer = f"{self._prefix}n{number}", f"{self._prefix}h{number}"
        inner = f"{self._prefix}p{number}"
        _ip("netns", "add", space)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
        _ip("link", "set", outer, "master", f"{self._prefix}b", "up")
        _ip("-n", space, "address", "add", f"{address}/24", "dev", inner)
        _ip("-n", space, "link", "set", inner, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        # Written in place: existing hosts have mounted this file.
        with self._names.open("a") as names:
            names.write(f"{address} {name}\n")
        self._hosts[name] = Host(
            name, address, space=space, link=outer, names=self._names, ahead_s=ahead_s
        )
        return self._hosts[name]

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def close(self) -> None:
        """Kill all processes on the hosts, and remove the hosts."""
        for host in self._hosts.values():
            host.end()
        _remove(re.escape(self._prefix))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sweep() -> None:
    """Remove the remains of dead processes."""
    makers = {int(pid) for pid in _MADE.findall(_ip("netns", "list") + _ip("-o", "link"))}
    for pid in makers:
        if not psutil.pid_exists(pid):
            _remove(f"fo{pid}x\\d+")


def _remove(prefix: str) -> None:
    spaces = re.findall(rf"^({prefix}n\d+)\b", _ip("netns", "list"), re.MULTILINE)
    for space in spaces:
        for pid in _quietly("netns", "pids", space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _quietly("netns", "delete", space)
    # Removing a namespace also removes its links, but that may take a while.
    for link in re.findall(rf"^\d+: ({prefix}\w+)[@:]", _ip("-o", "link"), re.MULTILINE):
        _quietly("link", "delete", link)
    for names in Path(tempfile.gettempdir()).iterdir():
        if re.fullmatch(rf"{prefix}\.hosts", names.name):
            names.unlink(missing_ok=True)


def _quietly(*words: str) -> str:
    # Another process may clean up at the same time.
    with contextlib.suppress(RuntimeError):
        return _ip(*words)
    return ""


def _free_subnet() -> str:
    used = _ip("-4", "-o", "address")
    # Concurrent processes start the search at different places.
    numbers = ((os.getpid() + attempt * 97) % (50 * 250) for attempt in count())
    subnets = (f"10.{200 + number % 50}.{number // 50}" for number in numbers)
    return next(subnet for subnet in subnets if f" {subnet}." not in used)
