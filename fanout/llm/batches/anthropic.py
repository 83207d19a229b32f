"""Anthropic's Message Batches.

Source: https://platform.claude.com/docs/en/api/creating-message-batches
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from yarl import URL

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.batches import base
from fanout.llm.batches.base import (
    BatchError,
    BatchLimits,
    BatchState,
    BatchStatus,
    BatchUnknownError,
    require_custom_id,
)
from fanout.llm.batches.http_batches import CLOCK_SKEW_S, SLOWEST_UPLOAD, HttpBatches
from fanout.llm.batches.items import (
    PAGE,
    batches_in,
    count_of,
    item_reply,
    next_page,
    seconds_of,
    undone,
    unreadable,
)
from fanout.llm.batches.transfers import file_parts
from fanout.llm.reply_bodies import error_details_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from fanout.llm.base import LLMRequest
    from fanout.llm.batches.base import BatchIntent
    from fanout.llm.batches.http_batches import Before
    from fanout.llm.http_client import HttpReply

__all__ = ["AnthropicBatches"]

_BEGIN, _END = b'{"requests":[', b"]}"
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
_SERVER_ERROR = 500
# The status that a call outside of a batch has, by the type of its error.
# Source: https://platform.claude.com/docs/en/api/errors
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_UNDONE = {"expired": ErrorKind.EXPIRED, "canceled": ErrorKind.CANCELLED}

_encode = msgspec.json.Encoder().encode


class _Params(msgspec.Struct):
    temperature: Any = None


class _Line(msgspec.Struct):
    params: _Params | None = None


_decode = msgspec.json.Decoder(_Line).decode


class AnthropicBatches(HttpBatches[AnthropicLLM]):
    """Message Batches: see HttpBatches."""

    limits = BatchLimits(requests=100_000, bytes=256_000_000)
    _list_path = "v1/messages/batches"

    async def line(self, custom_id: str, request: LLMRequest) -> bytes:
        """See BatchClient."""
        params = msgspec.Raw(await self._model.prepared(request))
        return _encode({"custom_id": require_custom_id(custom_id), "params": params}) + b"\n"

    async def _create(
        self,
        path: Path,
        intent: BatchIntent,  # noqa: ARG002 - it takes no words of ours
        before: Before | None,
    ) -> str:
        size, has_temperature = await asyncio.to_thread(_size_of, path)
        # The version is that of all requests in the batch.
        headers = self._model.version_for(is_older=has_temperature) or {}

        def parts() -> AsyncIterator[bytes]:
            return file_parts(path, before=_BEGIN, after=_END, joint=b",")

        async def once() -> HttpReply:
            whole = len(_BEGIN) + size + len(_END)
            return await self._upload(
                self._http.url(self._list_path), parts, size=whole, headers=headers
            )

        return await self._made_once(once, "id", before)

    def settle_s(self, intent: BatchIntent) -> float:
        """See BatchClient. The request that makes a batch has all of its lines."""
        return _settle_s(intent)

    async def _find(self, intent: BatchIntent, known_ids: Collection[str]) -> str | None:
        """Return the id of the batch of an intent, or None. Raises LLMError.

        The API stores no words of ours with a batch before it has ended. A batch of the same size
        and age may be another program's: only its results tell.
        """
        is_open = False
        async for batch in self._since(intent.created_at - CLOCK_SKEW_S):
            if batch["id"] in known_ids or not _may_be(batch, intent):
                continue
            if batch.get("processing_status") != "ended":
                is_open = True
            elif await self._has(batch["id"], intent.first_id):
                return str(batch["id"])
        if is_open:
            message = "a batch of the same size runs, of which it is not known yet whose it is"
            raise BatchUnknownError(ErrorKind.SERVER_ERROR, message)
        return None

    async def _since(self, since: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the batches that were made since then, the newest first."""
        first = self._http.url(self._list_path).update_query(limit=str(PAGE))
        async for page in self._pages(first, partial(next_page, after="after_id")):
            for batch in batches_in(page):
                made_at = seconds_of(batch.get("created_at"))
                if made_at is not None and made_at < since:
                    return
                yield batch

    async def _has(self, batch_id: str, custom_id: str) -> bool:
        try:
            async for result in self.results(batch_id):
                if result.custom_id == custom_id:
                    return True
        except LLMError as error:
            # Its results are deleted, or belong to a workspace that the key may not read.
            if error.status is None or error.status >= _SERVER_ERROR:
                raise
        return False

    def _status_in(self, batch: dict[str, Any]) -> BatchStatus:
        counts = _counts(batch)
        failed = [counts[name] for name in ("errored", "canceled", "expired")]
        known = [count for count in failed if count is not None]
        return BatchStatus(
            state=_state(batch, counts),
            requests=_total(counts),
            succeeded=counts["succeeded"],
            failed=sum(known) if known else None,
        )

    async def _places(self, batch_id: str) -> list[URL]:
        given = (await self._batch(batch_id)).get("results_url")
        own = self._url(batch_id, "/results")
        if not isinstance(given, str):
            # Archived, or behind a proxy that leaves it out.
            return [own]
        with suppress(ValueError):
            url = URL(given)
            # No other server gets the key: behind a proxy, the results are there, too.
            if url.is_absolute() and url.origin() == own.origin():
                return [url.with_user(None)]
        return [own]

    def _read(self, item: dict[str, Any]) -> tuple[Any, HttpReply | BatchError]:
        custom_id, result = item.get("custom_id"), item.get("result")
        result = result if isinstance(result, dict) else {}
        kind = result.get("type")
        if kind == "succeeded":
            return custom_id, item_reply(200, result.get("message"))
        if kind in _UNDONE:
            return custom_id, undone(_UNDONE[kind])
        error = result.get("error")
        if not isinstance(error, dict):
            return custom_id, unreadable(f"the result has the type {str(kind)[:40]!r}")
        codes = error_details_in(error).codes
        status = next((_STATUSES[code] for code in codes if code in _STATUSES), _SERVER_ERROR)
        return custom_id, item_reply(status, error)

    async def discard(self, batch_id: str) -> None:
        """See BatchClient."""
        await self._delete(self._url(batch_id))


def _size_of(path: Path) -> tuple[int, bool]:
    """Return the size of the lines in a file, without the last break, and if any has a temperature."""
    size, has_temperature = -1, False
    with path.open("rb") as file:
        for line in file:
            size += len(line)
            if not has_temperature:
                params = _decode(line).params
                has_temperature = params is not None and params.temperature is not None
    return size, has_temperature


def _may_be(batch: dict[str, Any], intent: BatchIntent) -> bool:
    """Say whether a batch may be the one that was made of an intent."""
    made_at, total = seconds_of(batch.get("created_at")), _total(_counts(batch))
    if made_at is not None and made_at > intent.created_at + _settle_s(intent) + CLOCK_SKEW_S:
        return False
    return total in (None, intent.requests)


def _counts(batch: dict[str, Any]) -> dict[str, int | None]:
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    return {name: count_of(counts.get(name)) for name in _COUNTS}


def _total(counts: dict[str, int | None]) -> int | None:
    known = [count for count in counts.values() if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _state(batch: dict[str, Any], counts: dict[str, int | None]) -> BatchState:
    if batch.get("processing_status") != "ended":
        return BatchState.RUNNING
    if batch.get("cancel_initiated_at") and counts["canceled"]:
        return BatchState.CANCELLED
    return BatchState.EXPIRED if counts["expired"] else BatchState.ENDED


def _settle_s(intent: BatchIntent) -> float:
    return base.SETTLE_S + intent.bytes / SLOWEST_UPLOAD
