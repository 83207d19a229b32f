"""The connections of a worker process to its server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanout.broker.app import PATIENT_S, connect_broker, make_store
from fanout.broker.inspection import MessageReader
from fanout.broker.publisher import Publisher

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

    from fanout.core.settings import Settings
    from fanout.stores import RedisStore

__all__ = ["Connections", "connect"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Connections:
    """One per worker process; safe to share between threads.

    Attributes:
        store: The store for branches and stages: it waits for an unreachable server.
        fail_fast_store: The store for beats and watchers: it fails if the server is unreachable.
        publisher: Sends tasks to the broker.
        backend: Celery's result backend.
        broker: The client that acknowledges messages of ended branches: it waits for the server.
        messages: Reads which messages the broker has.
    """

    store: RedisStore
    fail_fast_store: RedisStore
    publisher: Publisher
    backend: Any
    broker: Redis
    messages: MessageReader

    def close(self) -> None:
        """Close the connections."""
        self.store.close()
        self.fail_fast_store.close()
        self.publisher.close()
        self.broker.close()
        self.messages.close()


def connect(app: Celery, settings: Settings) -> Connections:
    """Return the connections of the calling process."""
    return Connections(
        # An outcome in hand was paid for, so its branch waits for the server without a limit. It waits
        # less for the storage: another worker may reach it, and has the branch by then.
        store=make_store(settings, is_patient=True, storage_away_s=settings.visibility_timeout_s),
        fail_fast_store=make_store(settings),
        publisher=Publisher(app, patience_s=PATIENT_S),
        backend=app.backend,
        broker=connect_broker(settings, is_patient=True),
        messages=MessageReader(connect_broker(settings)),
    )
