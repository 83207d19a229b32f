"""The event loop of a worker process: uvloop's where it is installed, which costs a third."""

from __future__ import annotations

import asyncio
from importlib import import_module
from importlib.util import find_spec

__all__ = ["new_event_loop"]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
    return loop
