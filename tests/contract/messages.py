"""Messages as Celery queues them on the server, and requests as a worker holds them."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from celery.app.task import Context

from fanout.broker import app as broker

if TYPE_CHECKING:
    import redis

GROUP = "r1/0/0"
# Headers, properties, and the body: positional arguments, keyword arguments, embedded tasks.
Message = tuple[dict[str, Any], dict[str, Any], list[Any]]


def make_known(client: redis.Redis) -> None:
    """Of a run that is not known nothing is published, and nothing is counted."""
    client.hset("fanout:run:r1", "spec", "{}")


def queued(client: redis.Redis, queue: str) -> list[Message]:
    """The messages of a queue, oldest first: header, properties and body."""
    lists = [queue, *sorted(client.scan_iter(f"{queue}.of.*"))]
    messages = [json.loads(raw) for each in lists for raw in reversed(client.lrange(each, 0, -1))]
    return [(m["headers"], m["properties"], json.loads(_body(m))) for m in messages]


def _body(message: dict[str, Any]) -> bytes:
    return base64.b64decode(message["body"])


def request(
    position: int, callback: object, *, group: str = GROUP, task_id: str | None = None
) -> Context:
    return Context(
        id=task_id or f"{group}/{position}",
        group=group,
        group_index=position,
        chord=callback,
        ignore_result=True,
    )


def members(client: redis.Redis) -> list[Any]:
    """The chord callback as the branches of a published shard carry it."""
    headers_and_bodies = queued(client, broker.BRANCHES_QUEUE)
    return [body[2]["chord"] for _, _, body in headers_and_bodies]
