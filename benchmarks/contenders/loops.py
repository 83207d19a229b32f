"""Contenders with one asyncio loop: a semaphore limits the calls in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvloop
from contest import count_ok

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from contest import Work

__all__ = ["Loop"]


class Loop:
    """Makes calls on its own loop, which is uvloop for all contenders."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._runner.run(self.open())

    async def open(self) -> None:
        """Make the client."""
        raise NotImplementedError

    async def call(self, prompt: str) -> str | None:
        """Make one call."""
        raise NotImplementedError

    async def shut(self) -> None:
        """Close the client."""

    def run(self, count: int) -> int:
        """Make a number of calls in the usual way."""
        return self._runner.run(self._all(self.work.prompts(count)))

    async def _all(self, prompts: list[str]) -> int:
        turns = asyncio.Semaphore(self.work.in_flight)

        async def in_turn(prompt: str) -> str | None:
            async with turns:
                return await self.call(prompt)

        calls: list[Coroutine[Any, Any, str | None]] = [in_turn(prompt) for prompt in prompts]
        return count_ok(await asyncio.gather(*calls))

    def close(self) -> None:
        """Close client and loop."""
        self._runner.run(self.shut())
        self._runner.close()
