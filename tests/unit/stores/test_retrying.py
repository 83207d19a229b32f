"""Trying again while the server is away."""

from __future__ import annotations

import errno

import pytest
import redis

from fanout.core.errors import BrokerError
from fanout.core.exhaustion import is_exhausted
from fanout.stores import RedisStore, connect
from fanout.stores.retrying import call_with_retries, is_recoverable
from tests.fakes import fake_redis

# As redis-py raises them, and as a pipeline or a script does.
REFUSED = [
    redis.ResponseError("MISCONF Valkey is configured to save RDB snapshots, but it's unable"),
    redis.ResponseError("Command # 1 (SET a 1) of pipeline caused error: MISCONF Errors writing"),
    redis.ResponseError("NOREPLICAS Not enough good replicas to write. script: on @user_script:1."),
    redis.ResponseError("BUSY Valkey is busy running a script. You can only call SCRIPT KILL"),
    redis.ResponseError("UNKILLABLE Sorry the script already executed write commands"),
    redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
    redis.exceptions.MasterDownError("Link with MASTER is down"),
    redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
    redis.exceptions.TryAgainError("Multiple keys request during rehashing"),
    redis.exceptions.ClusterDownError("The cluster is down"),
]
NO_RIGHTS = [
    redis.exceptions.NoPermissionError("User default has no permissions to run the 'set' command"),
    redis.ResponseError(
        "ACL failure in script: User x has no permissions to run the 'hset' command"
    ),
    redis.ResponseError("NOPERM ACL failure in script"),
    redis.ResponseError(
        "The user executing the script can't run this command or subcommand script: x, on @user_script:1."
    ),
    redis.AuthenticationError("invalid username-password pair or user is disabled."),
]
FAULTS = [
    redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    redis.ResponseError("unknown command"),
    redis.ResponseError("user_script:1: Script attempted to access nonexistent global variable"),
    ValueError("not of the server"),
]


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
        redis.BusyLoadingError("Redis is loading the dataset in memory"),
        *REFUSED,
    ],
)
def test_what_passes_is_tried_again_with_waits_that_grow_to_a_second(error):
    clock = Clock()
    step = failing(8, error)
    assert call_with_retries(step, patience_s=60, clock=clock, sleep=clock.sleep) == "done"
    assert clock.waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_patience_ends_with_the_error():
    clock = Clock()
    step = failing(1000, redis.ConnectionError("gone"))
    with pytest.raises(redis.ConnectionError, match="gone"):
        call_with_retries(step, patience_s=10, clock=clock, sleep=clock.sleep)
    assert 9 <= clock.now <= 10


@pytest.mark.parametrize("error", [*NO_RIGHTS, *FAULTS])
def test_what_does_not_pass_is_raised_at_once(error):
    clock = Clock()
    step = failing(1, error)
    with pytest.raises(type(error)):
        call_with_retries(step, patience_s=10, clock=clock, sleep=clock.sleep)
    assert clock.waits == []


def test_a_worker_with_a_paid_answer_waits_for_rights_too():
    assert all(is_recoverable(error) for error in REFUSED + NO_RIGHTS)
    assert not any(is_recoverable(error) for error in FAULTS)


@pytest.mark.parametrize("error", REFUSED + NO_RIGHTS)
def test_a_client_of_a_worker_sends_again_what_was_refused(monkeypatch, error):
    monkeypatch.setattr("redis.retry.sleep", lambda _: None)
    retry = connect("redis://localhost:1/0", is_patient=True).get_retry()
    assert retry.call_with_retry(failing(5, error), lambda _: None) == "done"
    client = connect("redis://localhost:1/0", is_patient=True, away_s=9).get_retry()
    if error in REFUSED:
        assert client.call_with_retry(failing(5, error), lambda _: None) == "done"
    else:
        with pytest.raises(type(error)):
            client.call_with_retry(failing(5, error), lambda _: None)


@pytest.mark.parametrize("error", REFUSED + NO_RIGHTS)
def test_a_refusal_is_told_with_its_remedy(error):
    with pytest.raises(BrokerError) as caught:
        Refused(error).ping()
    assert caught.value.is_passing == (error in REFUSED)
    assert "pipeline" not in str(caught.value)
    if str(error).startswith(("MISCONF", "NOREPLICAS", "BUSY")):
        assert "refuses writes" in str(caught.value)
    if isinstance(error, (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)):
        assert "refuses writes: it is a replica" in str(caught.value)
    if isinstance(error, redis.exceptions.BusyLoadingError):
        assert "refuses writes: it is loading its data: wait until it has" in str(caught.value)
    if error in NO_RIGHTS:
        assert "docs/security.md" in str(caught.value) or "credentials" in str(caught.value)


class Refused(RedisStore):
    def __init__(self, error):
        super().__init__(fake_redis())
        self._redis.ping = failing(1, error)


def raised_from(cause):
    error = BrokerError("in other words")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many"), MemoryError()])
def test_a_store_for_which_no_connection_can_be_made_says_that_it_passes(error):
    """Making one opens a file, outside what redis-py tries again."""
    with pytest.raises(BrokerError, match="nothing left") as caught:
        Refused(error).ping()
    assert caught.value.is_passing
    assert is_exhausted(caught.value)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (RuntimeError("can't start new thread"), True),
        (MemoryError(), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (RuntimeError("another"), False),
        (raised_from(OSError(errno.EMFILE, "Too many open files")), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
    ],
)
def test_a_process_that_has_nothing_left_is_told_from_a_fault(error, is_it):
    assert is_exhausted(error) is is_it
