"""Counts the calls of identical branches on a fleet, also when the worker dies that makes the call.

    python benchmarks/single_flight.py [--branches 1000] [--workers 4] [--concurrency 32] [--latency 2]

Each round is a run of branches with the same prompt on an empty cache: at first as it is, then with a
SIGKILL of the worker whose call is in flight, and then once more, with all answers kept. It exits with 1
if the calls are more than 1, 2 and 0. The result is benchmarks/results/single_flight.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from fleet import Fleet
from measure import RESULTS, machine, rounded, save

from fanout import RunSpec

_BOUND_S = 600.0
_MOST_CALLS = {"as it is": 1, "its caller is killed": 2, "again": 0}
_REPLY = {
    "object": "chat.completion",
    "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}


class Provider:
    """Answers after a time, and notes the port of each caller."""

    def __init__(self, latency_s: float) -> None:
        self.callers: list[int] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply({"data": []})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                provider.callers.append(self.client_address[1])
                time.sleep(latency_s)
                self._reply(_REPLY)

            def _reply(self, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle(self) -> None:
                # A caller that is killed breaks its connection.
                try:
                    super().handle()
                except ConnectionError:
                    return

            def log_message(self, *_args: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


def _kill_caller(provider: Provider, pids: list[int]) -> None:
    """Kill the worker whose call is in flight."""
    until = time.monotonic() + _BOUND_S
    while not provider.callers and time.monotonic() < until:
        time.sleep(0.01)
    port = provider.callers[0]
    for pid in pids:
        if any(one.laddr.port == port for one in psutil.Process(pid).net_connections()):
            os.kill(pid, signal.SIGKILL)
            return
    raise RuntimeError("the caller is no worker")


def _round(kind: str, fleet: Fleet, provider: Provider, branches: int) -> dict[str, Any]:
    spec = RunSpec(model="openai/m", prompt="The same: {input}", reduce="none")
    provider.callers.clear()
    started = time.perf_counter()
    run = fleet.client.submit(spec, ["text"] * branches)
    if kind == "its caller is killed":
        _kill_caller(provider, fleet.worker_pids)
    status = run.wait(_BOUND_S)
    row = {
        "round": kind,
        "branches": branches,
        "succeeded": status.succeeded,
        "calls": len(provider.callers),
        "cached": status.saved.calls,
        "wall_s": rounded(time.perf_counter() - started),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=32, help="of each worker")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds of a call")
    parser.add_argument("--out", type=Path, default=RESULTS / "single_flight.json")
    options = parser.parse_args()
    provider, rows = Provider(options.latency), []
    for kinds in (["as it is", "again"], ["its caller is killed"]):
        with (
            tempfile.TemporaryDirectory(prefix="fanout-flight-") as folder,
            Fleet(
                folder,
                workers=options.workers,
                concurrency=options.concurrency,
                base_url=provider.url,
            ) as fleet,
        ):
            rows += [_round(kind, fleet, provider, options.branches) for kind in kinds]
    told = {name: value for name, value in vars(options).items() if name != "out"}
    save(options.out, {"options": told, "machine": machine(), "rounds": rows})
    is_well = all(
        row["calls"] <= _MOST_CALLS[row["round"]] and row["succeeded"] == row["branches"]
        for row in rows
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
