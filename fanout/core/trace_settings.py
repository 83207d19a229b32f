"""Checks the settings of traces."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fanout.core.errors import SettingsError

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["check_traces"]

_OTLP = "http/protobuf"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def check_traces(settings: Settings) -> None:
    """Check that a worker of this process can send the traces that the settings request.

    Raises:
        SettingsError: The extra is not installed, or the protocol is not supported.
    """
    if settings.traces == "off":
        return
    try:
        exporter = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        # A package above it is missing.
        exporter = None
    if exporter is None:
        raise SettingsError("FANOUT_TRACES: otlp needs an extra: pip install 'fanout-llm[otel]'")
    for name in _PROTOCOLS:
        if os.environ.get(name, _OTLP) not in {"", _OTLP}:
            raise SettingsError(
                f"{name}: workers speak {_OTLP} only (got {os.environ[name]!r}); "
                "a collector listens for it on port 4318"
            )
