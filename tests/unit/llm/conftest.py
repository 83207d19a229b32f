"""Fixtures for the tests of adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.scripted_provider import ScriptedProvider


@pytest.fixture
def at_provider(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the adapters call the scripted provider, each with a key."""
    for name, path in {"OPENAI": "/v1", "ANTHROPIC": "", "GEMINI": ""}.items():
        monkeypatch.setenv(f"{name}_BASE_URL", f"{provider.url}{path}")
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test-0123456789abcdef")
