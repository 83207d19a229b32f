"""The OpenAI SDK with its defaults, in a loop with a semaphore."""

from __future__ import annotations

from typing import Any

from contest import MODEL, compete
from loops import Loop
from openai import AsyncOpenAI


class OpenAIHttpx(Loop):
    """``AsyncOpenAI`` with its default transport."""

    async def open(self) -> None:
        """Make the client."""
        self._client = AsyncOpenAI(base_url=self.work.base_url, api_key="none", max_retries=0)

    async def call(self, prompt: str) -> str | None:
        """Make one call."""
        messages: Any = [{"role": "user", "content": prompt}]
        reply = await self._client.chat.completions.create(model=MODEL, messages=messages)
        return reply.choices[0].message.content

    async def shut(self) -> None:
        """Close the client."""
        await self._client.close()


if __name__ == "__main__":
    compete(OpenAIHttpx)
