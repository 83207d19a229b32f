"""What the clients of providers' batch APIs share: requests, retries, and the search for a batch."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm.batches import base, result_lines
from fanout.llm.batches.base import (
    BatchError,
    BatchResult,
    BatchState,
    BatchStatus,
    BatchUnknownError,
)
from fanout.llm.batches.items import unreadable
from fanout.llm.batches.result_lines import ResultLines
from fanout.llm.batches.transfers import deadline
from fanout.llm.body_lines import TooSlowError
from fanout.llm.http_client import HttpReply
from fanout.llm.http_model import HttpModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection
    from pathlib import Path

    from yarl import URL

    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.batches.base import BatchIntent, BatchLimits

__all__ = ["CLOCK_SKEW_S", "SLOWEST_UPLOAD", "Before", "HttpBatches", "nonsense"]

# How far the clock of a provider may differ from ours.
CLOCK_SKEW_S = 300.0
_REQUEST_S = 60.0
# Retry temporary failures for so long; longer ones are left to the caller, who asks again anyway.
_PATIENCE_S = 30.0
_FIRST_WAIT_S = 0.5
# The slowest upload that is waited for, in bytes a second.
SLOWEST_UPLOAD = 50_000
_STALL_S = 120.0
# How often results that break off are asked for again, if nothing new arrives in between.
_MOST_BREAKS = 5
# How often it is looked at once whether a batch was made whose reply was lost.
_LOOKS = 4

_PASSING = frozenset(
    {
        ErrorKind.RATE_LIMITED,
        ErrorKind.TIMEOUT,
        ErrorKind.CONNECTION,
        ErrorKind.SERVER_ERROR,
    }
)
# With these a request may have been carried out.
_UNCERTAIN = _PASSING - {ErrorKind.RATE_LIMITED}
_NO_API = frozenset({404, 405, 501})
_DENIED = frozenset({401, 403})
_GONE = frozenset({404, 410})
_MOST_PAGES = 100

_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=HttpModel)
# Awaited before a request that makes a batch.
Before: TypeAlias = "Callable[[], Awaitable[None]]"


class HttpBatches(ABC, Generic[_Model]):
    """A provider's batch API behind HTTP: see BatchClient.

    Args:
        model: The model that the requests are for.
        sleep: Waits so many seconds.
    """

    limits: BatchLimits

    def __init__(
        self, model: _Model, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._model = model
        self._http = model.http
        self._sleep = sleep
        self._lines = ResultLines(model, self._read)

    # What the providers differ in.

    @abstractmethod
    async def _find(self, intent: BatchIntent, known_ids: Collection[str]) -> str | None:
        """Return the id of the batch of an intent; None if the provider has none."""

    @abstractmethod
    def _status_in(self, batch: dict[str, Any]) -> BatchStatus:
        """Return how far a batch is."""

    @abstractmethod
    async def _create(self, path: Path, intent: BatchIntent, before: Before | None) -> str:
        """Make a batch; return its id. Sends the request that makes it once, after ``before``."""

    @abstractmethod
    async def _places(self, batch_id: str) -> list[URL]:
        """Return the addresses of the results of a batch: JSON Lines."""

    @abstractmethod
    def _read(self, item: dict[str, Any]) -> tuple[Any, HttpReply | BatchError]:
        """Return the custom id of a line, and the reply in it, or why there is none."""

    _list_path: str
    # What follows the address of a batch to cancel it.
    _cancel_verb = "/cancel"

    def _url(self, batch_id: str, verb: str = "") -> URL:
        """Return the address of a batch, or of what can be done with it."""
        return self._http.url(f"{self._list_path}/{self._http.quoted(batch_id)}{verb}")

    # What they share.

    async def submit(self, path: Path, intent: BatchIntent, *, before: Before | None = None) -> str:
        """See BatchClient."""
        try:
            return await self._create(path, intent, before)
        except BatchUnknownError as lost:
            # Often the reply alone was lost, or delayed by a proxy.
            for look in range(_LOOKS):
                await self._sleep(_FIRST_WAIT_S * 2**look)
                try:
                    found = await self.find(intent, ())
                except LLMError:
                    continue
                if found is not None:
                    return found
            raise lost from None

    def settle_s(self, intent: BatchIntent) -> float:  # noqa: ARG002 - no line is in the request
        """See BatchClient."""
        return base.SETTLE_S

    async def find(self, intent: BatchIntent, known_ids: Collection[str]) -> str | None:
        """See BatchClient."""
        try:
            return await self._find(intent, known_ids)
        except LLMError as error:
            # A server without a list, such as a small local one.
            if error.status not in _NO_API:
                raise
        return None

    async def status(self, batch_id: str) -> BatchStatus:
        """See BatchClient."""
        try:
            return self._status_in(await self._batch(batch_id))
        except LLMError as error:
            if error.status not in _GONE:
                raise
            return BatchStatus(state=BatchState.GONE, error=BatchError.of(error))

    async def _batch(self, batch_id: str) -> dict[str, Any]:
        """Return what the provider says of a batch."""
        return self._object(await self._get(self._url(batch_id)))

    async def results(self, batch_id: str) -> AsyncIterator[BatchResult]:
        """See BatchClient."""
        seen: set[str] = set()
        for url in await self._places(batch_id):
            async for result in self._results_at(url, seen):
                yield result

    def taken(self, request: LLMRequest, result: BatchResult) -> LLMReply:
        """See BatchClient."""
        if result.reply is not None:
            return result.reply
        found = result.error
        if found is None:
            raise unreadable("the batch has no result for it").error()
        if found.details is not None and self._model.sends_otherwise(
            found.status or 0, found.details, request
        ):
            message = f"{found.message}; it is sent again without that"
            raise LLMError(ErrorKind.SERVER_ERROR, message, usage=found.usage, is_own=True)
        raise found.error()

    async def cancel(self, batch_id: str) -> None:
        """See BatchClient."""
        try:
            await self._post(self._url(batch_id, self._cancel_verb), b"{}")
        except LLMError as error:
            if error.kind in _PASSING or error.kind is ErrorKind.AUTH:
                raise
            # Providers refuse to cancel a batch that has ended.
            status = await self.status(batch_id)
            if status.state is BatchState.RUNNING:
                raise

    async def check(self) -> None:
        """See BatchClient."""
        reply = await self._model.ask(self._list_path)
        if reply.status in _NO_API:
            raise ModelError(
                f"{self._http.shown_url} has no batch API (HTTP {reply.status}): use the lane "
                "realtime",
                kind=ErrorKind.BAD_REQUEST,
            )
        if reply.status in _DENIED:
            problem = self._model.error_of(reply)
            raise ModelError(
                f"the key may not use the batch API of {self._http.shown_url} ({problem}); give it "
                "the permission, or use the lane realtime",
                kind=ErrorKind.AUTH,
            )

    # Requests.

    async def _get(self, url: URL) -> HttpReply:
        async def once() -> HttpReply:
            return await self._http.get(url, timeout_s=_REQUEST_S)

        return await self._patiently(once)

    async def _post(self, url: URL, body: bytes) -> HttpReply:
        async def once() -> HttpReply:
            return await self._post_once(url, body)

        return await self._patiently(once)

    async def _post_once(
        self, url: URL, body: bytes, *, headers: dict[str, str] | None = None
    ) -> HttpReply:
        with deadline(_REQUEST_S):
            return await self._http.post(url, body, headers=headers)

    async def _delete(self, url: URL) -> None:
        try:
            await self._http.delete(url, timeout_s=_REQUEST_S)
        except LLMError as error:
            _log.info("the provider keeps a file: %s", error.kind)

    async def _upload(
        self,
        url: URL,
        parts: Callable[[], AsyncIterator[bytes]],
        *,
        size: int,
        headers: dict[str, str],
    ) -> HttpReply:
        with deadline(_REQUEST_S + size / SLOWEST_UPLOAD):
            return await self._http.upload(url, parts, size=size, headers=headers)

    async def _patiently(self, once: Callable[[], Awaitable[HttpReply]]) -> HttpReply:
        """Return a success reply; retry temporary failures. Raises LLMError."""
        until, wait_s = time.monotonic() + _PATIENCE_S, _FIRST_WAIT_S
        while True:
            try:
                return self._success(await once())
            except LLMError as error:
                wait_s = max(wait_s, error.retry_after_s or 0.0)
                if error.kind not in _PASSING or time.monotonic() + wait_s > until:
                    raise
            await self._sleep(wait_s)
            wait_s *= 2

    async def _made_once(
        self, once: Callable[[], Awaitable[HttpReply]], name: str, before: Before | None
    ) -> str:
        """Send the request that makes a batch; return the batch's id, the field ``name``.

        Only a refusal for the rate is retried: the other failures may hide that the batch was made.
        """

        async def certain() -> HttpReply:
            if before is not None:
                await before()
            try:
                return self._success(await once())
            except LLMError as error:
                if error.kind not in _UNCERTAIN:
                    raise
                raise BatchUnknownError(ErrorKind.BAD_REQUEST, _LOST.format(error)) from None

        try:
            made = self._object(await self._patiently(certain)).get(name)
        except BatchUnknownError as error:
            raise BatchUnknownError(ErrorKind.SERVER_ERROR, str(error)) from None
        except LLMError as error:
            if error.kind not in _UNCERTAIN:
                raise
            message = _LOST.format(error)
            raise BatchUnknownError(ErrorKind.SERVER_ERROR, message, is_own=error.is_own) from None
        if not isinstance(made, str) or not made:
            message = _LOST.format("it has no id")
            raise BatchUnknownError(ErrorKind.SERVER_ERROR, message, is_own=True)
        return made

    def _success(self, reply: HttpReply) -> HttpReply:
        if not reply.is_success:
            raise self._model.error_of(reply)
        return reply

    def _object(self, reply: HttpReply) -> dict[str, Any]:
        try:
            content = reply.json()
        except ValueError as error:
            raise nonsense(str(error)) from None
        if not isinstance(content, dict):
            raise nonsense("it is no object")
        return content

    async def _pages(
        self, first: URL, next_of: Callable[[dict[str, Any]], dict[str, str] | None]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the pages of a list; ``next_of`` returns the query of the page after one."""
        url, seen = first, set[str]()
        for _ in range(_MOST_PAGES):
            page = self._object(await self._get(url))
            yield page
            query = next_of(page)
            if query is None or str(query) in seen:
                return
            seen.add(str(query))
            url = first.update_query(query)

    # Results.

    async def _results_at(self, url: URL, seen: set[str]) -> AsyncIterator[BatchResult]:
        """Yield the results at an address that were not seen; go on where the connection breaks."""
        breaks = 0
        while True:
            before = len(seen)
            try:
                async for line in self._http.lines(
                    url, stall_s=_STALL_S, most_bytes=result_lines.MOST_LINE_BYTES
                ):
                    if isinstance(line, HttpReply):
                        raise self._model.error_of(line)
                    for result in self._lines.results(line):
                        if result.custom_id not in seen:
                            seen.add(result.custom_id)
                            yield result
            except LLMError as error:
                breaks = 1 if len(seen) > before else breaks + 1
                is_final = error.kind not in _PASSING or breaks > _MOST_BREAKS
                if is_final or isinstance(error, TooSlowError):
                    raise
                wait_s = max(_FIRST_WAIT_S * 2**breaks, error.retry_after_s or 0.0)
            else:
                return
            await self._sleep(min(wait_s, _PATIENCE_S))


_LOST = "the reply to the creation of a batch was lost, which may exist: {}"


def nonsense(reason: str) -> LLMError:
    """Return the error of a reply that no batch API gives: it may not pass by itself."""
    message = f"the reply is not of a batch API: {reason}"
    return LLMError(ErrorKind.SERVER_ERROR, message, is_own=True)
