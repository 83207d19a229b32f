"""The batch APIs of the lanes, as the process that makes batches uses them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import ModelError
from fanout.llm import make_llm
from fanout.llm.batches.base import BatchClient, batches_of
from fanout.llm.user_code import close_llm

if TYPE_CHECKING:
    from fanout.core.gathered import LaneRecord
    from fanout.core.settings import Settings
    from fanout.llm import LLM

__all__ = ["LaneApi", "LaneClients"]

# Files that go up and down, and questions about them: more than the steps that a lane takes at a time.
_CONCURRENCY = 32


class LaneApi(NamedTuple):
    """The batch API of a lane, and whether this process has the key and URL of its calls."""

    client: BatchClient
    is_own: bool


class LaneClients:
    """Makes the models of lanes on the loop that uses them; these are not those of the calls.

    Args:
        settings: The worker's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._making = asyncio.Lock()
        self._made: dict[str, LLM] = {}

    async def get(self, lane: LaneRecord) -> LaneApi:
        """Return the batch API of a lane. Raises ModelError if this process cannot use the model."""
        async with self._making:
            llm = self._made.get(lane.model)
            if llm is None:
                llm = make_llm(lane.model, settings=self._settings, concurrency=_CONCURRENCY)
                self._made[lane.model] = llm
        client = batches_of(llm)
        if client is None:
            raise ModelError(f"{lane.model} has no batch API here")
        return LaneApi(client, is_own=getattr(llm, "account", "") == lane.account)

    async def aclose(self) -> None:
        """Close the models."""
        for llm in self._made.values():
            await close_llm(llm)
        self._made.clear()
