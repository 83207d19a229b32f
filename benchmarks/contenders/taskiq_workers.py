"""Taskiq: async tasks over a Redis stream, its result backend, the OpenAI SDK on aiohttp."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import uvloop
from contest import MODEL, compete, count_ok
from openai import AsyncOpenAI, DefaultAioHttpClient
from services import Processes, Valkey
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

if TYPE_CHECKING:
    from contest import Work

_URL = "BENCH_REDIS_URL"
_CHECK_S = 0.02
# Tasks that are sent concurrently: each needs a connection.
_SENDERS = 50


def _make_broker(url: str) -> RedisStreamBroker:
    backend: Any = RedisAsyncResultBackend(redis_url=url, result_ex_time=3600)
    return RedisStreamBroker(url=url).with_result_backend(backend)


@cache
def _client() -> AsyncOpenAI:
    return AsyncOpenAI(max_retries=0, http_client=DefaultAioHttpClient())


async def _call(prompt: str) -> str | None:
    messages: Any = [{"role": "user", "content": prompt}]
    reply = await _client().chat.completions.create(model=MODEL, messages=messages)
    return reply.choices[0].message.content


# The worker imports this module, and reads the server's URL from its environment.
if _URL in os.environ:
    broker = _make_broker(os.environ[_URL])
    call = broker.task(task_name="call")(_call)


class Taskiq:
    """A client, a server, and worker processes."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._processes = Processes(work.folder)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        url = Valkey(self._processes).url
        self._broker = _make_broker(url)
        self._task = self._broker.task(task_name="call")(_call)
        self._runner.run(self._broker.startup())
        env = {
            _URL: url,
            "OPENAI_BASE_URL": work.base_url,
            "OPENAI_API_KEY": "none",
        }
        command = [sys.executable, "-m", "taskiq", "worker", "taskiq_workers:broker"]
        command += ["--workers", str(work.workers), "--max-async-tasks", str(work.per_worker)]
        command += ["--log-level", "WARNING"]
        self._processes.start("workers", command, env)

    def run(self, count: int) -> int:
        """Send all tasks, and read their results in order."""
        return self._runner.run(self._all(self._work.prompts(count)))

    async def _all(self, prompts: list[str]) -> int:
        turns = asyncio.Semaphore(_SENDERS)

        async def send(prompt: str) -> Any:
            async with turns:
                return await self._task.kiq(prompt)

        tasks = await asyncio.gather(*(send(prompt) for prompt in prompts))
        # Wait for one after the other: polling all of them would load the server.
        results = [await task.wait_result(check_interval=_CHECK_S) for task in tasks]
        return count_ok([result.return_value for result in results])

    def close(self) -> None:
        """End server and workers."""
        self._runner.run(self._broker.shutdown())
        self._runner.close()
        self._processes.close()


if __name__ == "__main__":
    compete(Taskiq)
