"""The stores that what is true of any store is tried on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from fanout.stores import RedisStore
from fanout.stores.blobs import FileBlobs
from tests.fakes import fake_store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["fakeredis", "server", "files"])
def any_store(request: pytest.FixtureRequest) -> Iterator[RedisStore]:
    match request.param:
        case "fakeredis":
            store = fake_store()
        case "server":
            store = RedisStore(redis.Redis.from_url(request.getfixturevalue("broker_url")))
        case "files":
            store = fake_store(blobs=FileBlobs(str(request.getfixturevalue("tmp_path"))))
    yield store
    store.close()
