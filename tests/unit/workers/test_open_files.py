"""Open files: how many a worker needs, and what becomes of calls while there are none."""

from __future__ import annotations

import asyncio
import errno
import re
from types import SimpleNamespace

import aiohttp
import pytest
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import OperationalError

from fanout.core.errors import LLMError, SettingsError
from fanout.core.records import ErrorKind
from fanout.llm.base import LLMRequest
from fanout.llm.callables import CallableLLM
from fanout.llm.http_client import HttpClient
from fanout.system.open_files import open_files_problem, raise_open_file_limit
from workers.consumer.consumer import Consumer


class Limits:
    """The limits of a process: soft and hard, in files; -1 is unlimited."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, -1

    def __init__(self, soft, hard, *, may_raise=True):
        self.now = (soft, hard)
        self._may_raise = may_raise

    def getrlimit(self, _which):
        return self.now

    def setrlimit(self, _which, limits):
        if not self._may_raise:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


@pytest.mark.parametrize(
    ("concurrency", "pool", "soft", "hard", "raised"),
    [
        (32, "asyncio", 1_024, 4_096, 1_024),
        (896, "asyncio", 1_024, 1_024, 1_024),
        (2_000, "asyncio", 1_024, 4_096, 2_128),
        (2_000, "threads", 1_024, -1, 2_128),
        (2_000, "asyncio", -1, -1, -1),
        (8, "prefork", 128, 4_096, 176),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_is_needed(concurrency, pool, soft, hard, raised):
    limits = Limits(soft, hard)
    raise_open_file_limit(concurrency=concurrency, pool=pool, limits=limits)
    assert limits.now == (raised, hard)


@pytest.mark.parametrize(
    ("concurrency", "pool", "hard", "words"),
    [
        (900, "asyncio", 1_024, "900 branches in flight need 1,028 open files.*to 896"),
        (5_000, "asyncio", 4_096, "this process may have 4,096: lower .* to 3,968, or raise"),
        (1, "asyncio", 64, "may have 64: raise its hard limit"),
        (200, "prefork", 1_024, "to 149"),
    ],
)
def test_what_does_not_fit_the_hard_limit_is_refused(concurrency, pool, hard, words):
    limits = Limits(64, hard)
    with pytest.raises(SettingsError, match=words):
        raise_open_file_limit(concurrency=concurrency, pool=pool, limits=limits)
    assert limits.now == (64, hard)
    assert re.search(words, open_files_problem(concurrency, setting="it", pool=pool, limits=limits))


def test_a_soft_limit_that_cannot_be_raised_is_reported():
    raise_open_file_limit(concurrency=10, pool="asyncio", limits=None)
    assert open_files_problem(10, setting="it", limits=None) is None
    with pytest.raises(SettingsError, match="cannot be raised"):
        raise_open_file_limit(
            concurrency=1_000, pool="asyncio", limits=Limits(256, 100_000, may_raise=False)
        )


def test_a_connection_for_which_there_is_no_descriptor_is_no_attempt(monkeypatch):
    monkeypatch.setattr("fanout.llm.http_client._AGAIN_S", 0.001)
    client = HttpClient(
        "http://provider:1", variable="X", headers={}, concurrency=1, max_reply_bytes=10
    )
    full = OSError(errno.EMFILE, "Too many open files")
    tried = []

    class Session:
        def request(self, *_args, **_options):
            tried.append(1)
            if len(tried) < 5:
                raise aiohttp.ClientConnectorError(
                    SimpleNamespace(ssl=True, host="x", port=1), full
                )
            raise aiohttp.ServerDisconnectedError

    client._session = Session()
    with pytest.raises(LLMError) as caught:
        asyncio.run(client.post(client.url("chat"), b"{}"))
    assert caught.value.kind is ErrorKind.CONNECTION
    assert len(tried) == 5


def test_a_consumer_waits_for_a_descriptor_to_connect_with(monkeypatch):
    """Kombu tells of it in words of its own."""
    full = OperationalError("Too many open files")
    full.__cause__ = OSError(errno.EMFILE, "Too many open files")
    answers = [full, full, "connected"]

    def connect(_self):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(CeleryConsumer, "connect", connect)
    monkeypatch.setattr("workers.consumer.consumer._RECONNECT_S", 0.0)
    assert object.__new__(Consumer)._connect() == "connected"
    answers.append(OperationalError("another"))
    with pytest.raises(OperationalError, match="another"):
        object.__new__(Consumer)._connect()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EMFILE, "Too many open files"), ErrorKind.CONNECTION),
        (MemoryError(), ErrorKind.CONNECTION),
        (RuntimeError("can't start new thread"), ErrorKind.CONNECTION),
        (OSError(errno.ENOENT, "No such file"), ErrorKind.INTERNAL),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
def test_a_function_for_which_nothing_is_left_is_called_again(error, kind, is_async):
    def function(_prompt):
        raise error

    async def coroutine(_prompt):
        raise error

    async def main():
        llm = CallableLLM(coroutine if is_async else function, concurrency=1)
        with pytest.raises(LLMError) as caught:
            await llm.complete(LLMRequest(prompt="x"))
        assert caught.value.kind is kind
        await llm.aclose()

    asyncio.run(main())
