"""The fake model, with a ledger: one line as each call starts, and one as it ends.

Workers know it as ``faults.model:llm``. ``CHAOS_LEDGER`` names the file, ``CHAOS_LATENCY_S`` and
``CHAOS_JITTER_S`` how long calls take. While the file ``CHAOS_NO_THREADS`` is there, the process
that makes a call can start no threads.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.llm.fake import FakeLLM
from faults.model_outages import suffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.llm.base import LLMReply, LLMRequest

__all__ = ["LedgerLLM", "llm", "summed"]

# How the prompt of a node of a tree begins.
NODE = "NODE"
_LEAF = re.compile(r"^b([0-9]+)$", re.MULTILINE)
_SUMS = re.compile(r"^n=([0-9]+) s=([0-9]+) q=([0-9]+)$", re.MULTILINE)
# After which a call that nobody answers is given up.
_TIMEOUT_S = 10.0


class LedgerLLM:
    """Answers a prompt with its first word, which is its key in the ledger."""

    def __init__(self) -> None:
        self._fake = FakeLLM(
            latency_s=float(os.environ.get("CHAOS_LATENCY_S", "0.5")),
            jitter_s=float(os.environ.get("CHAOS_JITTER_S", "1")),
            script=lambda request: _answer(request.prompt),
        )
        self._worker = os.environ.get("CHAOS_WORKER", "-")
        path = os.environ.get("CHAOS_LEDGER", os.devnull)
        self._folder = Path(path).parent
        self._ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    async def check(self) -> None:
        """Do nothing: it can always be called."""

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Answer, and keep the ledger."""
        key = _key(request.prompt)
        _limit_threads()
        # A call that fails so is none of the ledger: it may be made again as often as that takes.
        await suffer(self._folder, timeout_s=_TIMEOUT_S)
        if key == NODE:
            return await self._fake.complete(request)
        self._write("start", key)
        try:
            reply = await self._fake.complete(request)
        except asyncio.CancelledError:
            self._write("stopped", key)
            raise
        self._write("end", key)
        _limit_threads()
        return reply

    def _write(self, event: str, key: str) -> None:
        # One write of a few bytes to the end of the file: no kill leaves half a line.
        line = f"{time.time():.6f} {os.getpid()} {self._worker} {event} {key}\n"
        os.write(self._ledger, line.encode())

    async def aclose(self) -> None:
        """Do nothing: the file lives as long as the process."""


_start = threading.Thread.start
_NO_THREADS = os.environ.get("CHAOS_NO_THREADS", "")


def _limit_threads() -> None:
    """Refuse threads, or not, as the machine does whose limit of them is reached."""
    is_refused = bool(_NO_THREADS) and Path(_NO_THREADS).exists()
    start: Callable[[threading.Thread], None] = _refused if is_refused else _start
    threading.Thread.start = start  # type: ignore[method-assign, assignment]


def _refused(thread: threading.Thread) -> None:
    # Looked at again, as no call may come that would end it.
    if Path(_NO_THREADS).exists():
        raise RuntimeError("can't start new thread")
    _start(thread)


def _key(prompt: str) -> str:
    return prompt.split(maxsplit=1)[0]


def _answer(prompt: str) -> str:
    key = _key(prompt)
    return key if key != NODE else summed(prompt)


def summed(text: str) -> str:
    """Return the number of answers in a text, and the sums of their numbers and of their squares.

    The answers of branches are their keys, those of nodes what this returns.
    """
    rows = [[1, number, number**2] for number in map(int, _LEAF.findall(text))]
    rows += [list(map(int, found)) for found in _SUMS.findall(text)]
    return "n={} s={} q={}".format(*(sum(column) for column in zip(*rows, strict=True)))


llm = LedgerLLM()
