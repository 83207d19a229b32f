"""A process that parses documents: ``python -m fanout.inputs.documents.parser_process MEMORY_MB``.

It reads requests from standard input and writes answers to what was standard output. It ends when
its input ends, when the process that started it has died, and, by a signal of the system, when a
document takes longer than it may.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import msgspec

from fanout.inputs.documents.extraction import extract, prepare
from fanout.inputs.documents.parsed import HEADER_BYTES, Request, framed

_STDIN = 0
_WATCH_S = 2.0
# What the library prints is for the log of a crash only.
_MOST_PRINTED_BYTES = 1_000_000
_MB = 1_000_000


def main() -> None:
    """Answer requests until the input ends."""
    out = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: SimpleQueue[Request] = SimpleQueue()
    # A thread, because it must notice the end of the input while a document is parsed.
    Thread(target=_receive, args=(requests, os.getppid()), daemon=True).start()
    prepare()
    most = int(sys.argv[1]) * _MB
    base = _mapped_bytes()
    _limit(base + most if base else 0)
    _write(out, framed(b""))
    while True:
        request = requests.get()
        signal.setitimer(signal.ITIMER_REAL, request.timeout_s)
        parsed = extract(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _mapped_bytes() > base + most // 2:
            parsed = msgspec.structs.replace(parsed, is_last=True)
        _write(out, framed(msgspec.msgpack.encode(parsed)))
        if parsed.is_last:
            return


def _receive(requests: SimpleQueue[Request], parent: int) -> None:
    while True:
        while not select.select([_STDIN], [], [], _WATCH_S)[0]:
            # The pipe may still be open in another process.
            if os.getppid() != parent:
                os._exit(0)
        size = int.from_bytes(_read(HEADER_BYTES), "big")
        requests.put(msgspec.msgpack.decode(_read(size), type=Request))


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(_STDIN, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


def _write(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(out, view) :]
        except BrokenPipeError:
            os._exit(0)


def _mapped_bytes() -> int:
    """Return the address space of this process, or 0 where it is unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _limit(mapped_bytes: int) -> None:
    """Limit what this process may take of the machine."""
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, _MOST_PRINTED_BYTES)]
    if mapped_bytes:
        limits.append((resource.RLIMIT_AS, mapped_bytes))
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()
