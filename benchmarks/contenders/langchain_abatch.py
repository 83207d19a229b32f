"""LangChain: ``ChatOpenAI.abatch`` with its concurrency limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvloop
from contest import MODEL, compete, count_ok
from langchain_openai import ChatOpenAI

if TYPE_CHECKING:
    from contest import Work


class LangChain:
    """One chat model that answers a batch."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._model = ChatOpenAI(model=MODEL, base_url=work.base_url, api_key="none", max_retries=0)

    def run(self, count: int) -> int:
        """Answer a batch of prompts."""
        return self._runner.run(self._batch(self._work.prompts(count)))

    async def _batch(self, prompts: list[str]) -> int:
        limit = {"max_concurrency": self._work.in_flight}
        messages = await self._model.abatch(prompts, config=limit)
        return count_ok([message.content for message in messages])

    def close(self) -> None:
        """Close the loop."""
        self._runner.close()


if __name__ == "__main__":
    compete(LangChain)
