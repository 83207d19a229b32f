"""Redaction: keys and passwords never get into messages, records or logs.

What must not be repeated is learned from the environment and from the broker's URL; what merely
looks like a key is known by its form. Texts are redacted before they are cut, so that no half of a
key is left.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MASK", "Redactor", "learn", "redacted", "secret_values"]

MASK = "[key]"

# Shorter values are words such as "none" or "test": to replace those would garble what is said.
_SHORTEST = 8

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE
)
_USERINFO = re.compile(r"(?<=://)([^\s/@:?#]*):([^\s/@?#]+)(?=@)")
_QUERY_PASSWORD = re.compile(r"(?<=password=)[^\s&#;'\"]+", re.IGNORECASE)

# Forms of keys: of OpenAI, Anthropic, Google, AWS, Groq, Hugging Face, GitHub, xAI; and what HTTP
# headers carry.
_FORMS = (
    re.compile(r"\b(?:sk|pk|rk|key)-[\w*-]{6,}"),
    re.compile(r"\bAIza[\w-]{20,}"),
    re.compile(r"\bAKIA[0-9A-Z]{12,}"),
    re.compile(r"\b(?:gsk|hf|ghp|xai)[_-]\w{16,}"),
    re.compile(r"(?<=\bBearer )\S{6,}", re.IGNORECASE),
    re.compile(r"(?<=\bx-api-key: )\S{6,}", re.IGNORECASE),
    re.compile(r"(?<=\bapi-key: )\S{6,}", re.IGNORECASE),
)


class Redactor:
    """Replaces secrets in texts.

    Args:
        values: What must not be repeated, whatever it looks like.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.values = frozenset(value for value in values if len(value) >= _SHORTEST)
        # The longest first: one secret may begin with another.
        longest_first = sorted(self.values, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if self.values else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _USERINFO.sub(rf"\1:{MASK}", text)
        text = _QUERY_PASSWORD.sub(MASK, text)
        for form in _FORMS:
            text = form.sub(MASK, text)
        return text


def secret_values(environment: Mapping[str, str]) -> set[str]:
    """Return the secrets among variables: by their names, and the passwords in URLs."""
    found: set[str] = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name):
            found.add(value)
        if "://" in value:
            found |= _passwords(value)
    return found


def _passwords(url: str) -> set[str]:
    passwords = {match[2] for match in _USERINFO.finditer(url)}
    passwords |= set(_QUERY_PASSWORD.findall(url))
    # Servers and clients see what a URL quotes as it is.
    return passwords | {unquote(password) for password in passwords}


_redactor = Redactor()


def learn(*urls: str | None) -> None:
    """Take the secrets of this process from its environment, and from these URLs.

    Called when a worker or a client starts, and when a model is made; what was learned stays.
    """
    global _redactor  # noqa: PLW0603 - replaced as a whole, so that readers need no lock
    found = secret_values(os.environ).union(*(_passwords(url) for url in urls if url))
    if not found <= _redactor.values:
        _redactor = Redactor(found | _redactor.values)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without the secrets of this process, and without these."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return _redactor(text)
