"""Loads redis-py; in fanout's own programs, without the metrics of OpenTelemetry that it looks for.

Where these are installed, loading them takes a third of the time that redis-py takes. Nothing here uses
them; a user's program may.
"""

from __future__ import annotations

import sys

from fanout.system.own_program import is_own_program

_METRICS = ("opentelemetry.metrics", "opentelemetry.sdk.metrics")


def _load() -> None:
    hidden = [name for name in _METRICS if name not in sys.modules] if is_own_program() else []
    # As if they were not installed.
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
    try:
        import redis  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]


_load()
