"""An aiohttp session that posts and reads JSON, in a loop with a semaphore: the minimum."""

from __future__ import annotations

import aiohttp
from contest import MODEL, compete
from loops import Loop


class BareAiohttp(Loop):
    """One session with one connection for each call in flight."""

    async def open(self) -> None:
        """Make the session."""
        connector = aiohttp.TCPConnector(limit=self.work.in_flight)
        self._session = aiohttp.ClientSession(
            connector=connector, headers={"Authorization": "Bearer none"}
        )
        self._url = f"{self.work.base_url}/chat/completions"

    async def call(self, prompt: str) -> str | None:
        """Make one call."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
        async with self._session.post(self._url, json=body) as response:
            response.raise_for_status()
            reply = await response.json()
        return str(reply["choices"][0]["message"]["content"])

    async def shut(self) -> None:
        """Close the session."""
        await self._session.close()


if __name__ == "__main__":
    compete(BareAiohttp)
