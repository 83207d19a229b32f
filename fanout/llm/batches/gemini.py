"""Gemini's batch mode.

Source: https://ai.google.dev/api/batch-api and https://ai.google.dev/api/files
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from yarl import URL

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.batches.base import (
    BatchError,
    BatchLimits,
    BatchState,
    BatchStatus,
    require_custom_id,
)
from fanout.llm.batches.http_batches import CLOCK_SKEW_S, HttpBatches, nonsense
from fanout.llm.batches.items import count_of, item_reply, seconds_of, unreadable
from fanout.llm.batches.transfers import file_parts
from fanout.llm.gemini import GeminiLLM
from fanout.llm.http_errors import http_error
from fanout.llm.reply_bodies import error_details_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from fanout.llm.base import LLMRequest
    from fanout.llm.batches.base import BatchIntent
    from fanout.llm.batches.http_batches import Before
    from fanout.llm.http_client import HttpReply

__all__ = ["GeminiBatches"]

_PAGE = 100
_BAD_REQUEST, _SERVER_ERROR = 400, 500
_TYPE = "application/jsonl"
# The API names them with either beginning.
_BEGINNINGS = ("BATCH_STATE_", "JOB_STATE_")
_STATES = {
    "PENDING": BatchState.RUNNING,
    "RUNNING": BatchState.RUNNING,
    "QUEUED": BatchState.RUNNING,
    "CANCELLING": BatchState.RUNNING,
    "SUCCEEDED": BatchState.ENDED,
    "PARTIALLY_SUCCEEDED": BatchState.ENDED,
    "FAILED": BatchState.FAILED,
    "CANCELLED": BatchState.CANCELLED,
    "EXPIRED": BatchState.EXPIRED,
}
# The numbers of google.rpc.Code as HTTP statuses.
_STATUS_OF = {1: 499, 3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 13: 500, 14: 503, 16: 401}
_STATUSES = range(400, 600)

_encode = msgspec.json.Encoder().encode


class GeminiBatches(HttpBatches[GeminiLLM]):
    """Batches of generateContent: see HttpBatches."""

    # A file may have 2 GB; the tokens in an account's queue are limited sooner.
    limits = BatchLimits(requests=50_000, bytes=200_000_000)
    _list_path = "batches"
    _cancel_verb = ":cancel"

    async def line(self, custom_id: str, request: LLMRequest) -> bytes:
        """See BatchClient."""
        body = msgspec.Raw(await self._model.prepared(request))
        return _encode({"key": require_custom_id(custom_id), "request": body}) + b"\n"

    async def _create(self, path: Path, intent: BatchIntent, before: Before | None) -> str:
        name = await self._file(path, _name_of(intent))
        batch = {"displayName": _name_of(intent), "inputConfig": {"fileName": name}}
        url = self._http.url(f"models/{self._http.quoted(self._model.name)}:batchGenerateContent")

        async def once() -> HttpReply:
            return await self._post_once(url, _encode({"batch": batch}))

        return await self._made_once(once, "name", before)

    async def _file(self, path: Path, name: str) -> str:
        """Upload a file; return its resource name, as ``files/abc``."""
        size = (await asyncio.to_thread(path.stat)).st_size

        async def once() -> HttpReply:
            # A session is good for one upload.
            place = await self._upload_place(name, size)
            return await self._upload(
                place,
                lambda: file_parts(path),
                size=size,
                headers={
                    "content-type": _TYPE,
                    "x-goog-upload-offset": "0",
                    "x-goog-upload-command": "upload, finalize",
                },
            )

        content = self._object(await self._patiently(once))
        file = content.get("file")
        made = file.get("name") if isinstance(file, dict) else content.get("name")
        if not isinstance(made, str) or not made:
            raise nonsense("an uploaded file has no name")
        return made

    async def _upload_place(self, name: str, size: int) -> URL:
        start = self._http.url("files", before="/upload")
        reply = self._success(
            await self._post_once(
                start,
                _encode({"file": {"displayName": name}}),
                headers={
                    "x-goog-upload-protocol": "resumable",
                    "x-goog-upload-command": "start",
                    "x-goog-upload-header-content-length": str(size),
                    "x-goog-upload-header-content-type": _TYPE,
                },
            )
        )
        given = reply.headers.get("x-goog-upload-url", "")
        with suppress(ValueError):
            place = URL(given, encoded=True)
            # No other server gets the prompts and the key.
            if place.is_absolute() and place.origin() == start.origin():
                return place.with_user(None)
        raise LLMError(
            ErrorKind.BAD_REQUEST,
            f"{self._http.shown_url} names no place on the same server for an upload",
        )

    async def _find(self, intent: BatchIntent, known_ids: Collection[str]) -> str | None:
        first = self._http.url("batches").update_query(pageSize=str(_PAGE))
        since = intent.created_at - CLOCK_SKEW_S
        async for page in self._pages(first, _next_page):
            batches = list(_batches_in(page))
            for name, metadata in batches:
                if metadata.get("displayName") == _name_of(intent) and name not in known_ids:
                    return name
            ages = [seconds_of(metadata.get("createTime")) for _, metadata in batches]
            if ages and all(made_at is not None and made_at < since for made_at in ages):
                return None
        return None

    def _status_in(self, batch: dict[str, Any]) -> BatchStatus:
        metadata = _metadata(batch)
        stats = metadata.get("batchStats")
        stats = stats if isinstance(stats, dict) else {}
        state = _state(batch, metadata)
        return BatchStatus(
            state=state,
            requests=count_of(stats.get("requestCount")),
            succeeded=count_of(stats.get("successfulRequestCount")),
            failed=count_of(stats.get("failedRequestCount")),
            error=_whole_error(batch) if state is BatchState.FAILED else None,
        )

    def _url(self, batch_id: str, verb: str = "") -> URL:
        kind, _, own = batch_id.partition("/")
        return self._http.url(f"{self._http.quoted(kind)}/{self._http.quoted(own)}{verb}")

    async def _places(self, batch_id: str) -> list[URL]:
        operation = await self._batch(batch_id)
        for holder in (operation.get("response"), _metadata(operation).get("output")):
            name = holder.get("responsesFile") if isinstance(holder, dict) else None
            if isinstance(name, str) and name:
                kind, _, own = name.partition("/")
                path = f"{self._http.quoted(kind)}/{self._http.quoted(own)}:download"
                return [self._http.url(path, before="/download").update_query(alt="media")]
        return []

    def _read(self, item: dict[str, Any]) -> tuple[Any, HttpReply | BatchError]:
        key, response = item.get("key"), item.get("response")
        if isinstance(response, dict) and not _error_of(response):
            return key, item_reply(200, response)
        error = _error_of(item) or _error_of(response)
        if not error:
            return key, unreadable("the result has no response")
        return key, item_reply(_status_of(error), {"error": error})

    async def discard(self, batch_id: str) -> None:
        """See BatchClient."""
        with suppress(LLMError):
            config = _metadata(await self._batch(batch_id)).get("inputConfig")
            name = config.get("fileName") if isinstance(config, dict) else None
            if isinstance(name, str) and name:
                await self._delete(self._url(name))
        await self._delete(self._url(batch_id))


def _name_of(intent: BatchIntent) -> str:
    return f"fanout-{intent.nonce}"


def _metadata(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the batch in an operation; some replies are the batch itself."""
    metadata = operation.get("metadata")
    return metadata if isinstance(metadata, dict) else operation


