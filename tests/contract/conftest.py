"""An application on a real server, and its publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from fanout.broker import app as broker
from fanout.broker.publisher import Publisher
from fanout.core.settings import load_settings

from .messages import make_known

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    app = broker.make_app(load_settings(broker_url=broker_url))
    yield app
    app.close()


@pytest.fixture
def server_client(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker_url) as client:
        yield client


@pytest.fixture
def publisher(app: Celery, server_client: redis.Redis) -> Publisher:
    make_known(server_client)
    return Publisher(app)
