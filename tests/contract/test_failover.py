"""A connection of redis-py to a master ends when the sentinels name another one."""

from __future__ import annotations

import socket

import pytest
from redis.exceptions import ConnectionError as LostError
from redis.sentinel import MasterNotFoundError

from fanout.stores.failover import MasterWatch

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


class Connection:
    """As much of one as is watched."""

    def __init__(self, address):
        self.host, self.port = address
        self._sock, self._peer = socket.socketpair()
        self._sock.settimeout(5)

    def is_ended(self):
        self._sock.setblocking(False)
        try:
            return self._sock.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self):
        self._sock.close()
        self._peer.close()


@pytest.fixture
def connection():
    made = Connection(OLD)
    yield made
    made.close()


def watch(*answers):
    """A watch whose sentinels say so, one answer a look; it looks when it is told to."""
    said = iter(answers)

    def ask():
        answer = next(said)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return MasterWatch(ask, every_s=3600)


@pytest.mark.parametrize(
    ("answers", "is_ended"),
    [
        ([OLD, OLD, OLD], False),
        ([OLD, NEW], False),
        ([OLD, NEW, NEW], True),
        # Sentinels that disagree, or know of none.
        ([NEW, OLD, NEW, OLD], False),
        ([MasterNotFoundError("none"), LostError("away"), OSError("away")], False),
        ([NEW, MasterNotFoundError("none"), NEW], True),
    ],
)
def test_a_connection_ends_once_another_server_is_surely_the_master(connection, answers, is_ended):
    watching = watch(*answers)
    watching.add(connection)
    for _ in answers:
        watching.look()
    assert connection.is_ended() is is_ended


def test_a_connection_that_is_closed_already_is_no_matter(connection):
    watching = watch(NEW, NEW)
    watching.add(connection)
    connection.close()
    for _ in range(2):
        watching.look()
    assert watching._last == NEW
