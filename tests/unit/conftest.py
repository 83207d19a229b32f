"""What unit tests share: a store on a fake server, and that server's clock."""

from __future__ import annotations

import fakeredis
import pytest

from tests.fakes import Clock, fake_store, set_server_clock


@pytest.fixture
def fake_server():
    """Return a fake server, for tests that look at its keys or have several stores there."""
    return fakeredis.FakeServer()


@pytest.fixture
def store():
    """Return the run store on a fake server of the test's own."""
    store = fake_store()
    yield store
    store.close()


@pytest.fixture
def server_clock(monkeypatch):
    """Have the time of fake servers pass only as a test says, from the year 2001 on."""
    clock = Clock(1_000_000_000.0)
    set_server_clock(monkeypatch, clock)
    return clock
