"""A mock provider of chat completions, fast enough not to limit the measurements.

    python benchmarks/provider.py [--port 0] [--latency constant:1.0] [--seed 1] ...

It listens on loopback, prints one line of JSON with its URL, and serves until it is stopped:

    POST /v1/chat/completions    a completion, after the next latency of the sequence
    GET  /v1/models
    GET  /stats                  the counters since the last reset, as JSON
    POST /reset                  reset the counters, and restart the latencies and errors
    POST /outage?sort=500&lasts_s=120    fail for all clients: see provider_outages.py
    GET  /events                 with --log: arrival and answer of each request in seconds, and whether the
                                 word of --log is in it

Latencies and errors follow the order of arrival: N requests always get the same ones. The server
parses the first request of a connection and refuses one that is not a chat completion. It does not
parse the others, as that would cost more than the answer. As a module, ``Provider`` starts and stops
it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from mock_process import MockProcess
from provider_limits import KINDS, TELLS, Quota
from provider_outages import RESET, SILENCE, Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Connection", "LatencyError", "Plan", "Provider", "latencies"]

MODEL = "mock"
_PATH = b"/v1/chat/completions"
_MAX_HEAD = 65_536
_WORDS = b"the quick brown fox jumps over the lazy dog and reads on "
# Spaces, which JSON allows, pad the numbers to a fixed length.
_BODY = (
    b'{"id": "chatcmpl-%010d", "object": "chat.completion", "created": 1700000000, '
    b'"model": "mock", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": null, '
    b'"message": {"role": "assistant", "content": "%s", "refusal": null}}], '
    b'"usage": {"prompt_tokens": %8d, "completion_tokens": %8d, "total_tokens": %8d}}'
)
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    411: "Length Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


class LatencyError(ValueError):
    """A latency is not one of the known forms."""


def latencies(form: str, seed: int) -> Iterator[float]:
    """Yield the latencies of the requests in seconds, without end.

    Args:
        form: ``0``, ``constant:SECONDS``, ``lognormal:MEDIAN_S:SIGMA`` or ``pareto:LEAST_S:ALPHA``.
        seed: The same form and seed give the same latencies.

    Raises:
        LatencyError: The form is not one of these.
    """
    name, *words = form.split(":")
    if name == "0" and not words:
        name, words = "constant", ["0"]
    known: dict[str, tuple[int, Callable[..., float]]] = {
        "constant": (1, lambda seconds: seconds),
        "lognormal": (2, lambda median, sigma: draw.lognormvariate(math.log(median), sigma)),
        "pareto": (2, lambda least, alpha: least * draw.paretovariate(alpha)),
    }
    draw = random.Random(seed)  # noqa: S311 - repeatable is what it should be
    count, next_one = known.get(name, (-1, float))
    try:
        numbers = [float(word) for word in words]
        is_known = len(numbers) == count and all(0 <= number < math.inf for number in numbers)
        if is_known:
            next_one(*numbers)
    except (ValueError, ZeroDivisionError):
        is_known = False
    if not is_known:
        allowed = "0, constant:SECONDS, lognormal:MEDIAN_S:SIGMA, pareto:LEAST_S:ALPHA"
        raise LatencyError(f"latency {form!r} is none of {allowed}")
    # Start again, as the check above has drawn one.
    draw.seed(seed)
    return iter(lambda: next_one(*numbers), None)


@dataclass
class Plan:
    """The behaviour of the provider, and its counters."""

    latency: str = "0"
    seed: int = 1
    error_rate: float = 0.0
    refuse_rate: float = 0.0
    retry_after_s: float = 1.0
    answer_bytes: int = 100
    rpm: float = 0.0
    tpm: float = 0.0
    limit_kind: str = "bucket"
    limit_tells: str = "headers"
    log: str = ""
    connections: int = 0
    in_flight: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    outage: Outage | None = None
    # Where connections are to be refused; None where nobody listens.
    refuse: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        times, remainder = divmod(self.answer_bytes, len(_WORDS))
        self._text = _WORDS * times + _WORDS[:remainder]
        length = len(_BODY % (0, self._text, 0, 0, 0))
        self._head = _head(200, length)
        self.transports: set[Any] = set()
        self.reset()

    def reset(self) -> None:
        """Start again; connections and requests in flight stay."""
        self._latencies = latencies(self.latency, self.seed)
        # A separate generator, so that the rates do not change the latencies.
        self._fates = random.Random(self.seed + 1)  # noqa: S311 - repeatable
        is_limited = self.rpm > 0 or self.tpm > 0
        self.quota = (
            Quota(rpm=self.rpm, tpm=self.tpm, kind=self.limit_kind, tells=self.limit_tells)
            if is_limited
            else None
        )
        self._has_fates = self.error_rate > 0 or self.refuse_rate > 0
        self.by_status.clear()
        self.events: list[tuple[float, float, bool]] = []
        self.arrived = 0
        self.abandoned = 0
        self.bytes_in = 0
        self.max_in_flight = self.in_flight

    def arrive(self, size: int) -> tuple[float, int, bytes]:
        """Count a request with a body of ``size`` bytes; return latency, status and response."""
        self.arrived += 1
        self.bytes_in += size
        self.in_flight += 1
        self.max_in_flight = max(self.in_flight, self.max_in_flight)
        status = self._status() if self._has_fates else 200
        if self.quota is not None and status == 200:  # noqa: PLR2004 - OK
            return self._by_quota(self.quota, size)
        return next(self._latencies), status, self._response(status, size)

    def note(self, body: bytearray, latency_s: float) -> None:
        """Log a request."""
        now = time.monotonic()
        self.events.append((now, now + latency_s, self.log.encode() in body))

    def _by_quota(self, quota: Quota, size: int) -> tuple[float, int, bytes]:
        is_accepted, headers = quota.take((size + self.answer_bytes) // 4)
        if not is_accepted:
            # A refusal comes at once.
            return 0.0, 429, _error(429, headers)
        asked, answered = size // 4, self.answer_bytes // 4
        body = _BODY % (self.arrived, self._text, asked, answered, asked + answered)
        return next(self._latencies), 200, _head(200, len(body), headers) + body

    def _status(self) -> int:
        fate = self._fates.random()
        if fate < self.error_rate:
            return 500
        return 429 if fate < self.error_rate + self.refuse_rate else 200

    def _response(self, status: int, size: int) -> bytes:
        if status == 200:  # noqa: PLR2004 - OK
            asked, answered = size // 4, self.answer_bytes // 4
            numbers = (self.arrived, self._text, asked, answered, asked + answered)
            return self._head + _BODY % numbers
        return _error(status, f"retry-after: {self.retry_after_s:g}\r\n" if status == 429 else "")  # noqa: PLR2004 - refused

    def fail(self, asked: dict[str, list[str]]) -> None:
        """Start an outage."""
        sort, lasts_s = asked["sort"][0], float(asked["lasts_s"][0])
        self.outage = Outage(sort, lasts_s, seed=self.seed)
        if sort == "refused" and self.refuse is not None:
            self.refuse(lasts_s)

    def answered(self, status: int) -> None:
        """Count an answered request."""
        self.in_flight -= 1
        self.by_status[status] += 1

    def stats(self) -> dict[str, Any]:
        """Return the counters."""
        return {
            "served": sum(self.by_status.values()),
            "by_status": {str(status): n for status, n in sorted(self.by_status.items())},
            "abandoned": self.abandoned,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "connections": self.connections,
            "bytes_in": self.bytes_in,
            "struck_s": self.outage.struck_s if self.outage is not None else [],
            "by_second": self.quota.by_second if self.quota is not None else [],
        }


def _head(status: int, length: int, more: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
        f"{more}content-length: {length}\r\n\r\n"
    ).encode()


def _json_response(status: int, value: Any, more: str = "") -> bytes:
    body = json.dumps(value).encode()
    return _head(status, len(body), more) + body


def _error(status: int, more: str = "") -> bytes:
    error = {"message": _REASONS[status], "type": "mock_error", "code": str(status)}
    return _json_response(status, {"error": error}, more)


class _Answer:
    """A place in the order of a connection's answers; ``response`` is None until it is due."""

    __slots__ = ("response", "status", "timer")

    def __init__(self) -> None:
        self.response: bytes | None = None
        self.status = 0
        self.timer: asyncio.TimerHandle | None = None


