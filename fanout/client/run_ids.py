"""The ids of runs."""

from __future__ import annotations

import secrets

__all__ = ["new_run_id"]

# Crockford's base 32: no letter looks like a digit. "latest" is no id, as it has an l.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 8


def new_run_id() -> str:
    """Return an id that no other run has."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
