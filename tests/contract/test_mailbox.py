"""A worker that replies to a command waits for no server."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fanout.core.settings import load_settings
from workers.config import make_worker_app


class Pool:
    """A pool of one producer."""

    def __init__(self, publish):
        self._producer = SimpleNamespace(publish=publish)

    @contextmanager
    def acquire(self):
        yield self._producer


def test_a_reply_is_published_once():
    asked = []

    def publish(reply, *, routing_key, retry, **_options):
        asked.append((reply, routing_key, retry))
        raise ConnectionRefusedError

    with make_worker_app(load_settings(broker_url="redis://127.0.0.1:1/0")) as app:
        mailbox = app.control.mailbox
        mailbox.producer_pool = Pool(publish)
        node = mailbox.Node("w@test", channel=object())
        with pytest.raises(ConnectionRefusedError):
            node.reply({"w@test": "pong"}, exchange="reply", routing_key="r", ticket="t")
    assert asked == [({"w@test": "pong"}, "r", False)]
