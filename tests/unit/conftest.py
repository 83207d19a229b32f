"""What unit tests share: a store on a fake server, and that server's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fakeredis
import pytest

from tests.fakes import Clock, fake_store, set_server_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.stores import RedisStore


@pytest.fixture
def fake_server() -> fakeredis.FakeServer:
    """Return a fake server, for tests that look at its keys or have several stores there."""
    return fakeredis.FakeServer()


@pytest.fixture
def store() -> Iterator[RedisStore]:
    """Return the run store on a fake server of the test's own."""
    store = fake_store()
    yield store
    store.close()


@pytest.fixture
def server_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have the time of fake servers pass only as a test says, from the year 2001 on."""
    clock = Clock(1_000_000_000.0)
    set_server_clock(monkeypatch, clock)
    return clock
