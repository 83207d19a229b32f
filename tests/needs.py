"""Requirements of tests on the machine: a test without them is skipped, or fails in CI."""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["needs", "skip_or_fail"]


def needs(*commands: str) -> None:
    """Skip if a command is not installed; fail if FANOUT_TESTS_REQUIRE_ALL is set."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        skip_or_fail(f"not installed: {', '.join(missing)} (see ops/install-test-tools)")


def skip_or_fail(reason: str) -> None:
    """Skip a test that cannot run here; fail if FANOUT_TESTS_REQUIRE_ALL is set."""
    if os.environ.get("FANOUT_TESTS_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)
