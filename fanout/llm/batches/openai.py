"""OpenAI's Batch API, which compatible servers offer too.

Source: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

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
from fanout.llm.http_errors import http_error
from fanout.llm.openai import OpenAILLM
from fanout.llm.reply_bodies import error_details_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from yarl import URL

    from fanout.llm.base import LLMRequest
    from fanout.llm.batches.base import BatchIntent
    from fanout.llm.batches.http_batches import Before
    from fanout.llm.http_client import HttpReply

__all__ = ["OpenAIBatches"]

_PATH = "/v1/chat/completions"
_NONCE = "fanout_nonce"
_BAD_REQUEST = 400
# Files that a crash has left behind are deleted by OpenAI after 30 days, the most that it allows.
_KEPT_S = 30 * 24 * 3_600
_STATES = {
    "validating": BatchState.RUNNING,
    "in_progress": BatchState.RUNNING,
    "finalizing": BatchState.RUNNING,
    "cancelling": BatchState.RUNNING,
    "completed": BatchState.ENDED,
    "failed": BatchState.FAILED,
    "expired": BatchState.EXPIRED,
    "cancelled": BatchState.CANCELLED,
}
# The codes of what the account has too much of in its queue.
_FULL = frozenset({"token_limit_exceeded", "request_limit_exceeded", "batch_limit_exceeded"})
_UNDONE = {"batch_expired": ErrorKind.EXPIRED, "batch_cancelled": ErrorKind.CANCELLED}

_encode = msgspec.json.Encoder().encode


class OpenAIBatches(HttpBatches[OpenAILLM]):
    """Batches of chat completions: see HttpBatches."""

    limits = BatchLimits(requests=50_000, bytes=200_000_000)
    _list_path = "batches"

    async def line(self, custom_id: str, request: LLMRequest) -> bytes:
        """See BatchClient."""
        fields = {
            "custom_id": require_custom_id(custom_id),
            "method": "POST",
            "url": _PATH,
            "body": msgspec.Raw(await self._model.prepared(request)),
        }
        return _encode(fields) + b"\n"

    async def _create(self, path: Path, intent: BatchIntent, before: Before | None) -> str:
        body = {
            "input_file_id": await self._file(path, intent),
            "endpoint": _PATH,
            "completion_window": "24h",
            "metadata": {_NONCE: intent.nonce},
        }

        async def once() -> HttpReply:
            return await self._post_once(self._http.url("batches"), _encode(body))

        return await self._made_once(once, "id", before)

    async def _file(self, path: Path, intent: BatchIntent) -> str:
        """Upload a file; return its id."""
        fields = {"purpose": "batch"}
        if self._model.is_openai:
            fields |= {
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": str(_KEPT_S),
            }
        begin, end = _multipart(fields, f"fanout-{intent.nonce}.jsonl", intent.nonce)
        size = (await asyncio.to_thread(path.stat)).st_size

        def parts() -> AsyncIterator[bytes]:
            return file_parts(path, before=begin, after=end)

        async def once() -> HttpReply:
            return await self._upload(
                self._http.url("files"),
                parts,
                size=len(begin) + size + len(end),
                headers={"content-type": f"multipart/form-data; boundary={intent.nonce}"},
            )

        made = self._object(await self._patiently(once)).get("id")
        if not isinstance(made, str) or not made:
            raise nonsense("an uploaded file has no id")
        return made

    async def _find(self, intent: BatchIntent, known_ids: Collection[str]) -> str | None:
        first = self._http.url("batches").update_query(limit=str(PAGE))
        since = intent.created_at - CLOCK_SKEW_S
        async for page in self._pages(first, partial(next_page, after="after")):
            for batch in batches_in(page):
                metadata = batch.get("metadata")
                is_ours = isinstance(metadata, dict) and metadata.get(_NONCE) == intent.nonce
                if is_ours and batch["id"] not in known_ids:
                    return str(batch["id"])
            ages = [seconds_of(batch.get("created_at")) for batch in batches_in(page)]
            if ages and all(made_at is not None and made_at < since for made_at in ages):
                return None
        return None

    def _status_in(self, batch: dict[str, Any]) -> BatchStatus:
        counts = batch.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        state = _STATES.get(str(batch.get("status")).lower(), BatchState.RUNNING)
        return BatchStatus(
            state=state,
            requests=count_of(counts.get("total")),
            succeeded=count_of(counts.get("completed")),
            failed=count_of(counts.get("failed")),
            error=_whole_error(batch.get("errors")) if state is BatchState.FAILED else None,
        )

    async def _places(self, batch_id: str) -> list[URL]:
        # A batch has no output file if no request has succeeded, and no error file if none failed.
        batch = await self._batch(batch_id)
        return [self._content(one) for one in _files_in(batch, "output_file_id", "error_file_id")]

    def _content(self, file_id: str) -> URL:
        return self._http.url(f"files/{self._http.quoted(file_id)}/content")

    def _read(self, item: dict[str, Any]) -> tuple[Any, HttpReply | BatchError]:
        custom_id, response, error = item.get("custom_id"), item.get("response"), item.get("error")
        if isinstance(response, dict):
            status = count_of(response.get("status_code")) or (_BAD_REQUEST if error else 200)
            body = response.get("body")
            return custom_id, item_reply(status, {"error": error} if error and not body else body)
        if not error:
            return custom_id, unreadable("the result has no response")
        details = error_details_in({"error": error})
        for code in details.codes:
            if code in _UNDONE:
                return custom_id, undone(_UNDONE[code], details.message)
        return custom_id, item_reply(_BAD_REQUEST, {"error": error})

    async def discard(self, batch_id: str) -> None:
        """See BatchClient."""
        with suppress(LLMError):
            batch = await self._batch(batch_id)
            for file_id in _files_in(batch, "input_file_id", "output_file_id", "error_file_id"):
                await self._delete(self._http.url(f"files/{self._http.quoted(file_id)}"))


def _multipart(fields: dict[str, str], name: str, boundary: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the file in a form. Source: RFC 7578."""
    begin = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    )
    begin += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return begin.encode(), f"\r\n--{boundary}--\r\n".encode()


def _files_in(batch: dict[str, Any], *names: str) -> list[str]:
    given = [batch.get(name) for name in names]
    return list(dict.fromkeys(one for one in given if isinstance(one, str) and one))


def _whole_error(errors: Any) -> BatchError:
    """Return why a batch failed as a whole: the first of its errors, of which each has a line."""
    data = errors.get("data") if isinstance(errors, dict) else None
    first = (
        next((one for one in data if isinstance(one, dict)), None)
        if isinstance(data, list)
        else None
    )
    details = error_details_in({"error": first or {"message": "the provider gives no reason"}})
    is_full = not _FULL.isdisjoint(details.codes) or "enqueued" in details.message.lower()
    error = http_error(429 if is_full else _BAD_REQUEST, details, headers={})
    if is_full:
        error.kind = ErrorKind.RATE_LIMITED
    return BatchError.of(error)
