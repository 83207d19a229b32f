"""A mock provider as a child process."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["MockProcess"]


class MockProcess:
    """A program that prints its URL as a line of JSON, and serves for a ``with`` block.

    Args:
        script: The program.
        options: Its options, by their names with underscores.
        python: The interpreter.

    Attributes:
        url: Its URL, without a path.
        pid: Its process id.
    """

    def __init__(
        self, script: str, options: Mapping[str, float | str], *, python: str = sys.executable
    ) -> None:
        words = [python, script]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.pid = self._process.pid
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise RuntimeError(f"the provider did not start: exit status {self._process.wait()}")
        self.url = str(json.loads(line)["url"])

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.url + path, data=data, timeout=30) as reply:  # noqa: S310 - our own
            return json.load(reply)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
