"""Measures the throughput of the mock provider and its cost of a request.

    python benchmarks/provider_cost.py [--requests 50000] [--connections 50] [--rounds 5]

A raw client, which only counts bytes, sends requests without pause. Client and provider share the
machine, so requests/s is the limit of both together; the provider's own limit is one over its CPU
seconds per request. The result is benchmarks/results/provider.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from measure import RESULTS, cpu_s, machine, rounded, save, spread
from peers import PYTHON, install
from provider import Provider

_WARM_UP = 2_000


def _request(prompt_bytes: int) -> bytes:
    messages = [{"role": "user", "content": "a" * prompt_bytes}]
    body = json.dumps({"model": "mock", "messages": messages}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\nAccept: application/json\r\n"
        "Authorization: Bearer none\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Caller(asyncio.Protocol):
    """Sends each request after the answer to the last one, within a budget."""

    def __init__(self, request: bytes, budget: list[int], done: asyncio.Future[None]) -> None:
        self._request = request
        self._budget = budget
        self._done = done
        self._got = 0
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport: Any = transport
        self._next()

    def _next(self) -> None:
        if self._budget[0] == 0:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(None)
            return
        self._budget[0] -= 1
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count the answer; its size is the same each time."""
        if self._size == 0:
            head, _, _ = data.partition(b"\r\n\r\n")
            self._size = len(head) + 4 + int(head.rpartition(b"content-length: ")[2])
        self._got += len(data)
        if self._got >= self._size:
            self._got -= self._size
            self._next()


async def _ask(provider: Provider, request: bytes, requests: int, connections: int) -> None:
    loop = asyncio.get_running_loop()
    host, _, port = provider.url.removeprefix("http://").partition(":")
    budget, ends = [requests], [loop.create_future() for _ in range(connections)]
    await asyncio.gather(
        *(
            loop.create_connection(
                lambda end=end: _Caller(request, budget, end),  # type: ignore[misc]
                host,
                int(port),
            )
            for end in ends
        )
    )
    await asyncio.gather(*ends)


def _round(provider: Provider, options: argparse.Namespace) -> dict[str, float]:
    request = _request(options.prompt_bytes)
    asyncio.run(_ask(provider, request, _WARM_UP, options.connections))
    provider.reset()
    before_s, started = cpu_s([provider.pid]), time.perf_counter()
    asyncio.run(_ask(provider, request, options.requests, options.connections))
    wall_s, used_s = time.perf_counter() - started, cpu_s([provider.pid]) - before_s
    served = provider.stats()["served"]
    if served != options.requests:
        raise RuntimeError(f"{served} of {options.requests} requests were served")
    return {
        "requests_per_s": rounded(served / wall_s),
        "cpu_us_per_request": rounded(used_s / served * 1e6),
        "requests_per_cpu_s": rounded(served / used_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--prompt-bytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    install()
    rounds = []
    with Provider(str(PYTHON)) as provider:
        for number in range(options.rounds):
            rounds.append(_round(provider, options))
            print(f"round {number}: {rounds[-1]}", flush=True)
    result = {
        "options": vars(options),
        "machine": machine(),
        "rounds": rounds,
        "summary": {name: spread([each[name] for each in rounds]) for name in rounds[0]},
    }
    save(RESULTS / "provider.json", result)


if __name__ == "__main__":
    main()
