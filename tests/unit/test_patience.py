"""Trying again while the server is away."""

from __future__ import annotations

import pytest
import redis

from fanout.patience import patiently


class Clock:
    """Time that passes only by waiting."""

    def __init__(self):
        self.now = 0.0
        self.waits = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def failing(times, error):
    errors = [error] * times

    def step():
        if errors:
            raise errors.pop()
        return "done"

    return step


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("gone"),
        redis.TimeoutError("slow"),
        redis.exceptions.OutOfMemoryError("full"),
        redis.ReadOnlyError("demoted"),
    ],
)
def test_what_passes_is_tried_again_with_waits_that_grow_to_a_second(error):
    clock = Clock()
    step = failing(8, error)
    assert patiently(step, patience_s=60, clock=clock, sleep=clock.sleep) == "done"
    assert clock.waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_patience_ends_with_the_error():
    clock = Clock()
    step = failing(1000, redis.ConnectionError("gone"))
    with pytest.raises(redis.ConnectionError, match="gone"):
        patiently(step, patience_s=10, clock=clock, sleep=clock.sleep)
    assert 9 <= clock.now <= 10


def test_what_does_not_pass_is_raised_at_once():
    clock = Clock()
    step = failing(1, redis.AuthenticationError("no"))
    with pytest.raises(redis.AuthenticationError):
        patiently(step, patience_s=10, clock=clock, sleep=clock.sleep)
    assert clock.waits == []
