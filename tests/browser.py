"""A real Chromium, driven over the WebDriver protocol, for tests of pages.

The protocol is JSON over HTTP (https://www.w3.org/TR/webdriver2/). The tests need few commands, so
this client is smaller than the dependencies of a full library.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

_WAIT_S = 90.0
_ARGUMENTS = (
    "--headless=new",
    # Tests run as root in containers, where Chromium's sandbox cannot be set up.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    # No background requests: the browser must only talk to the page's server.
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """One window of a Chromium with a profile of its own; a context manager."""

    def __init__(self, folder: Path, *, width: int = 1400, height: int = 900) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        profile = folder / "chromium"
        with (folder / "chromedriver.log").open("wb") as log:
            self._driver = subprocess.Popen(
                ["chromedriver", f"--port={port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait_for_driver()
            arguments = [
                *_ARGUMENTS,
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
            ]
            options = {
                "browserName": "chrome",
                "goog:chromeOptions": {"args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise
        self._session = f"/session/{session['sessionId']}"

    def _wait_for_driver(self) -> None:
        until = time.monotonic() + _WAIT_S
        while True:
            with contextlib.suppress(OSError):
                if self._call("GET", "/status")["ready"]:
                    return
            assert self._driver.poll() is None, "chromedriver has ended"
            assert time.monotonic() < until, "chromedriver does not answer"
            time.sleep(0.05)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        """Go to a page. A URL may carry user and password: the browser then logs in with them."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, and return what it returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        """The visible text of the page, without text that a style sheet hides."""
        return str(self.run("return document.body.innerText"))

    def wait_for(self, what: str, condition: Callable[[str], bool] | None = None) -> str:
        """Wait until the text contains ``what``, or meets ``condition``; return the text."""
        until = time.monotonic() + _WAIT_S
        while not (condition or (lambda text: what in text))(text := self.text()):
            assert time.monotonic() < until, f"no sight of {what!r} in: {text}"
            time.sleep(0.1)
        return text

    def fetched(self) -> list[str]:
        """The URLs that the page has requested, its own first."""
        entries = "performance.getEntriesByType('resource').map(entry => entry.name)"
        return list(self.run(f"return [location.href, ...{entries}]"))

    def refused(self) -> list[str]:
        """The violations of the page's own policy (CSP) since the last call."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        messages = [str(entry["message"]) for entry in entries]
        return [message for message in messages if "Content Security Policy" in message]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._call("DELETE", self._session)
        self._driver.terminate()
        self._driver.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
