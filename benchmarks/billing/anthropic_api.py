"""Anthropic's side of the mock: messages and message batches."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from billing.batch_api import BatchApi
from billing.caches import MarkedCache
from billing.desk import ApiError, Desk, body_of, model_of, text_of
from billing.ledger import PRICES, Tokens, count_tokens

__all__ = ["AnthropicApi"]

_MOST_MARKS = 4
_MOST_REQUESTS = 100_000
_LASTS_S = {None: 300.0, "5m": 300.0, "1h": 3_600.0}
_HOUR_S = 3_600.0


class AnthropicApi(BatchApi):
    """The routes of Anthropic.

    Args:
        desk: The state that both providers share.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._results: dict[str, bytes] = {}

    def forget(self) -> None:
        """Empty the cache."""
        self._cache = MarkedCache(self._desk.clock)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/messages", self._answering(self._create)),
            web.post("/v1/messages/batches", self._answering(self._open)),
            web.get("/v1/messages/batches", self._answering(self._list)),
            web.get("/v1/messages/batches/{id}", self._answering(self._show)),
            web.get("/v1/messages/batches/{id}/results", self._answering(self._read)),
            web.post("/v1/messages/batches/{id}/cancel", self._answering(self._cancel)),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        message = self._message(await body_of(request), "realtime")
        await self._desk.work()
        return web.json_response(message)

    def _message(self, body: dict[str, Any], lane: str) -> dict[str, Any]:
        """Process and charge a request."""
        desk, model = self._desk, model_of(body, "claude-")
        if type(body.get("max_tokens")) is not int:
            raise ApiError(400, "max_tokens: Field required")
        blocks, marks = _blocks(body)
        read, written = self._cache.use(
            blocks,
            marks,
            shortest=PRICES[model].shortest,
            after_s=desk.options.prefill_s,
        )
        total = count_tokens(b"".join(blocks))
        for_hour = written.get(_HOUR_S, 0)
        tokens = Tokens(
            fresh=total - read - sum(written.values()),
            cached=read,
            written=sum(written.values()) - for_hour,
            written_1h=for_hour,
            output=desk.output_tokens,
        )
        desk.ledger.charge(model, tokens, lane)
        desk.sent.append({"lane": lane, "cached": read, "tokens": total, "marks": len(marks)})
        return {
            "id": desk.next_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "content": [{"type": "text", "text": desk.answer}],
            "usage": {
                "input_tokens": tokens.fresh,
                "cache_creation_input_tokens": tokens.written + for_hour,
                "cache_read_input_tokens": read,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": tokens.written,
                    "ephemeral_1h_input_tokens": for_hour,
                },
                "output_tokens": desk.output_tokens,
                "service_tier": "batch" if lane == "batch" else "standard",
            },
        }

    async def _open(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        requests = body.get("requests")
        if not isinstance(requests, list) or not 0 < len(requests) <= _MOST_REQUESTS:
            raise ApiError(400, f"requests: 1 to {_MOST_REQUESTS} are required")
        if len({one["custom_id"] for one in requests}) != len(requests):
            raise ApiError(400, "custom_id: must be unique")
        now = datetime.now(UTC)
        counts = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        batch: dict[str, Any] = {
            "id": self._desk.next_id("msgbatch_"),
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": {"processing": len(requests), **counts},
            "created_at": now.isoformat(),
            "expires_at": (now + timedelta(days=1)).isoformat(),
            "ended_at": None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": None,
        }
        self._batches[batch["id"]] = batch
        batch["url"] = f"{request.url.origin()}/v1/messages/batches/{batch['id']}/results"
        self._start(self._run(batch, requests))
        return web.json_response(_shown(batch))

    async def _run(self, batch: dict[str, Any], requests: list[dict[str, Any]]) -> None:
        options, lines = self._desk.options, []
        await asyncio.sleep(options.batch_s)
        counts = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        for at in range(0, len(requests), options.batch_width):
            for one in requests[at : at + options.batch_width]:
                result = self._result(one["params"], is_open=batch["cancel_initiated_at"] is None)
                counts[result["type"]] += 1
                lines.append({"custom_id": one["custom_id"], "result": result})
            await asyncio.sleep(options.prefill_s)
        self._results[batch["id"]] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        batch["request_counts"] = {"processing": 0, **counts}
        batch["processing_status"] = "ended"
        batch["ended_at"] = datetime.now(UTC).isoformat()
        batch["results_url"] = batch["url"]

    def _result(self, params: dict[str, Any], *, is_open: bool) -> dict[str, Any]:
        if not is_open:
            return {"type": "canceled"}
        try:
            return {"type": "succeeded", "message": self._message(params, "batch")}
        except ApiError as error:
            return {"type": "errored", "error": self._error(error)}

    async def _list(self, request: web.Request) -> web.Response:
        page = self._page(request, "after_id")
        return web.json_response({**page, "data": [_shown(batch) for batch in page["data"]]})

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(_shown(self._batch(request)))

    async def _read(self, request: web.Request) -> web.Response:
        results = self._results.get(self._batch(request)["id"])
        if results is None:
            raise ApiError(400, "the batch has not ended")
        return web.Response(body=results, content_type="application/x-jsonl")

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        if batch["processing_status"] == "in_progress":
            batch["processing_status"] = "canceling"
            batch["cancel_initiated_at"] = datetime.now(UTC).isoformat()
        return web.json_response(_shown(batch))

    def _error(self, error: ApiError) -> dict[str, Any]:
        kind = "not_found_error" if error.status == 404 else "invalid_request_error"  # noqa: PLR2004 - not found
        return {"type": "error", "error": {"type": kind, "message": str(error)}}


def _shown(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "url"}


def _blocks(body: dict[str, Any]) -> tuple[list[bytes], dict[int, float]]:
    """Return the blocks of a prompt in their order, and how long those with a mark are kept."""
    blocks: list[bytes] = []
    marks: dict[int, float] = {}
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: Field required")
    format_ = (body.get("output_config") or {}).get("format")
    if format_:
        blocks.append(json.dumps(format_, sort_keys=True).encode())
    parts = [("system", body["system"])] if body.get("system") else []
    parts += [(message.get("role"), message.get("content")) for message in messages]
    for role, content in parts:
        listed = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for block in listed:
            blocks.append(f"\n{role}: {text_of([block])}".encode())
            mark = block.get("cache_control")
            if mark is not None:
                marks[len(blocks) - 1] = _lasts_s(mark)
    if len(marks) > _MOST_MARKS:
        raise ApiError(
            400,
            f"A maximum of {_MOST_MARKS} blocks with cache_control may be provided. "
            f"Found {len(marks)}.",
        )
    return blocks, marks


def _lasts_s(mark: Any) -> float:
    if not isinstance(mark, dict) or mark.get("type") != "ephemeral":
        raise ApiError(400, "cache_control: type must be ephemeral")
    if mark.get("ttl") not in _LASTS_S:
        raise ApiError(400, "cache_control.ttl: must be 5m or 1h")
    return _LASTS_S[mark.get("ttl")]
