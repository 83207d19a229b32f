"""What the two mock APIs have in common: their batches, and how they answer."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from aiohttp import web

from billing.desk import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from billing.desk import Desk

__all__ = ["BatchApi"]


class BatchApi(ABC):
    """The API of a provider.

    Args:
        desk: The state that both providers share.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._batches: dict[str, dict[str, Any]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.forget()

    @abstractmethod
    def forget(self) -> None:
        """Empty the cache."""

    @abstractmethod
    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""

    @abstractmethod
    def _error(self, error: ApiError) -> dict[str, Any]:
        """Return what the provider says of an error."""

    def _answering(
        self, handle: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            try:
                return await handle(request)
            except ApiError as error:
                return web.json_response(self._error(error), status=error.status)

        return answer

    def _start(self, running: Coroutine[Any, Any, None]) -> None:
        """Let a batch run."""
        task = asyncio.get_running_loop().create_task(running)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _page(self, request: web.Request, after: str) -> dict[str, Any]:
        """Return a page of batches, the newest first; ``after`` names the id of the last one before."""
        every = list(reversed(self._batches.values()))
        last = request.query.get(after)
        if last:
            places = [place for place, batch in enumerate(every, 1) if batch["id"] == last]
            every = every[places[0] :] if places else []
        limit = int(request.query.get("limit", "20"))
        data = every[:limit]
        return {
            "data": data,
            "has_more": len(every) > limit,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }

    def _batch(self, request: web.Request) -> dict[str, Any]:
        batch = self._batches.get(request.match_info["id"])
        if batch is None:
            raise ApiError(404, "no such batch", "not_found")
        return batch
