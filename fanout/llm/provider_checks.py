"""Free checks of a provider before a run: does it answer, and does it accept the key?"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm.http_errors import status_error

if TYPE_CHECKING:
    from fanout.llm.http_client import HttpClient, HttpReply

__all__ = ["CheckedServer"]

_REQUEST_S = 10.0
# Wait out a short outage. Longer ones are left to the calls, which wait for longer.
_PATIENCE_S = 20.0
_FIRST_WAIT_S = 0.5
_SUCCESSES = range(200, 300)
_UNAUTHORIZED = 401
# Servers need not list their models, and a key may call models without permission to list them.
_PROVES_NOTHING = frozenset({403, 404, 405, 429, 501})
_PASSES = frozenset({429, 500, 502, 503, 504, 529})


class CheckedServer(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's server, and the variables of its settings.

    Attributes:
        http: The client for the server.
        url_variable: The environment variable of its URL.
        key_variable: The environment variable of the key.
        key: The key, which no message repeats.
    """

    http: HttpClient
    url_variable: str
    key_variable: str
    key: str

    async def ask(self, path: str) -> HttpReply:
        """Return the reply to a GET below the base URL; retry temporary failures for a while.

        Raises:
            ModelError: No server answers, it refuses the key, or it fails.
        """
        reply = await self._patiently(path)
        if reply.status in _SUCCESSES or reply.status in _PROVES_NOTHING:
            return reply
        url = self.http.shown_url
        problem = self.problem(reply)
        if reply.status == _UNAUTHORIZED and "scope" not in str(problem).lower():
            raise ModelError(
                f"{url} refuses the key in {self.key_variable} ({problem}); set a valid one where "
                "the workers run",
                kind=ErrorKind.AUTH,
            )
        if problem.kind is ErrorKind.BAD_REQUEST or reply.status == _UNAUTHORIZED:
            return reply
        raise ModelError(f"{url} says: {problem}", kind=problem.kind)

    async def _patiently(self, path: str) -> HttpReply:
        until = time.monotonic() + _PATIENCE_S
        wait_s = _FIRST_WAIT_S
        while True:
            reply = await self._once(path)
            asked_s = self.problem(reply).retry_after_s if reply.status in _PASSES else None
            wait_s = max(asked_s or 0.0, wait_s)
            if reply.status not in _PASSES or time.monotonic() + wait_s > until:
                return reply
            await asyncio.sleep(wait_s)
            wait_s *= 2

    async def _once(self, path: str) -> HttpReply:
        try:
            return await self.http.get(self.http.url(path), timeout_s=_REQUEST_S)
        except LLMError as error:
            url = self.http.shown_url
            raise ModelError(
                f"no server answers at {url} ({error}); start it, check the network, or set "
                f"{self.url_variable} where the workers run",
                kind=ErrorKind.CONNECTION,
            ) from None

    async def is_there(self, path: str) -> bool:
        """Say whether there is JSON at a path; False also if the server does not answer."""
        try:
            reply = await self.http.get(self.http.url(path), timeout_s=_REQUEST_S)
        except LLMError:
            return False
        is_json = reply.body.lstrip()[:1] in {b"{", b"["}
        return reply.status in _SUCCESSES and is_json

    def problem(self, reply: HttpReply) -> LLMError:
        """Return the LLMError of an error reply."""
        return status_error(reply, key=self.key)
