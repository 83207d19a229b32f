"""The batch APIs of OpenAI, Anthropic and Gemini on this machine, with faults.

It also answers single calls, so that a run may go on without batches.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.fences import bare
from tests.scripted_provider import _Server, anthropic_reply, gemini_reply, openai_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 256 * 1024
_NONE: dict[str, Any] = {}


@dataclass
class MadeBatch:
    """A batch that the provider has made.

    `items` are the custom ids with the bodies of their calls; `answered` those that it has answered
    and billed. `state` is running, ended, failed, expired or cancelled.
    """

    id: str
    api: str
    items: list[tuple[str, dict[str, Any]]]
    created_at: float
    metadata: dict[str, str]
    name: str = ""
    input_file: str = ""
    output_file: str | None = None
    error_file: str | None = None
    state: str = "running"
    is_cancelling: bool = False
    polls: int = 0
    failure: dict[str, Any] | None = None
    answered: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # Until then it is not seen: its creation is under way.
    seen_from: float = 0.0

    @property
    def ids(self) -> list[str]:
        return [custom_id for custom_id, _ in self.items]


class Bill(NamedTuple):
    """An answer that is charged for: how it was bought, the body of its call, and its tokens."""

    lane: str
    body: dict[str, Any]
    taken: int
    given: int


class BatchProvider:
    """A provider with batch APIs.

    `reply` returns the answer to a prompt, and `item` what becomes of an item by its prompt: None (an
    answer), "expired", or the status and content of an error; `single` is the same for a call by itself.
    `singles` are the bodies of such calls, and `bills` the answers to all. A batch runs for `polls` polls,
    and while `is_held`. `faults` counts what fails, by name, once for each count:

    * upload_cut: the connection closes in the middle of an upload
    * create_failed: HTTP 500, and no batch is made
    * create_lost: the batch is made, and the connection closes without a reply
    * create_late: as create_lost, and the batch is made `late_s` after that
    * create_nameless: the batch is made, and the reply has no id
    * create_refused: HTTP 429
    * poll_failed, results_failed, cancel_failed, list_failed: HTTP 500
    * results_cut: the connection closes in the middle of the results
    * batch_failed: the batch fails as a whole; batch_full: because the account's queue is full
    * batch_expired: only every second item is answered

    Results are in the order of the lines, unless `is_shuffled`. `has_doubled` sends each line twice,
    and `extra_lines` are sent as they are.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.reply: Callable[[str], str] = lambda prompt: f"re: {prompt}"
        self.item: Callable[[str], str | tuple[int, Any] | None] = lambda _prompt: None
        self.single: Callable[[str], tuple[int, Any] | None] = lambda _prompt: None
        self.polls = 0
        self.is_held = False
        self.late_s = 0.5
        self.delay_s = 0.0
        self.is_shuffled = False
        self.has_doubled = False
        self.extra_lines: list[bytes] = []
        self.faults: Counter[str] = Counter()
        self.batches: list[MadeBatch] = []
        self.calls: list[str] = []
        self.singles: list[dict[str, Any]] = []
        self.bills: list[Bill] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.files: dict[str, Path] = {}
        self._uploads: dict[str, str] = {}
        self._numbers = 0
        self._folder = tempfile.TemporaryDirectory(prefix="batch-provider-")
        self._lock = threading.RLock()
        self._server = _Server((address, 0), self._handler())
        self.url = f"http://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which all three adapters call this provider."""
        return {
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": "sk-test-0123456789abcdef",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-ant-test-0123456789abcdef",
            "GEMINI_BASE_URL": f"{self.url}/v1beta",
            "GEMINI_API_KEY": "gemini-test-0123456789abcdef",
        }

    @property
    def doubled(self) -> list[str]:
        """The custom ids that were accepted in several batches that answered them."""
        counts = Counter(one for batch in self.batches for one in batch.answered)
        return [custom_id for custom_id, times in counts.items() if times > 1]

    @property
    def answered(self) -> list[str]:
        """The prompts that batches have answered, once for each answer that was billed."""
        return [
            prompt_of(body)
            for batch in self.batches
            for custom_id, body in batch.items
            if custom_id in set(batch.answered)
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()

    def fails(self, name: str) -> bool:
        with self._lock:
            if self.faults[name] <= 0:
                return False
            self.faults[name] -= 1
            return True

    # Files and batches.

    def new_file(self) -> tuple[str, Path]:
        with self._lock:
            # Never one of a file that was deleted.
            self._numbers += 1
            file_id = f"file-{self._numbers}"
            self.files[file_id] = Path(self._folder.name) / file_id
            return file_id, self.files[file_id]

    def make(self, batch: MadeBatch) -> MadeBatch:
        with self._lock:
            batch.id = f"{batch.id}{len(self.batches) + 1}"
            self.batches.append(batch)
        if self.fails("batch_full"):
            batch.failure = {
                "code": "token_limit_exceeded",
                "message": "Enqueued token limit reached for this model",
            }
        elif self.fails("batch_failed"):
            batch.failure = {"code": "invalid_json_line", "message": "line 1 is invalid", "line": 1}
        elif len(set(batch.ids)) < len(batch.ids):
            batch.failure = {"code": "duplicate_custom_id", "message": "a custom_id is there twice"}
        elif self.fails("batch_expired"):
            batch.counts["expires"] = 1
        return batch

    def batch(self, batch_id: str) -> MadeBatch | None:
        return next((one for one in self.seen() if one.id == batch_id), None)

    def seen(self, api: str | None = None) -> list[MadeBatch]:
        """The batches that can be seen now, the newest first."""
        now = time.time()
        return [
            one for one in reversed(self.batches) if one.seen_from <= now and api in (None, one.api)
        ]

    def poll(self, batch: MadeBatch) -> None:
        with self._lock:
            batch.polls += 1
            if batch.state != "running":
                return
            if batch.failure is not None:
                batch.state = "failed"
            elif batch.is_cancelling:
                self._finish(batch, "cancelled", answers=0)
            elif not self.is_held and batch.polls > self.polls:
                expires = batch.counts.pop("expires", 0)
                state = "expired" if expires else "ended"
                self._finish(batch, state, answers=2 if expires else 1)

    def _finish(self, batch: MadeBatch, state: str, *, answers: int) -> None:
        """End a batch: it answers every item, every second one (2), or none (0)."""
        results: dict[bool, list[bytes]] = {True: [], False: []}
        for number, (custom_id, body) in enumerate(batch.items):
            fate: Any = self.item(prompt_of(body))
            if not answers or (answers == 2 and number % 2):
                fate = "cancelled" if state == "cancelled" else "expired"
            is_answer = fate is None
            if is_answer:
                batch.answered.append(custom_id)
                fate = (200, self.completion(batch.api, body))
            kind = fate if isinstance(fate, str) else ("ok" if is_answer else "error")
            batch.counts[kind] += 1
            line = json.dumps(_LINES[batch.api](custom_id, fate)).encode()
            is_first = is_answer or batch.api != "openai"
            results[is_first] += [line] * (2 if self.has_doubled else 1)
        for is_first, lines in results.items():
            if not lines and not (is_first and self.extra_lines):
                continue
            if self.is_shuffled:
                random.Random(1).shuffle(lines)
            file_id, path = self.new_file()
            sent = [*self.extra_lines, *lines] if is_first else lines
            path.write_bytes(b"".join(line + b"\n" for line in sent))
            if is_first:
                batch.output_file = file_id
            else:
                batch.error_file = file_id
        batch.state = state

    def completion(self, api: str, body: dict[str, Any], lane: str = "batch") -> dict[str, Any]:
        prompt = prompt_of(body)
        text = self.reply(prompt)
        taken, given = len(prompt) // 4 + 1, len(text) // 4 + 1
        self.bills.append(Bill(lane, body, taken, given))
        if api == "openai":
            usage = {"prompt_tokens": taken, "completion_tokens": given}
            return {**openai_reply(text), "model": body["model"], "usage": usage}
        if api == "anthropic":
            usage = {"input_tokens": taken, "output_tokens": given}
            return {**anthropic_reply(text), "model": body["model"], "usage": usage}
        counts = {"promptTokenCount": taken, "candidatesTokenCount": given}
        return gemini_reply(text, usageMetadata=counts)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(_Handler):
            pass

        Handler.provider = provider
        return Handler


def prompt_of(body: dict[str, Any]) -> str:
    """The last message of a call of any of the three APIs, without fences."""
    if "contents" in body:
        return bare(str(body["contents"][-1]["parts"][0]["text"]))
    return bare(str(body["messages"][-1]["content"]))


def _openai_line(custom_id: str, fate: Any) -> dict[str, Any]:
    line = {"id": f"batch_req_{custom_id}", "custom_id": custom_id}
    if isinstance(fate, str):
        code = {"expired": "batch_expired", "cancelled": "batch_cancelled"}[fate]
        return {**line, "response": None, "error": {"code": code, "message": f"it was {fate}"}}
    status, body = fate
    response = {"status_code": status, "request_id": "r", "body": body}
    return {**line, "response": response, "error": None}


def _anthropic_line(custom_id: str, fate: Any) -> dict[str, Any]:
    if isinstance(fate, str):
        kind = {"expired": "expired", "cancelled": "canceled"}[fate]
        return {"custom_id": custom_id, "result": {"type": kind}}
    status, body = fate
    if status == 200:
        return {"custom_id": custom_id, "result": {"type": "succeeded", "message": body}}
    return {"custom_id": custom_id, "result": {"type": "errored", "error": body}}


def _gemini_line(custom_id: str, fate: Any) -> dict[str, Any]:
    if isinstance(fate, str):
        return {"key": custom_id, "error": {"code": 4, "message": f"it was {fate}"}}
    status, body = fate
    if status == 200:
        return {"key": custom_id, "response": body}
    error = body.get("error", body)
    return {"key": custom_id, "error": {**error, "code": status}}


_LINES = {"openai": _openai_line, "anthropic": _anthropic_line, "gemini": _gemini_line}


class _Handler(BaseHTTPRequestHandler):
    """One connection to a BatchProvider."""

    protocol_version = "HTTP/1.1"
    # Headers and bodies are sent apart: the client would delay its acknowledgement of the first.
    disable_nagle_algorithm = True
    provider: BatchProvider

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        provider = self.provider
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        with provider._lock:
            provider.requests.append((self.command, split.path, headers))
        time.sleep(provider.delay_s)
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, split.path)
            if found and method == self.command:
                getattr(self, name)(*found.groups())
                return
        self.body()
        self.send(404, {"error": {"message": f"nothing at {split.path}"}})

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the handler's names

    # What is read and sent.

    def blocks(self) -> Iterator[bytes]:
        left = int(self.headers.get("content-length") or 0)
        while left and (block := self.rfile.read(min(left, _BLOCK))):
            left -= len(block)
            yield block

    def body(self) -> bytes:
        return b"".join(self.blocks())

    def send(self, status: int, content: Any, headers: dict[str, str] = _NONE) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int = 500) -> None:
        self.send(status, {"error": {"message": "the provider fails"}})

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)

    def cut(self) -> bool:
        """Close the connection in the middle of an upload, if that is to be."""
        if not self.provider.fails("upload_cut"):
            return False
        self.rfile.read(1)
        self.hang_up()
        return True

    def send_file(self, file_id: str | None) -> None:
        path = self.provider.files.get(file_id or "")
        if self.provider.fails("results_failed"):
            self.fail()
            return
        if path is None or not path.exists():
            self.fail(404)
            return
        size = path.stat().st_size
        is_cut = self.provider.fails("results_cut")
        self.send_response(200)
        self.send_header("content-length", str(size))
        self.end_headers()
        left = size // 2 if is_cut else size
        with path.open("rb") as file:
            while left and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                self.wfile.write(block)
        if is_cut:
            self.hang_up()

    def made(self, batch: MadeBatch, view: Callable[[MadeBatch], Any]) -> None:
        """Make a batch and say so, unless that is to fail."""
        provider = self.provider
        if provider.fails("create_refused"):
            self.fail(429)
            return
        if provider.fails("create_failed"):
            self.fail()
            return
        is_late, is_lost = provider.fails("create_late"), provider.fails("create_lost")
        if is_late:
            batch.seen_from = time.time() + provider.late_s
        provider.make(batch)
        if is_late or is_lost:
            self.hang_up()
            return
        self.send(200, {} if provider.fails("create_nameless") else view(batch))

    def polled(self, batch_id: str, view: Callable[[MadeBatch], Any]) -> None:
        batch = self.provider.batch(batch_id)
        if self.provider.fails("poll_failed"):
            self.fail()
        elif batch is None:
            self.fail(404)
        else:
            self.provider.poll(batch)
            self.send(200, view(batch))

    def cancelled(self, batch_id: str, view: Callable[[MadeBatch], Any]) -> None:
        self.body()
        batch = self.provider.batch(batch_id)
        if self.provider.fails("cancel_failed"):
            self.fail()
        elif batch is None:
            self.fail(404)
        elif batch.state != "running":
            self.send(400, {"error": {"message": "it has ended", "type": "invalid_request_error"}})
        else:
            batch.is_cancelling = True
            self.send(200, view(batch))

    def single(self, api: str) -> None:
        body = json.loads(self.body())
        prompt = prompt_of(body)
        self.provider.calls.append(prompt)
        self.provider.singles.append(body)
        fate = self.provider.single(prompt)
        if fate is not None:
            self.send(*fate)
            return
        is_flex = "flex" in (body.get("service_tier"), body.get("serviceTier"))
        reply = self.provider.completion(api, body, "flex" if is_flex else "realtime")
        if is_flex and api == "openai":
            reply["service_tier"] = "flex"
        is_told = is_flex and api == "gemini"
        self.send(200, reply, {"x-gemini-service-tier": "flex"} if is_told else {})

    # OpenAI.

    def openai_call(self) -> None:
        self.single("openai")

    def openai_upload(self) -> None:
        if self.cut():
            return
        boundary = self.headers["content-type"].partition("boundary=")[2].encode()
        file_id, path = self.provider.new_file()
        with path.open("wb") as file:
            for block in self.blocks():
                file.write(block)
        data = path.read_bytes()
        parts = data.split(b"--" + boundary)
        content = {}
        for part in parts[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            name = re.search(rb'name="([^"]*)"', head)
            assert name is not None
            content[name[1].decode()] = value.removesuffix(b"\r\n")
        assert content["purpose"] == b"batch", content["purpose"]
        path.write_bytes(content["file"])
        self.send(200, {"id": file_id, "object": "file", "bytes": len(content["file"])})

    def openai_create(self) -> None:
        fields = json.loads(self.body())
        path = self.provider.files.get(fields["input_file_id"])
        if path is None or fields["endpoint"] != "/v1/chat/completions":
            self.send(400, {"error": {"message": "no such file, or a wrong endpoint"}})
            return
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert all((one["method"], one["url"]) == ("POST", fields["endpoint"]) for one in lines)
        batch = MadeBatch(
            "batch_",
            "openai",
            [(one["custom_id"], one["body"]) for one in lines],
            time.time(),
            fields.get("metadata") or {},
            input_file=fields["input_file_id"],
        )
        self.made(batch, openai_view)

    def openai_list(self) -> None:
        self.listed("openai", "after", openai_view)

    def openai_get(self, batch_id: str) -> None:
        self.polled(batch_id, openai_view)

    def openai_cancel(self, batch_id: str) -> None:
        self.cancelled(batch_id, openai_view)

    def openai_delete(self, file_id: str) -> None:
        self.provider.files.pop(file_id, None)
        self.send(200, {"id": file_id, "deleted": True})

    def listed(self, api: str, after: str, view: Callable[[MadeBatch], Any]) -> None:
        if self.provider.fails("list_failed"):
            self.fail()
            return
        batches = self.provider.seen(api)
        for batch in batches:
            self.provider.poll(batch)
        last = self.query.get(after)
        if last is not None:
            ids = [one.id for one in batches]
            batches = batches[ids.index(last) + 1 :]
        size = int(self.query.get("limit", 20))
        page = batches[:size]
        has_more = len(batches) > size
        self.send(200, {"data": [view(one) for one in page], "has_more": has_more})

    # Anthropic.

    def anthropic_call(self) -> None:
        self.single("anthropic")

    def anthropic_create(self) -> None:
        if self.cut():
            return
        requests = json.loads(self.body())["requests"]
        items = [(one["custom_id"], one["params"]) for one in requests]
        batch = MadeBatch("msgbatch_", "anthropic", items, time.time(), {})
        self.made(batch, self.anthropic_view)

    def anthropic_list(self) -> None:
        self.listed("anthropic", "after_id", self.anthropic_view)

    def anthropic_get(self, batch_id: str) -> None:
        self.polled(batch_id, self.anthropic_view)

    def anthropic_cancel(self, batch_id: str) -> None:
        self.cancelled(batch_id, self.anthropic_view)

    def anthropic_results(self, batch_id: str) -> None:
        batch = self.provider.batch(batch_id)
        self.send_file(batch.output_file if batch else None)

    def anthropic_delete(self, batch_id: str) -> None:
        self.send(200, {"id": batch_id, "type": "message_batch_deleted"})

    def anthropic_view(self, batch: MadeBatch) -> dict[str, Any]:
        names = {
            "ok": "succeeded",
            "error": "errored",
            "expired": "expired",
            "cancelled": "canceled",
        }
        counts = {named: batch.counts[name] for name, named in names.items()}
        has_ended = batch.state != "running"
        if batch.state == "failed":
            counts["errored"] = len(batch.items)
        running = "canceling" if batch.is_cancelling else "in_progress"
        url = f"{self.provider.url}/v1/messages/batches/{batch.id}/results"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if has_ended else running,
            "request_counts": {"processing": 0 if has_ended else len(batch.items), **counts},
            "created_at": _time(batch.created_at),
            "cancel_initiated_at": _time(batch.created_at) if batch.is_cancelling else None,
            "results_url": url if has_ended else None,
        }

    # Gemini.

    def gemini_call(self, _model: str) -> None:
        self.single("gemini")

    def gemini_start(self) -> None:
        self.body()
        file_id, _ = self.provider.new_file()
        place = f"{self.provider.url}/session/{file_id}"
        self.send(200, {}, {"x-goog-upload-url": place})

    def gemini_upload(self, file_id: str) -> None:
        if self.cut():
            return
        with self.provider.files[file_id].open("wb") as file:
            for block in self.blocks():
                file.write(block)
        self.send(200, {"file": {"name": f"files/{file_id}"}})

    def gemini_create(self, _model: str) -> None:
        fields = json.loads(self.body())["batch"]
        file_id = fields["inputConfig"]["fileName"].removeprefix("files/")
        lines = map(json.loads, self.provider.files[file_id].read_bytes().splitlines())
        items = [(one["key"], one["request"]) for one in lines]
        batch = MadeBatch(
            "batches/b",
            "gemini",
            items,
            time.time(),
            {},
            name=fields["displayName"],
            input_file=file_id,
        )
        self.made(batch, gemini_view)

    def gemini_list(self) -> None:
        if self.provider.fails("list_failed"):
            self.fail()
            return
        begin, size = int(self.query.get("pageToken", 0)), int(self.query.get("pageSize", 10))
        batches = self.provider.seen("gemini")
        page: dict[str, Any] = {
            "operations": [gemini_view(one) for one in batches[begin : begin + size]]
        }
        if len(batches) > begin + size:
            page["nextPageToken"] = str(begin + size)
        self.send(200, page)

    def gemini_get(self, name: str) -> None:
        self.polled(name, gemini_view)

    def gemini_cancel(self, name: str) -> None:
        self.cancelled(name, lambda _batch: {})

    def gemini_delete(self, _name: str) -> None:
        self.send(200, {})


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def openai_view(batch: MadeBatch) -> dict[str, Any]:
    running = "cancelling" if batch.is_cancelling else "in_progress"
    states = {"running": running, "ended": "completed"}
    failed = len(batch.items) - batch.counts["ok"] if batch.state != "running" else 0
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": {"object": "list", "data": [batch.failure]} if batch.failure else None,
        "input_file_id": batch.input_file,
        "status": states.get(batch.state, batch.state),
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": int(batch.created_at),
        "request_counts": {
            "total": len(batch.items),
            "completed": batch.counts["ok"],
            "failed": failed,
        },
        "metadata": batch.metadata,
    }