class Connection(asyncio.Protocol):
    """One connection: requests with a Content-Length, answered in the order in which they came."""

    def __init__(self, plan: Plan, call_later: Callable[..., Any]) -> None:
        self._plan = plan
        self._call_later = call_later
        self._buffer = bytearray()
        # Below this size, the request at the buffer's start cannot be complete.
        self._needed = 0
        self._is_checked = False
        self._is_closing = False
        self._answers: deque[_Answer] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: Any = transport
        self._plan.connections += 1
        self._plan.transports.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Drop the pending answers."""
        self._plan.connections -= 1
        self._plan.transports.discard(self._transport)
        for answer in self._answers:
            if answer.status:
                self._plan.in_flight -= 1
                self._plan.abandoned += 1
            if answer.timer is not None:
                answer.timer.cancel()
        self._answers.clear()

    def data_received(self, data: bytes) -> None:
        """Process complete requests, in any segmentation."""
        self._buffer += data
        while len(self._buffer) > self._needed and not self._is_closing:
            if not self._take():
                break
        self._flush()

    def _take(self) -> bool:
        """Take a request off the buffer; return whether one was complete."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _MAX_HEAD:
                self._refuse(431)
            return False
        head = bytes(buffer[:end])
        fields = head.lower()
        length = _content_length(fields)
        if length is None:
            self._refuse(411)
            return False
        size = end + 4 + length
        if len(buffer) < size:
            if not self._needed and b"\r\nexpect: 100-continue" in fields:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._needed = size - 1
            return False
        self._needed = 0
        is_read = not self._is_checked or self._plan.log
        self._handle(head, buffer[end + 4 : size] if is_read else None, length)
        del buffer[:size]
        self._is_closing = b"\r\nconnection: close" in fields
        return True

    def _refuse(self, status: int) -> None:
        self._say(_error(status, "connection: close\r\n"))
        self._is_closing = True

    def _handle(self, head: bytes, body: bytearray | None, length: int) -> None:
        method, target, *_ = head.split(b" ", 2)
        path = target.partition(b"?")[0]
        if method == b"POST" and path == _PATH:
            self._complete(body, length)
        elif method == b"GET" and path == b"/v1/models":
            models = [{"id": MODEL, "object": "model", "created": 1, "owned_by": "mock"}]
            self._say(_json_response(200, {"object": "list", "data": models}))
        elif method == b"GET" and path == b"/stats":
            self._say(_json_response(200, self._plan.stats()))
        elif method == b"GET" and path == b"/events":
            self._say(_json_response(200, self._plan.events))
        elif method == b"POST" and path == b"/reset":
            self._plan.reset()
            self._say(_json_response(200, {}))
        elif method == b"POST" and path == b"/outage":
            self._say(_json_response(200, {}))
            self._flush()
            self._plan.fail(parse_qs(target.partition(b"?")[2].decode()))
        else:
            self._say(_error(404))

    def _complete(self, body: bytearray | None, length: int) -> None:
        if body is not None:
            if not _is_chat(body):
                self._say(_error(400))
                return
            self._is_checked = True
        outage = self._plan.outage
        if outage is not None and (told := outage.reply()) is not None:
            self._suffer(told)
            return
        latency_s, status, response = self._plan.arrive(length)
        if self._plan.log and body is not None:
            self._plan.note(body, latency_s)
        answer = _Answer()
        answer.status = status
        self._answers.append(answer)
        if latency_s > 0:
            answer.timer = self._call_later(latency_s, self._due, answer, response)
        else:
            answer.response = response

    def _suffer(self, told: bytes | str) -> None:
        if told == RESET:
            self._transport.abort()
        elif told == SILENCE:
            # Later answers wait as well.
            self._answers.append(_Answer())
        elif isinstance(told, bytes):
            self._say(told)

    def _due(self, answer: _Answer, response: bytes) -> None:
        answer.response = response
        answer.timer = None
        self._flush()

    def _say(self, response: bytes) -> None:
        answer = _Answer()
        answer.response = response
        self._answers.append(answer)

    def _flush(self) -> None:
        """Write the due answers, up to the first that is not due."""
        answers, ready = self._answers, []
        while answers and (response := answers[0].response) is not None:
            status = answers.popleft().status
            if status:
                self._plan.answered(status)
            ready.append(response)
        if ready:
            self._transport.write(ready[0] if len(ready) == 1 else b"".join(ready))
        if self._is_closing and not answers:
            self._transport.close()


