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

# Curator reads these at import. It must contact only the provider: litellm's bundled files give
# tokens and prices.
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

# Its rate limits are set too high to matter.
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
        """Answer a number of prompts; each run has its own cache."""
        folder = tempfile.mkdtemp(dir=self._work.folder)
        response = self._llm(self._work.prompts(count), working_dir=folder)
        return count_ok(list(response.dataset["response"]))

    def close(self) -> None:
        """Do nothing: nothing stays open."""


if __name__ == "__main__":
    compete(Curator)
