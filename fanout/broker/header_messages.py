"""Encodes the messages of a shard chord's header from one that Celery made.

Celery takes 150 microseconds for each message, and the 500 of a header differ only in position.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from fanout.core.ids import ShardId

__all__ = ["HeaderMessages"]


class HeaderMessages:
    """Messages of branches that differ from a first one in their positions only.

    Args:
        first: A branch's message as kombu has it before it is encoded: ``headers``,
            ``properties``, ``body`` and its ``content-*``. It is changed.
        shard_id: Their shard.
    """

    def __init__(self, first: dict[str, Any], shard_id: ShardId) -> None:
        self._message = first
        self._headers = first["headers"]
        self._properties = first["properties"]
        if self._properties["body_encoding"] != "base64" or first["content-encoding"] != "utf-8":
            raise ValueError("messages are encoded in another way")
        # The arguments by name, and the rest of the task's body.
        _, self._arguments, self._rest = msgspec.json.decode(b64decode(first["body"]))
        self._shard_id = shard_id
        self._tag = self._properties["delivery_tag"]

    def at(self, position: int) -> bytes:
        """Return the message of the branch at a position, encoded."""
        task_id = self._shard_id.branch(position).task_id
        self._arguments["position"] = position
        self._headers["id"] = self._properties["correlation_id"] = task_id
        self._headers["group_index"] = position
        self._headers["kwargsrepr"] = repr(self._arguments)
        self._properties["delivery_tag"] = f"{self._tag}.{position}"
        body = msgspec.json.encode(((), self._arguments, self._rest))
        self._message["body"] = b64encode(body).decode()
        return msgspec.json.encode(self._message)
