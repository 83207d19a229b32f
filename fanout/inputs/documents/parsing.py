"""Processes that parse documents, several at a time, with the results in order.

A document that crashes its process, or takes more time or memory than it may, costs nothing but
itself. The processes start when there is a document, and end with the reading.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.extraction import MEMORY
from fanout.inputs.documents.extras import missing_extra
from fanout.inputs.documents.parsed import HEADER_BYTES, Parsed, Request, framed
from fanout.system.resources import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO, Self

__all__ = ["ParserPool", "require_parser"]

_MODULE = "fanout.inputs.documents.parser_process"
# Address space of a process beyond what it has after its start.
_MEMORY_MB = 1_500
# One that is parsed, and one that waits, so that a process need not wait for its caller.
_SENT = 2
# Documents ahead of the one that is due, for each process, and the size of their texts.
_AHEAD = 4
_AHEAD_CHARS = 64_000_000
_READ_BYTES = 1_000_000
# A process ends itself at a document's deadline; later, this one ends it.
_GRACE_S = 15.0
_START_S = 60.0
# After a longer pause of the caller, what the processes sent meanwhile may not have been received.
_PAUSE_S = 1.0
_MOST_FAILED_STARTS = 3
_TAIL_BYTES = 4_000
# Signals that others send: the document is hardly at fault, and is tried a second time.
_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
_ATTEMPTS = 2
# What Python, the library and the system print where memory is at its limit.
_NO_MEMORY = (
    "memory allocation",
    "MemoryError",
    "cannot allocate memory",
    "Cannot allocate memory",
)
# No key and no secret: a parser is the last that should have one.
_ENVIRONMENT = frozenset({
    "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "PYTHONHOME",
    "PYTHONUSERBASE", "TEMP", "TMP", "TMPDIR", "TZ", "VIRTUAL_ENV",
})  # fmt: skip
_PREFIXES = ("LC_", "COVERAGE_")


def require_parser(source: str | None = None) -> None:
    """Raise InputError if the library that parses documents is not installed."""
    if find_spec("kreuzberg") is None:
        source = source or "a document such as PDF and Word"
        raise missing_extra("kreuzberg", extra="documents", source=source)


class _Job:
    """A document on its way: until it is parsed, it has been sent or waits."""

    def __init__(self, request: Request | Parsed) -> None:
        self.attempts = 0
        self.parsed = request if isinstance(request, Parsed) else None
        self._request = request

    @property
    def request(self) -> Request:
        return cast("Request", self._request)

    @property
    def chars(self) -> int:
        return len(self.parsed.text) if self.parsed else 0


class ParserPool:
    """Parses documents in processes of its own. Not for several threads at once.

    Args:
        processes: The most processes; None is as many as there are cores.

    Raises:
        InputError: The library is not installed, or its process does not start.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._most = processes or usable_cores()
        self._children: list[_Child] = []
        self._queue: deque[_Job] = deque()
        self._failed_starts = 0
        self._stepped = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes at once."""
        children, self._children = self._children, []
        for child in children:
            child.kill()
        self._queue.clear()

    def parse(self, request: Request) -> Parsed:
        """Return a document, before all that wait. Raises InputError."""
        job = _Job(request)
        self._queue.appendleft(job)
        return self._finished(job)

    def parse_all(self, requests: Iterable[Request | Parsed]) -> Iterator[Parsed]:
        """Yield the documents in the order of the requests, of which it takes a few in advance.

        What stands in place of a request is yielded as it is.

        Raises:
            InputError: The library is not installed, or its process does not start.
        """
        rest = iter(requests)
        jobs: deque[_Job] = deque()
        is_at_end = False
        while True:
            self._step(wait_s=0)
            while not is_at_end and self._may_take(jobs):
                request = next(rest, None)
                is_at_end = request is None
                if request is not None:
                    jobs.append(_Job(request))
                    self._queue.extend(job for job in (jobs[-1],) if job.parsed is None)
                    self._send()
            if not jobs:
                return
            if jobs[0].parsed is None:
                self._step(wait_s=1.0)
                continue
            yield self._finished(jobs.popleft())

    def _may_take(self, jobs: deque[_Job]) -> bool:
        if len(jobs) >= _AHEAD * self._most:
            return False
        return len(jobs) < 1 or sum(job.chars for job in jobs) < _AHEAD_CHARS

    def _finished(self, job: _Job) -> Parsed:
        while job.parsed is None:
            self._send()
            self._step(wait_s=1.0)
        return job.parsed

    def _send(self) -> None:
        """Give waiting documents to processes that have room; start processes for the rest."""
        while self._queue:
            child = min(self._children, key=lambda one: len(one.jobs), default=None)
            if (child is None or child.jobs) and len(self._children) < self._most:
                child = self._start() or child
            if child is None or len(child.jobs) >= _SENT:
                return
            child.send(self._queue.popleft())

    def _start(self) -> _Child | None:
        """Start a process; None if the machine has no room for one more.

        Raises:
            InputError: There is none at all.
        """
        require_parser()
        try:
            child = _Child()
        except OSError as error:
            if self._children:
                return None
            raise InputError(f"no process to parse documents can be started: {error}") from None
        self._children.append(child)
        return child

    def _step(self, *, wait_s: float) -> None:
        """Receive what the processes have done, and replace those that have died."""
        is_pause = time.monotonic() - self._stepped > _PAUSE_S
        busy = {child.output: child for child in self._children if child.jobs}
        if is_pause:
            for child in busy.values():
                child.restart_clock()
        ready = set(_readable(list(busy), wait_s)) if busy else set()
        for output, child in busy.items():
            if output in ready and not child.receive():
                self._bury(child)
            elif output not in ready and child.is_late():
                child.kill()
                self._bury(child)
        self._send()
        self._stepped = time.monotonic()

    def _bury(self, child: _Child) -> None:
        """Take leave of a process that has ended: its document is at fault, those behind it are not."""
        self._children.remove(child)
        reason, is_outside = child.why_ended()
        jobs = deque(child.jobs)
        if not child.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise InputError(f"the process that parses documents does not start: {reason}")
        elif jobs and not child.is_leaving:
            first = jobs[0]
            first.attempts += 1
            if not is_outside or first.attempts >= _ATTEMPTS:
                first.parsed = Parsed(error=reason)
                jobs.popleft()
        self._queue.extendleft(reversed(jobs))


class _Child:
    """A process that parses documents, with those that it was given, in order."""

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.is_ready = False
        self.is_leaving = False
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives with the process
        try:
            # Its folder is no folder of the user's, whose modules it could import.
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE, str(_MEMORY_MB)],
                env=_environment(),
                cwd=tempfile.gettempdir(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                # Ctrl-C is for the caller, whose end then ends this process.
                start_new_session=True,
            )
        except OSError:
            self._log.close()
            raise
        self._input = cast("IO[bytes]", self._process.stdin)
        self.output = cast("IO[bytes]", self._process.stdout).fileno()
        self._data = bytearray()
        self._since = time.monotonic()
        self._was_late = False

    def send(self, job: _Job) -> None:
        """Send a document. One that has died is noticed when it is heard next."""
        if not self.jobs:
            self.restart_clock()
        self.jobs.append(job)
        with suppress(BrokenPipeError):
            os.write(self._input.fileno(), framed(msgspec.msgpack.encode(job.request)))

    def receive(self) -> bool:
        """Take what it has sent; return whether it lives."""
        part = os.read(self.output, _READ_BYTES)
        if not part:
            return False
        # It waits for this process while a large answer is on its way.
        self.restart_clock()
        data = self._data
        data += part
        while len(data) >= HEADER_BYTES:
            end = HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "big")
            if len(data) < end:
                break
            self._take(bytes(data[HEADER_BYTES:end]))
            del data[:end]
        return True

    def _take(self, answer: bytes) -> None:
        if not answer:
            self.is_ready = True
            return
        parsed = msgspec.msgpack.decode(answer, type=Parsed)
        self.is_leaving = parsed.is_last
        self.jobs.popleft().parsed = parsed

    def restart_clock(self) -> None:
        """Count the time that it may be silent from now on."""
        self._since = time.monotonic()

    def is_late(self) -> bool:
        """Say whether it has not kept its own deadline, as what waits for a broken disk cannot."""
        most = self.jobs[0].request.timeout_s + _GRACE_S if self.is_ready else _START_S
        self._was_late = time.monotonic() - self._since > most
        return self._was_late

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._close()

    def why_ended(self) -> tuple[str, bool]:
        """Return why it has ended, and whether another process has ended it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GRACE_S)
        status, printed = self._process.returncode, self._printed()
        self._close()
        limit = self.jobs[0].request.timeout_s if self.jobs else 0
        if self._was_late or status == -signal.SIGALRM:
            return f"reading it took longer than {limit:g} s (parse_timeout_s)", False
        if any(words in printed for words in _NO_MEMORY):
            return MEMORY, False
        if status is not None and status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
            return f"the process that read it died ({name})", -status in _OUTSIDE
        last = printed.strip().rpartition("\n")[2]
        return f"the process that read it ended with status {status}: {last}", False

    def _printed(self) -> str:
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL_BYTES))
        return self._log.read().decode("utf-8", "replace")

    def _close(self) -> None:
        for stream in (self._input, self._process.stdout, self._log):
            with suppress(OSError):
                cast("IO[bytes]", stream).close()
        # What waits for a broken disk may outlive its signal; it is not waited for.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GRACE_S)


def _readable(outputs: list[int], wait_s: float) -> list[int]:
    """Return which of these have something to read, after at most this time."""
    poll = select.poll()
    for output in outputs:
        poll.register(output, select.POLLIN | select.POLLHUP)
    return [output for output, _event in poll.poll(wait_s * 1_000)]


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_PREFIXES)
    }
    # It finds fanout and the library wherever this process does.
    paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 - "" is this folder
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "2"}
