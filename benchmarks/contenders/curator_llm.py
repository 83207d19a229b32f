"""Bespoke Curator: ``curator.LLM`` over a list of prompts, its cache in an empty folder."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from contest import MODEL, compete, count_ok

_LITELLM = importlib.util.find_spec("litellm")
if _LITELLM is None or _LITELLM.origin is None:
    raise ImportError("litellm is not installed: see benchmarks/setup-peers")

# Read when it is imported. It is to ask nobody but the provider: tokens are counted, and prices
# known, by what litellm ships.
os.environ.update(
    TELEMETRY_ENABLED="false",
    CURATOR_VIEWER="false",
    LITELLM_LOCAL_MODEL_COST_MAP="true",
    TIKTOKEN_CACHE_DIR=str(Path(_LITELLM.origin).with_name("litellm_core_utils") / "tokenizers"),
    HF_HUB_OFFLINE="1",
    OPENAI_API_KEY="none",
)

from bespokelabs import curator  # noqa: E402 - it reads what is set above

if TYPE_CHECKING:
    from contest import Work

# Its rate limits are told to be out of the way.
_UNLIMITED = 1_000_000_000


class Curator:
    """A model that maps a list of prompts to a data set."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runs = 0
        self._llm = curator.LLM(
            model_name=MODEL,
            backend="openai",
            backend_params={
                "base_url": work.base_url,
                "api_key": "none",
                "max_retries": 0,
                "max_concurrent_requests": work.in_flight,
                "max_requests_per_minute": _UNLIMITED,
                "max_tokens_per_minute": _UNLIMITED,
            },
        )

    def run(self, count: int) -> int:
        """Have so many prompts answered; each run has a cache of its own."""
        folder = tempfile.mkdtemp(dir=self._work.folder)
        response = self._llm(self._work.prompts(count), working_dir=folder)
        return count_ok(list(response.dataset["response"]))

    def close(self) -> None:
        """Nothing is left open."""


if __name__ == "__main__":
    compete(Curator)
