"""A real Chromium, driven over the WebDriver protocol: what a person would see of a page.

The protocol is JSON over HTTP (https://www.w3.org/TR/webdriver2/): a client for the few commands
that the tests need is shorter than what a library for all of them would have us install.
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

_WAIT_S = 20.0
_ARGUMENTS = (
    "--headless=new",
    # Tests run as root in containers, where Chromium's sandbox cannot be set up.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    # Nothing that a browser does by itself: it is to talk to the page's server alone.
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
            with urllib.request.urlopen(request, timeout=60) as reply:
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
        """The text of the page that is visible: not what a style sheet hides."""
        return str(self.run("return document.body.innerText"))

    def wait_for(self, what: str, condition: Callable[[str], bool] | None = None) -> str:
        """Wait until ``what`` is to be seen, or until the text is as it should be; return it."""
        until = time.monotonic() + _WAIT_S
        while not (condition or (lambda text: what in text))(text := self.text()):
            assert time.monotonic() < until, f"no sight of {what!r} in: {text}"
            time.sleep(0.1)
        return text

    def fetched(self) -> list[str]:
        """The URLs that the page has asked for, itself first."""
        entries = "performance.getEntriesByType('resource').map(entry => entry.name)"
        return list(self.run(f"return [location.href, ...{entries}]"))

    def refused(self) -> list[str]:
        """What the page's own policy (CSP) has kept it from since this was asked last."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        said = [str(entry["message"]) for entry in entries]
        return [message for message in said if "Content Security Policy" in message]

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