def _content_length(fields: bytes) -> int | None:
    """Return a body's length; None for a chunked body or an invalid number."""
    if b"\r\ntransfer-encoding:" in fields:
        return None
    at = fields.find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    value = fields[at + 17 :].partition(b"\r\n")[0].strip()
    return int(value) if value.isdigit() else None


def _is_chat(body: bytearray) -> bool:
    try:
        request = json.loads(body)
    except ValueError:
        return False
    is_plain = isinstance(request, dict) and not request.get("stream")
    return is_plain and bool(request.get("messages")) and isinstance(request.get("model"), str)


async def _serve(plan: Plan, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()

    async def listen(at: int) -> asyncio.Server:
        return await loop.create_server(
            lambda: Connection(plan, loop.call_later), host, at, backlog=4096
        )

    server = await listen(port)
    bound = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://{host}:{bound}"}), flush=True)
    refusals: asyncio.Queue[float] = asyncio.Queue()
    plan.refuse = refusals.put_nowait
    while True:
        lasts_s = await refusals.get()
        server.close()
        # Earlier answers must still go out.
        await asyncio.sleep(0)
        for transport in list(plan.transports):
            transport.abort()
        await asyncio.sleep(lasts_s)
        server = await listen(bound)


class Provider(MockProcess):
    """The provider as a child process that runs for a ``with`` block.

    Args:
        python: The interpreter; it needs uvloop to be fast.
        latency: As for ``latencies``.
        options: Further options, by their names with underscores.
    """

    def __init__(
        self, python: str = sys.executable, latency: str = "0", **options: float | str
    ) -> None:
        latencies(latency, 0)
        super().__init__(__file__, {"latency": latency, **options}, python=python)

    @property
    def base_url(self) -> str:
        """The base URL for clients of the API."""
        return f"{self.url}/v1"

    def stats(self) -> dict[str, Any]:
        """Return its counters."""
        return dict(self._ask("/stats"))

    def events(self) -> list[tuple[float, float, bool]]:
        """Return what ``--log`` logs."""
        return [
            (arrived, answered, is_marked) for arrived, answered, is_marked in self._ask("/events")
        ]

    def reset(self) -> None:
        """Reset it."""
        self._ask("/reset", b"")

    def fail(self, sort: str, lasts_s: float) -> None:
        """Make it fail for all clients: see provider_outages.py."""
        self._ask(f"/outage?sort={sort}&lasts_s={lasts_s:g}", b"")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 is any that is free")
    parser.add_argument(
        "--latency",
        default="0",
        help="0, constant:SECONDS, lognormal:MEDIAN_S:SIGMA or pareto:LEAST_S:ALPHA",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--error-rate", type=float, default=0.0, help="share of 500s, 0 to 1")
    parser.add_argument("--refuse-rate", type=float, default=0.0, help="share of 429s, 0 to 1")
    parser.add_argument("--retry-after-s", type=float, default=1.0, help="what a 429 asks for")
    parser.add_argument("--answer-bytes", type=int, default=100)
    parser.add_argument("--rpm", type=float, default=0.0, help="requests a minute; 0 is no limit")
    parser.add_argument("--tpm", type=float, default=0.0, help="tokens a minute; 0 is no limit")
    parser.add_argument("--limit-kind", choices=KINDS, default="bucket")
    parser.add_argument("--log", default="", help="log requests, and whether they have this word")
    parser.add_argument("--limit-tells", choices=TELLS, default="headers")
    options = parser.parse_args()
    try:
        latencies(options.latency, 0)
    except LatencyError as error:
        parser.error(str(error))
    return options


def main() -> None:
    given = vars(_parsed())
    host, port = given.pop("host"), given.pop("port")
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        run(_serve(Plan(**given), host, port))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