def _state(operation: dict[str, Any], metadata: dict[str, Any]) -> BatchState:
    named = str(metadata.get("state", ""))
    for beginning in _BEGINNINGS:
        named = named.removeprefix(beginning)
    if named in _STATES:
        return _STATES[named]
    if not operation.get("done"):
        return BatchState.RUNNING
    return BatchState.FAILED if operation.get("error") else BatchState.ENDED


def _batches_in(page: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    found = page.get("operations", page.get("batches"))
    for operation in found if isinstance(found, list) else ():
        name = operation.get("name") if isinstance(operation, dict) else None
        if isinstance(name, str):
            yield name, _metadata(operation)


def _next_page(page: dict[str, Any]) -> dict[str, str] | None:
    token = page.get("nextPageToken")
    return (
        {"pageSize": str(_PAGE), "pageToken": token} if isinstance(token, str) and token else None
    )


def _error_of(holder: Any) -> Any:
    return holder.get("error") or holder.get("status") if isinstance(holder, dict) else None


def _status_of(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and code in _STATUSES:
        return code
    return _STATUS_OF.get(code, _SERVER_ERROR) if isinstance(code, int) else _SERVER_ERROR


def _whole_error(operation: dict[str, Any]) -> BatchError:
    error = _error_of(operation) or {"message": "the provider gives no reason"}
    status = _status_of(error)
    details = error_details_in({"error": error})
    return BatchError.of(
        http_error(_BAD_REQUEST if status >= _SERVER_ERROR else status, details, headers={})
    )
