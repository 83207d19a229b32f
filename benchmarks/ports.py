"""Ports for servers of tests and benchmarks."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

# Below those that the kernel gives to outgoing connections (32768 on Linux, 49152 elsewhere): one
# of these may be taken again before the server that it was meant for listens.
_PORTS = range(10_000, 32_000)
# Not the seeded one: tests that run side by side would draw the same.
_random = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a port of loopback that nobody listens on, and that this process was not given yet."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            # As servers do: what a closed connection has left behind is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
