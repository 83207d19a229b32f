"""fanout without a configured broker: its client starts a server and one worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from contest import compete
from fanout_fleet import answers, spec

from fanout import Client

if TYPE_CHECKING:
    from contest import Work


class FanoutEmbedded:
    """One worker has all calls in flight, for any number of workers."""

    def __init__(self, work: Work) -> None:
        self._work = work
        os.environ.update(OPENAI_BASE_URL=work.base_url, OPENAI_API_KEY="none")
        os.environ.pop("FANOUT_BROKER_URL", None)
        self._client = Client(concurrency=work.in_flight)

    def run(self, count: int) -> int:
        """Submit a run, and wait until it has ended."""
        return answers(self._client.submit(spec(), self._work.documents(count)))

    def close(self) -> None:
        """End the embedded fleet."""
        self._client.close()


if __name__ == "__main__":
    compete(FanoutEmbedded)
