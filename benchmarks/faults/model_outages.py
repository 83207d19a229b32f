"""Outages of the provider: while one lasts, each call of each worker fails, or waits in vain.

The injector leaves a note beside the ledger, and the model looks there before each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OUTAGES", "begin", "end", "suffer"]

OUTAGES = {
    "provider_500": "the provider answers with 500",
    "provider_overloaded": "the provider answers with 529",
    "provider_refuses": "the provider refuses connections",
    "provider_429": "the provider answers with 429",
    "provider_wait": "the provider answers with 429 and asks to wait",
    "provider_html": "the provider answers with a page of HTML, as while it starts",
    "provider_silent": "the provider does not answer",
}
_NOTE = "outage"
_LOOK_S = 0.1
_WAIT_S = 2.0


def begin(folder: Path, kind: str) -> None:
    """Begin an outage."""
    draft = folder / f"{_NOTE}.new"
    draft.write_text(kind)
    draft.replace(folder / _NOTE)


def end(folder: Path) -> None:
    """End it."""
    (folder / _NOTE).unlink(missing_ok=True)


def _kind(folder: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return (folder / _NOTE).read_text()
    return None


async def suffer(folder: Path, *, timeout_s: float) -> None:
    """Fail as the provider does just now, if it does. Raises LLMError."""
    kind = _kind(folder)
    if kind is None:
        return
    if kind != "provider_silent":
        raise _error(kind)
    until = time.monotonic() + timeout_s
    # Another process ends it.
    while _kind(folder) is not None and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    raise LLMError(ErrorKind.TIMEOUT, "no answer")


def _error(kind: str) -> LLMError:
    match kind:
        case "provider_500":
            return LLMError(ErrorKind.SERVER_ERROR, "HTTP 500", status=500)
        case "provider_overloaded":
            return LLMError(ErrorKind.SERVER_ERROR, "HTTP 529", status=529)
        case "provider_429":
            return LLMError(ErrorKind.RATE_LIMITED, "HTTP 429", status=429)
        case "provider_wait":
            return LLMError(ErrorKind.RATE_LIMITED, "HTTP 429", retry_after_s=_WAIT_S, status=429)
        case "provider_html":
            return LLMError(ErrorKind.SERVER_ERROR, "the reply is HTML", status=200)
        case _:
            return LLMError(ErrorKind.CONNECTION, "connection refused")
