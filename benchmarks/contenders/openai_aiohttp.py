"""The OpenAI SDK with its aiohttp transport, in a loop with a semaphore."""

from __future__ import annotations

from contest import compete
from openai import AsyncOpenAI, DefaultAioHttpClient
from openai_httpx import OpenAIHttpx


class OpenAIAiohttp(OpenAIHttpx):
    """``AsyncOpenAI`` with ``DefaultAioHttpClient``."""

    async def open(self) -> None:
        """Make the client."""
        http = DefaultAioHttpClient()
        self._client = AsyncOpenAI(
            base_url=self.work.base_url, api_key="none", max_retries=0, http_client=http
        )


if __name__ == "__main__":
    compete(OpenAIAiohttp)
