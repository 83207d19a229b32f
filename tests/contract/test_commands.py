"""Commands reach the server in the bytes that redis-py would send."""

from __future__ import annotations

import pytest
from redis.connection import HiredisRespSerializer
from redis.exceptions import DataError

from fanout.stores.connection import PACKER


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("FCALL", "f", 1, b"\xff\x00", "ä", 2.5, -3),
        ("CONFIG GET", "maxmemory"),
        (b"CONFIG GET", "maxmemory"),
        ("SET", "k", bytearray(b"v")),
        ("SET", "k", memoryview(b"v")),
        ("SET", "k", ""),
    ],
)
def test_a_command_is_sent_as_redis_py_sends_it(command):
    assert b"".join(PACKER.pack(*command)) == b"".join(HiredisRespSerializer().pack(*command))


@pytest.mark.parametrize("argument", [None, [1], object()])
def test_what_is_no_argument_of_a_command_is_said_as_by_redis_py(argument):
    with pytest.raises(DataError):
        PACKER.pack("SET", "k", argument)
