"""The models of a worker process, and what limits and ends their calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fanout.llm import make_llm
from workers.context.common_failures import CommonFailures
from workers.context.inflight import InFlight
from workers.context.limiter import Limiter
from workers.telemetry.log_filters import quiet_clients

if TYPE_CHECKING:
    from fanout.core.settings import Settings
    from fanout.llm import LLM
    from workers.context.connections import Connections

__all__ = ["Models"]


class Models:
    """The models that branches call; made on first use, and closed on the loop they ran on.

    Args:
        connections: The stores of limits and runs.
        settings: The worker's settings.
        concurrency: How many calls a model should expect at a time.
        quiets_clients: Whether to silence the log records of client packages.

    Attributes:
        made: The models that are ready, by name.
        in_flight: The calls in flight.
        limiter: The rate limits that all workers share.
        common_failures: Counts failures that stop a run.
    """

    def __init__(
        self,
        connections: Connections,
        settings: Settings,
        *,
        concurrency: int,
        quiets_clients: bool,
    ) -> None:
        self._settings = settings
        self._concurrency = concurrency
        self._quiets_clients = quiets_clients
        self._making = asyncio.Lock()
        self.made: dict[str, LLM] = {}
        self.in_flight = InFlight(connections.fail_fast_store)
        self.limiter = Limiter(connections.fail_fast_store, sleep=self.in_flight.wait)
        self.common_failures = CommonFailures(connections.store)

    async def get(self, name: str) -> LLM:
        """Return the model, which is made if need be. Branches look in ``made`` first.

        Raises:
            ModelError: It cannot be used.
        """
        async with self._making:
            if name not in self.made:
                self.made[name] = make_llm(
                    name, settings=self._settings, concurrency=self._concurrency
                )
                if self._quiets_clients:
                    # Their packages may have been imported only now.
                    quiet_clients()
            return self.made[name]

    async def aclose(self) -> None:
        """Close the models' connections, and stop watching the runs of calls."""
        for llm in self.made.values():
            await llm.aclose()
        self.made.clear()
        await self.in_flight.aclose()
