"""Ray: async actors on this machine, each with the OpenAI SDK on aiohttp."""

from __future__ import annotations

import os
from itertools import cycle
from typing import TYPE_CHECKING, Any

from contest import MODEL, compete, count_ok

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

if TYPE_CHECKING:
    from contest import Work


@ray.remote
class Caller:
    """One worker process."""

    def __init__(self, base_url: str) -> None:
        # Imported here, as Ray sends the class with all its globals to the workers.
        from openai import AsyncOpenAI, DefaultAioHttpClient

        self._client = AsyncOpenAI(
            base_url=base_url, api_key="none", max_retries=0, http_client=DefaultAioHttpClient()
        )

    async def call(self, prompt: str) -> str | None:
        """Make one call."""
        messages: Any = [{"role": "user", "content": prompt}]
        reply = await self._client.chat.completions.create(model=MODEL, messages=messages)
        return reply.choices[0].message.content


class RayActors:
    """One actor per worker; the calls go to the actors in turn."""

    def __init__(self, work: Work) -> None:
        self._work = work
        ray.init(
            num_cpus=work.workers,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        options: dict[str, Any] = {"max_concurrency": work.per_worker, "num_cpus": 1}
        self._actors = [
            Caller.options(**options).remote(work.base_url)  # type: ignore[attr-defined]
            for _ in range(work.workers)
        ]

    def run(self, count: int) -> int:
        """Make a number of calls to the actors, and collect their answers."""
        pairs = zip(self._work.prompts(count), cycle(self._actors), strict=False)
        return count_ok(ray.get([actor.call.remote(prompt) for prompt, actor in pairs]))

    def close(self) -> None:
        """End Ray."""
        ray.shutdown()


if __name__ == "__main__":
    compete(RayActors)
