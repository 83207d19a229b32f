"""Reads the lines of a batch's results: one broken line, or one bad answer, ends no others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError
from fanout.core.redaction import redacted
from fanout.llm.batches.base import BatchError, BatchResult
from fanout.llm.batches.items import unreadable
from fanout.llm.reply_bodies import json_of
from fanout.llm.sound_replies import sound_reply
from fanout.llm.usage import UNKNOWN_USAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.llm.body_lines import Line
    from fanout.llm.http_client import HttpReply
    from fanout.llm.http_model import HttpModel

__all__ = ["MOST_LINE_BYTES", "ResultLines"]

# A longer line is no answer: the longest answer of a call, and as much again around it.
MOST_LINE_BYTES = 64_000_000
_ERRORS = range(400, 600)
# An error of an item that may be the refusal of a part of its request.
_REFUSALS = frozenset({400, 403, 422, 500, 501})
_ID = re.compile(rb'"(?:custom_id|key)"\s*:\s*"([A-Za-z0-9_-]{1,64})"')
_SOUND_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Where a broken line says whose it is: answers may have a field of that name, too.
_HEAD = 1_000


class ResultLines:
    """Reads the lines of a provider.

    Args:
        model: The model of the requests.
        read: Returns the custom id of a line, and the reply in it, or why there is none.
    """

    def __init__(
        self,
        model: HttpModel,
        read: Callable[[dict[str, Any]], tuple[Any, HttpReply | BatchError]],
    ) -> None:
        self._model = model
        self._read = read

    def results(self, line: Line) -> Iterator[BatchResult]:
        """Yield the result in a line; none if it does not say whose it is."""
        if not line.data.strip():
            return
        if line.is_too_long:
            yield from _of_broken(line.data, f"it is longer than {MOST_LINE_BYTES / 1e6:,.0f} MB")
            return
        try:
            item = json_of(line.data)
        except ValueError as error:
            yield from _of_broken(line.data, str(error))
            return
        if not isinstance(item, dict):
            return
        try:
            custom_id, found = self._read(item)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            yield from _of_broken(line.data, type(error).__name__)
            return
        if isinstance(custom_id, str) and _SOUND_ID.fullmatch(custom_id):
            yield self._settled(custom_id, found)

    def _settled(self, custom_id: str, found: HttpReply | BatchError) -> BatchResult:
        if isinstance(found, BatchError):
            return BatchResult(custom_id=custom_id, error=found)
        try:
            reply = sound_reply(self._model.settled(found))
        except LLMError as error:
            return BatchResult(custom_id=custom_id, error=_item_error(found, error))
        except Exception as error:  # noqa: BLE001 - one bad item must not end the others
            problem = unreadable(f"the result is broken: {type(error).__name__}")
            return BatchResult(custom_id=custom_id, error=problem)
        return BatchResult(custom_id=custom_id, reply=msgspec.structs.replace(reply, lane="batch"))


def _item_error(reply: HttpReply, error: LLMError) -> BatchError:
    # The provider was up, and the prompt may be at fault: no outage.
    error.is_own = True
    if reply.status not in _ERRORS and error.usage is None:
        error.usage = UNKNOWN_USAGE
    if reply.is_success or reply.status not in _REFUSALS:
        return BatchError.of(error)
    details = reply.error_details()
    message = redacted(details.message)
    return BatchError.of(error, msgspec.structs.replace(details, message=message))


def _of_broken(data: bytes, reason: str) -> Iterator[BatchResult]:
    """Yield the error of a line that cannot be read, if it says whose it is."""
    found = _ID.search(data[:_HEAD])
    if found is not None:
        problem = unreadable(f"the line of the result cannot be read: {reason}")
        yield BatchResult(custom_id=found[1].decode(), error=problem)
