"""Marks of fences in prompts: derived from the text between them, which cannot contain its own."""

from __future__ import annotations

import hashlib
from base64 import b32encode

__all__ = ["mark_of"]

_LENGTH = 20


def mark_of(*texts: str, length: int = _LENGTH) -> str:
    """Return a mark that the texts determine, and that none of them contains.

    Args:
        texts: What stands between fences with this mark.
        length: The number of characters, of 5 bits each, up to 26.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))
    while True:
        mark = b32encode(digest.digest()).decode().lower()[:length]
        if not any(mark in text for text in texts):
            return mark
        digest.update(b"again")
