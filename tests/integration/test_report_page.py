"""The page of a run in a real browser: on a phone and on a desk, by day and by night."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import pytest

from fanout.aggregators import Aggregate
from fanout.core.records import ErrorKind, Usage
from fanout.core.spec import make_spec
from fanout.report.page import page
from fanout.runs.evaluation import evaluate
from fanout.runs.status import StoredResult
from tests.integration.conftest import wait_for
from tests.needs import needs
from tests.unit.report.test_report import NASTY, branch, facts

SIZES = {"phone": (360, 740), "laptop": (1100, 800), "desk": (1440, 900)}
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0",
)  # fmt: skip
LOOK = """({
  scrolls: document.scrollingElement.scrollWidth, width: innerWidth,
  beyond: [...document.querySelectorAll('h1, h2, h3, p, dl, pre, .answer, .scroll, figure, svg')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll *'))
    .map(e => e.outerHTML.slice(0, 99)),
  cut: [...document.querySelectorAll('section[aria-labelledby=evaluation] .scroll')]
    .filter(e => e.scrollWidth > e.clientWidth).map(e => e.getAttribute('aria-label')),
  charts: [...document.querySelectorAll('.chart')].filter(e => e.offsetHeight > 50).length,
  ground: getComputedStyle(document.body).backgroundColor,
  scripts: document.scripts.length, images: document.images.length,
})"""


@pytest.fixture
def site(tmp_path):
    """The page on a web server that notes what is asked of it."""
    kinds = itertools.cycle([None, None, None, ErrorKind.TIMEOUT, ErrorKind.SERVER_ERROR])
    branches = [
        branch(
            i, next(kinds), elapsed_s=1 + i % 17, ended_at=1_700_000_000.0 + i / 3,
            document=NASTY if i % 9 == 0 else f"contracts/2024/{i}.txt", output=NASTY,
            aspect="term", message=NASTY, attempts=1 + i % 3, columns={"gold": "yes"},
            usage=Usage(calls=1, input_tokens=98_765, output_tokens=9, cost_usd=1234.5),
        )
        for i in range(300)
    ]  # fmt: skip
    spec = make_spec(
        model="fake", aspects={"term": "W" * 999 + "{input}"}, reduce="concat", labels="gold"
    )
    stored = StoredResult(aggregates={"": Aggregate(value=f"{NASTY}\n" * 3, notes=[NASTY])})
    folder = tmp_path / "site"
    folder.mkdir()
    # A stored answer has no half of a character.
    said = [
        replace(one, output=one.output and one.output.replace("\ud800", "")) for one in branches
    ]
    shown = facts(branches, stored=stored, spec=spec, error=NASTY)
    source = page(replace(shown, evaluation=evaluate(spec, said)))
    (folder / "page.html").write_text(source, encoding="utf-8")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/page.html", asked
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def chromium(folder):
    """A browser of its own; gives the address at which it takes orders."""
    command = ["chromium", *QUIET, f"--user-data-dir={folder}", "about:blank"]
    with (folder.parent / "chromium.log").open("wb") as log:
        # Its own session: it has many processes, and all of them end with it.
        browser = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        port = folder / "DevToolsActivePort"
        wait_for(lambda: port.exists() and len(port.read_text().split()) == 2, "it takes orders")
        yield f"http://127.0.0.1:{port.read_text().split()[0]}"
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


class Tab:
    """A tab of the browser, ordered about in Chromium's own protocol."""

    def __init__(self, socket):
        self._socket = socket
        self._numbers = itertools.count()
        self.events = []

    async def do(self, method, **parameters):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (told := await self._told()).get("id") != number:
            pass
        assert "error" not in told, told
        return told["result"]

    async def until(self, method):
        while (await self._told()).get("method") != method:
            pass

    async def _told(self):
        told = await self._socket.receive_json(timeout=120)
        self.events.append(told)
        return told

    @property
    def complaints(self):
        said = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
        return [event for event in self.events if event.get("method") in said]


async def looks(browser, url):
    """What the page looks like on each device, by day and by night; and what was complained of."""
    seen = {}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{browser}/json/list") as reply:
            [target] = [one for one in await reply.json() if one["type"] == "page"]
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Log", "Runtime"):
                await tab.do(f"{domain}.enable")
            for device, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    await tab.do(
                        "Emulation.setDeviceMetricsOverride", width=width, height=height,
                        deviceScaleFactor=1, mobile=device == "phone",
                    )  # fmt: skip
                    preference = {"name": "prefers-color-scheme", "value": scheme}
                    await tab.do("Emulation.setEmulatedMedia", features=[preference])
                    await tab.do("Page.navigate", url=url)
                    await tab.until("Page.loadEventFired")
                    found = await tab.do("Runtime.evaluate", expression=LOOK, returnByValue=True)
                    seen[device, scheme] = found["result"]["value"]
    return seen, tab.complaints


def test_the_page_fits_every_screen_and_no_browser_complains(site, tmp_path):
    needs("chromium")
    url, asked = site
    with chromium(tmp_path / "profile") as browser:
        seen, complaints = asyncio.run(looks(browser, url))
    assert complaints == []
    assert set(asked) == {"/page.html"}
    assert len(seen) == 6
    for (device, scheme), look in seen.items():
        assert look["width"] == SIZES[device][0]
        assert look["scrolls"] <= look["width"], (device, scheme, look["beyond"])
        assert look["beyond"] == []
        assert device == "phone" or look["cut"] == []
        assert look["charts"] == 3
        assert (look["scripts"], look["images"]) == (0, 0)
    grounds = {scheme: seen["desk", scheme]["ground"] for scheme in ("light", "dark")}
    assert grounds == {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 29)"}
    assert grounds == {scheme: seen["phone", scheme]["ground"] for scheme in grounds}
