"""What both mock APIs share: the time of calls, the ledger, and errors."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from provider import latencies

from billing.ledger import PRICES, Ledger, count_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiohttp import web

__all__ = ["ApiError", "Desk", "Options", "text_of"]

_WORDS = b"the quick brown fox jumps over the lazy dog and reads on "


class ApiError(Exception):
    """A request is refused.

    Args:
        status: The HTTP status.
        message: What is wrong.
        code: The provider's word for it.
    """

    def __init__(self, status: int, message: str, code: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the providers behave.

    Attributes:
        latency: The time of a call, as for ``provider.latencies``.
        prefill_s: Seconds from the arrival of a request until its prefix is cached.
        answer_bytes: The length of an answer.
        cache_s: How long OpenAI's cache keeps what is not used.
        busy_rate: The share of flex calls that are refused for want of capacity.
        batch_s: Seconds that a batch takes.
        batch_width: How many requests of a batch are processed at the same time.
        seed: Seeds latencies and refusals.
    """

    latency: str = "0"
    prefill_s: float = 0.02
    answer_bytes: int = 200
    cache_s: float = 300.0
    busy_rate: float = 0.0
    batch_s: float = 0.2
    batch_width: int = 64
    seed: int = 1


@dataclass
class Desk:
    """The state of both providers."""

    options: Options
    ledger: Ledger = field(default_factory=Ledger)
    # Of each call: its lane, and the texts of its prompt, to see what was sent.
    sent: list[dict[str, Any]] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        times, rest = divmod(self.options.answer_bytes, len(_WORDS))
        self.answer = (_WORDS * times + _WORDS[:rest]).decode()
        self.output_tokens = count_tokens(self.answer.encode())
        self._latencies: Iterator[float] = latencies(self.options.latency, self.options.seed)
        self._fates = random.Random(self.options.seed)  # noqa: S311 - repeatable
        self.clock = time.monotonic
        self.wall_s = time.time

    def next_id(self, prefix: str) -> str:
        """Return a new id."""
        self.made += 1
        return f"{prefix}{self.made:010d}"

    async def work(self) -> None:
        """Take the time of one call."""
        latency_s = next(self._latencies)
        if latency_s > 0:
            await asyncio.sleep(max(latency_s, self.options.prefill_s))

    def require_capacity(self) -> None:
        """Raise ApiError if there is no capacity for a flex call."""
        if self._fates.random() < self.options.busy_rate:
            raise ApiError(429, "resource unavailable: try again later", "resource_unavailable")


def model_of(body: Mapping[str, Any], prefix: str) -> str:
    """Return the name of a priced model; ``claude-sonnet-4-5-20250929`` is ``claude-sonnet-4-5``."""
    given = body.get("model")
    known = [name for name in PRICES if isinstance(given, str) and given.startswith(name)]
    if not known or not known[0].startswith(prefix):
        raise ApiError(404, f"there is no model {given!r}", "model_not_found")
    return max(known, key=len)


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of text blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(texts)  # type: ignore[arg-type]
    raise ApiError(400, "messages: content must be a string or a list of text blocks")


async def body_of(request: web.Request) -> dict[str, Any]:
    """Return the JSON object of a request."""
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object")
    return body