def gemini_view(batch: MadeBatch) -> dict[str, Any]:
    states = {"running": "RUNNING", "ended": "SUCCEEDED"}
    state = states.get(batch.state, batch.state.upper())
    view: dict[str, Any] = {
        "name": batch.id,
        "metadata": {
            "name": batch.id,
            "displayName": batch.name,
            "state": f"BATCH_STATE_{state}",
            "createTime": _time(batch.created_at),
            "inputConfig": {"fileName": f"files/{batch.input_file}"},
            "batchStats": {
                "requestCount": str(len(batch.items)),
                "successfulRequestCount": str(batch.counts["ok"]),
            },
        },
    }
    if batch.state != "running":
        view["done"] = True
        if batch.failure:
            is_full = batch.failure["code"] == "token_limit_exceeded"
            view["error"] = {"code": 8 if is_full else 3, "message": batch.failure["message"]}
        elif batch.output_file:
            view["response"] = {"responsesFile": f"files/{batch.output_file}"}
    return view


_ROUTES = [
    ("POST", r"/v1/chat/completions", "openai_call"),
    ("POST", r"/v1/files", "openai_upload"),
    ("GET", r"/v1/files/([^/]+)/content", "send_file"),
    ("DELETE", r"/v1/files/([^/]+)", "openai_delete"),
    ("POST", r"/v1/batches", "openai_create"),
    ("GET", r"/v1/batches", "openai_list"),
    ("GET", r"/v1/batches/([^/]+)", "openai_get"),
    ("POST", r"/v1/batches/([^/]+)/cancel", "openai_cancel"),
    ("POST", r"/v1/messages", "anthropic_call"),
    ("POST", r"/v1/messages/batches", "anthropic_create"),
    ("GET", r"/v1/messages/batches", "anthropic_list"),
    ("GET", r"/v1/messages/batches/([^/]+)", "anthropic_get"),
    ("DELETE", r"/v1/messages/batches/([^/]+)", "anthropic_delete"),
    ("GET", r"/v1/messages/batches/([^/]+)/results", "anthropic_results"),
    ("POST", r"/v1/messages/batches/([^/]+)/cancel", "anthropic_cancel"),
    ("POST", r"/v1beta/models/([^/]+):generateContent", "gemini_call"),
    ("POST", r"/v1beta/models/([^/]+):batchGenerateContent", "gemini_create"),
    ("POST", r"/upload/v1beta/files", "gemini_start"),
    ("POST", r"/session/([^/]+)", "gemini_upload"),
    ("GET", r"/download/v1beta/files/([^/]+):download", "send_file"),
    ("GET", r"/v1beta/batches", "gemini_list"),
    ("GET", r"/v1beta/(batches/[^/:]+)", "gemini_get"),
    ("POST", r"/v1beta/(batches/[^/:]+):cancel", "gemini_cancel"),
    ("DELETE", r"/v1beta/((?:batches|files)/[^/:]+)", "gemini_delete"),
]
