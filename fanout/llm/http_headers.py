"""The headers of each request to a provider: the key, and those that the environment adds."""

from __future__ import annotations

import os
import re
from importlib import metadata

from fanout.core.errors import ModelError
from fanout.core.records import ErrorKind

__all__ = ["header_value", "request_headers"]

_VALUE = re.compile(r"[\t\x20-\x7e]*")


def request_headers(key: str, *, key_variable: str, custom_variable: str) -> dict[str, str]:
    """Return headers with the key, and further ones: a line each of a variable.

    Raises:
        ModelError: A variable holds what no header may have.
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
    """Return the value of a header. Raises ModelError where it cannot be one."""
    if not _VALUE.fullmatch(value):
        raise ModelError(
            f"{variable} holds a character that no HTTP header may have, such as a line break; set "
            "it anew where the workers run",
            kind=ErrorKind.AUTH,
        )
    return value
