"""OpenAI's side of the mock: chat completions, files and batches."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from billing.batch_api import BatchApi
from billing.caches import AutomaticCache
from billing.desk import ApiError, Desk, body_of, model_of, text_of
from billing.ledger import Tokens, count_tokens

__all__ = ["OpenAiApi"]

_TIERS = {None: "realtime", "auto": "realtime", "default": "realtime", "flex": "flex"}
_MOST_REQUESTS = 50_000
_WINDOW_S = 24 * 3_600


class OpenAiApi(BatchApi):
    """The routes of OpenAI.

    Args:
        desk: The state that both providers share.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._files: dict[str, bytes] = {}

    def forget(self) -> None:
        """Empty the cache."""
        self._cache = AutomaticCache(self._desk.clock, self._desk.options.cache_s)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/chat/completions", self._answering(self._chat)),
            web.post("/v1/files", self._answering(self._upload)),
            web.get("/v1/files/{id}/content", self._answering(self._content)),
            web.delete("/v1/files/{id}", self._answering(self._delete)),
            web.post("/v1/batches", self._answering(self._open)),
            web.get("/v1/batches", self._answering(self._list)),
            web.get("/v1/batches/{id}", self._answering(self._show)),
            web.post("/v1/batches/{id}/cancel", self._answering(self._cancel)),
        ]

    async def _chat(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        tier = body.get("service_tier")
        if tier not in _TIERS:
            raise ApiError(400, f"service_tier: {tier!r} is not supported")
        lane = _TIERS[tier]
        if lane == "flex":
            self._desk.require_capacity()
        completion = self._completion(body, lane)
        await self._desk.work()
        return web.json_response(completion)

    def _completion(self, body: dict[str, Any], lane: str) -> dict[str, Any]:
        """Process and charge a request."""
        desk, model = self._desk, model_of(body, "gpt-")
        prompt = _prompt(body)
        key = body.get("prompt_cache_key") or ""
        if not isinstance(key, str):
            raise ApiError(400, "prompt_cache_key: must be a string")
        cached = self._cache.read(prompt, key, desk.options.prefill_s)
        tokens = count_tokens(prompt)
        desk.ledger.charge(
            model, Tokens(fresh=tokens - cached, cached=cached, output=desk.output_tokens), lane
        )
        desk.sent.append({"lane": lane, "cached": cached, "tokens": tokens, "key": key})
        return {
            "id": desk.next_id("chatcmpl-"),
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": body["model"],
            "service_tier": "flex" if lane == "flex" else "default",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "logprobs": None,
                    "message": {"role": "assistant", "content": desk.answer, "refusal": None},
                }
            ],
            "usage": {
                "prompt_tokens": tokens,
                "completion_tokens": desk.output_tokens,
                "total_tokens": tokens + desk.output_tokens,
                "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }

    async def _upload(self, request: web.Request) -> web.Response:
        if not request.content_type.startswith("multipart/"):
            raise ApiError(400, "the body must be multipart/form-data")
        form = await request.post()
        file = form.get("file")
        if form.get("purpose") != "batch" or not isinstance(file, web.FileField):
            raise ApiError(400, "a file and its purpose, batch, are required")
        file_id, data = self._desk.next_id("file-"), file.file.read()
        self._files[file_id] = data
        return web.json_response(
            {
                "id": file_id,
                "object": "file",
                "bytes": len(data),
                "created_at": self._now(),
                "filename": file.filename,
                "purpose": "batch",
                "status": "processed",
            }
        )

    async def _content(self, request: web.Request) -> web.Response:
        data = self._files.get(request.match_info["id"])
        if data is None:
            raise ApiError(404, "no such File object", "not_found")
        return web.Response(body=data, content_type="application/jsonl")

    async def _delete(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        is_there = self._files.pop(file_id, None) is not None
        return web.json_response({"id": file_id, "object": "file", "deleted": is_there})

    async def _open(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        if body.get("endpoint") != "/v1/chat/completions" or body.get("completion_window") != "24h":
            raise ApiError(400, "endpoint and completion_window (24h) are required")
        data = self._files.get(str(body.get("input_file_id")))
        if data is None:
            raise ApiError(404, "no such File object", "not_found")
        lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        if not 0 < len(lines) <= _MOST_REQUESTS:
            raise ApiError(400, f"a batch has 1 to {_MOST_REQUESTS} requests")
        ids = {line["custom_id"] for line in lines}
        if len(ids) != len(lines):
            raise ApiError(400, "custom_id: must be unique", "duplicate_custom_id")
        now = self._now()
        batch = {
            "id": self._desk.next_id("batch_"),
            "object": "batch",
            "endpoint": body["endpoint"],
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": now,
            "expires_at": now + _WINDOW_S,
            "completed_at": None,
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        self._batches[batch["id"]] = batch
        self._start(self._run(batch, lines))
        return web.json_response(batch)

    async def _run(self, batch: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        options = self._desk.options
        done: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        await asyncio.sleep(options.batch_s)
        for at in range(0, len(lines), options.batch_width):
            if batch["status"] != "in_progress":
                break
            for line in lines[at : at + options.batch_width]:
                result = self._line(line)
                (done if result["response"]["status_code"] == 200 else failed).append(result)  # noqa: PLR2004 - OK
            await asyncio.sleep(options.prefill_s)
        for name, results in (("output_file_id", done), ("error_file_id", failed)):
            if results:
                batch[name] = file_id = self._desk.next_id("file-")
                self._files[file_id] = b"".join(json.dumps(one).encode() + b"\n" for one in results)
        counts = {"total": len(lines), "completed": len(done), "failed": len(failed)}
        batch["request_counts"] = counts
        is_cancelled = batch["status"] == "cancelling"
        batch["status"] = "cancelled" if is_cancelled else "completed"
        batch["cancelled_at" if is_cancelled else "completed_at"] = self._now()

    def _line(self, line: dict[str, Any]) -> dict[str, Any]:
        try:
            status, body = 200, self._completion(line["body"], "batch")
        except ApiError as error:
            status, body = error.status, self._error(error)
        return {
            "id": self._desk.next_id("batch_req_"),
            "custom_id": line["custom_id"],
            "response": {"status_code": status, "request_id": "req", "body": body},
            "error": None,
        }

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", **self._page(request, "after")})

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._batch(request))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        if batch["status"] == "in_progress":
            batch["status"] = "cancelling"
        return web.json_response(batch)

    def _error(self, error: ApiError) -> dict[str, Any]:
        kind = "invalid_request_error" if error.status < 429 else "server_error"  # noqa: PLR2004 - too many
        return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}

    def _now(self) -> int:
        return int(self._desk.wall_s())


def _prompt(body: dict[str, Any]) -> bytes:
    """Return what is tokenized: the schema of the answer comes before the messages."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: a list is required")
    schema = body.get("response_format")
    parts = [json.dumps(schema, sort_keys=True)] if schema else []
    for message in messages:
        parts += [f"\n{message.get('role')}: ", text_of(message.get("content"))]
    return "".join(parts).encode()
