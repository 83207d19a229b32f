"""A mock provider that bills as OpenAI and Anthropic do, for benchmarks and tests of cost.

    python benchmarks/billing_provider.py [--port 0] [--latency constant:0.1] ...

It listens on loopback, prints one line of JSON with its URL, and serves until it is stopped. Both APIs
are below the same URL: chat completions, files and batches of OpenAI, messages and message batches of
Anthropic. It caches prompts, and charges for reads, writes, flex and batches, as both publish
(billing/caches.py, billing/ledger.py). A token is four bytes.

    GET  /ledger    what was charged since the last reset: dollars, calls by lane, tokens
    GET  /sent      each call: its lane, its tokens, those from the cache
    POST /reset     empty the ledger; the caches stay unless ?caches=1

As a module, ``BillingProvider`` starts and stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from aiohttp import web
from billing.anthropic_api import AnthropicApi
from billing.desk import Desk, Options
from billing.ledger import PRICES, Ledger
from billing.openai_api import OpenAiApi
from mock_process import MockProcess
from provider import LatencyError, latencies

if TYPE_CHECKING:
    from billing.batch_api import BatchApi

__all__ = ["BillingProvider", "application"]

_MOST_BYTES = 300_000_000
_MOST_OUTPUT = 64_000


def application(options: Options) -> web.Application:
    """Return both providers as one application."""
    desk = Desk(options)
    sides: list[BatchApi] = [OpenAiApi(desk), AnthropicApi(desk)]
    app = web.Application(client_max_size=_MOST_BYTES)

    async def ledger(_request: web.Request) -> web.Response:
        return web.json_response(desk.ledger.to_dict())

    async def sent(_request: web.Request) -> web.Response:
        return web.json_response(desk.sent)

    async def reset(request: web.Request) -> web.Response:
        desk.ledger = Ledger()
        desk.sent.clear()
        if request.query.get("caches"):
            for side in sides:
                side.forget()
        return web.json_response({})

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [_model(name) for name in PRICES]})

    async def model(request: web.Request) -> web.Response:
        return web.json_response(_model(request.match_info["name"]))

    app.add_routes([route for side in sides for route in side.routes()])
    app.add_routes(
        [
            web.get("/ledger", ledger),
            web.get("/sent", sent),
            web.post("/reset", reset),
            web.get("/v1/models", models),
            web.get("/v1/models/{name}", model),
        ]
    )
    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "type": "model", "max_tokens": _MOST_OUTPUT}


async def _serve(options: Options, host: str, port: int) -> None:
    runner = web.AppRunner(application(options), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=4_096).start()
    print(json.dumps({"url": f"http://{host}:{runner.addresses[0][1]}"}), flush=True)
    await asyncio.Event().wait()


class BillingProvider(MockProcess):
    """The providers as a child process that runs for a ``with`` block.

    Its URL is the base URL of Anthropic.

    Args:
        options: As for ``billing.desk.Options``.
    """

    def __init__(self, **options: str | float) -> None:
        super().__init__(__file__, options)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send both providers' models here."""
        return {
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": "sk-mock",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-mock",
        }

    def ledger(self) -> dict[str, Any]:
        """Return what was charged since the last reset."""
        return dict(self._ask("/ledger"))

    def sent(self) -> list[dict[str, Any]]:
        """Return the calls since the last reset."""
        return list(self._ask("/sent"))

    def reset(self, *, caches: bool = True) -> None:
        """Empty the ledger, and the caches too."""
        self._ask(f"/reset?caches={'1' if caches else ''}", b"")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 is any that is free")
    for each in fields(Options):
        name = f"--{each.name.replace('_', '-')}"
        parser.add_argument(name, type=type(each.default), default=each.default)
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
        asyncio.run(_serve(Options(**given), host, port))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
