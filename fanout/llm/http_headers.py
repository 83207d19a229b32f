"""Request headers for a provider: the key, and custom headers from the environment."""

from __future__ import annotations

import os
import re
from importlib import metadata

from fanout.core.errors import ModelError
from fanout.core.records import ErrorKind

__all__ = ["header_value", "request_headers"]

_VALUE = re.compile(r"[\t\x20-\x7e]*")


def request_headers(key: str, *, key_variable: str, custom_variable: str) -> dict[str, str]:
    """Return headers with the key and the custom headers, one per line of ``custom_variable``.

    Raises:
        ModelError: A value has a character that is invalid in a header.
    """
    headers = {
        "accept": "application/json",
        "user-agent": f"fanout-llm/{metadata.version('fanout-llm')}",
        "authorization": f"Bearer {header_value(key_variable, key)}",
    }
    for line in os.environ.get(custom_variable, "").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = header_value(custom_variable, value.strip())
    return headers


def header_value(variable: str, value: str) -> str:
    """Return a valid header value. Raises ModelError for an invalid character."""
    if not _VALUE.fullmatch(value):
        raise ModelError(
            f"{variable} holds a character that no HTTP header may have, such as a line break; set "
            "it anew where the workers run",
            kind=ErrorKind.AUTH,
        )
    return value
