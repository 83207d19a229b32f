"""Messages as Celery queues them on the server, and requests as a worker holds them."""

from __future__ import annotations

import json

from celery.app.task import Context

from fanout.broker import app as broker

GROUP = "r1/0/0"


def make_known(client):
    """Of a run that is not known nothing is published, and nothing is counted."""
    client.hset("fanout:run:r1", "spec", "{}")


def queued(client, queue):
    """The messages of a queue, oldest first: header, properties and body."""
    lists = [queue, *sorted(client.scan_iter(f"{queue}.of.*"))]
    messages = [json.loads(raw) for each in lists for raw in reversed(client.lrange(each, 0, -1))]
    return [(m["headers"], m["properties"], json.loads(_body(m))) for m in messages]


def _body(message):
    import base64

    return base64.b64decode(message["body"])


def request(position, callback, *, group=GROUP, task_id=None):
    return Context(
        id=task_id or f"{group}/{position}",
        group=group,
        group_index=position,
        chord=callback,
        ignore_result=True,
    )


def members(client):
    """The chord callback as the branches of a published shard carry it."""
    headers_and_bodies = queued(client, broker.BRANCHES_QUEUE)
    return [body[2]["chord"] for _, _, body in headers_and_bodies]
