"""What a consumer does while the server answers but refuses what it begins with."""

from __future__ import annotations

import pytest
import redis
from celery.worker.consumer import Consumer as CeleryConsumer

from workers.consumer.consumer import Consumer


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), 1),
        (redis.exceptions.OutOfMemoryError("command not allowed"), 1),
        # Celery has waited for these itself.
        (redis.ConnectionError("Connection refused"), 0),
    ],
)
def test_a_consumer_waits_after_a_refusal_before_it_connects_again(monkeypatch, error, waits):
    slept, told = [], []
    monkeypatch.setattr("workers.consumer.consumer.time.sleep", slept.append)
    monkeypatch.setattr(
        CeleryConsumer, "on_connection_error_before_connected", lambda _self, exc: told.append(exc)
    )
    object.__new__(Consumer).on_connection_error_before_connected(error)
    assert (told, len(slept)) == ([error], waits)
