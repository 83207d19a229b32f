"""How long a text is for a model, without a vocabulary."""

from __future__ import annotations

__all__ = ["BYTES_PER_TOKEN", "estimate_tokens", "tokens_of_bytes", "utf8_bytes"]

BYTES_PER_TOKEN = 4


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: a quarter of its UTF-8 bytes, rounded up.

    Bytes and not characters, because a token of English is some four letters of one byte, while a
    Chinese character is three bytes and about one token.
    """
    return tokens_of_bytes(utf8_bytes(text))


def utf8_bytes(text: str) -> int:
    """Return how many bytes a text has as UTF-8."""
    # Known without looking at each character, which counts where prompts are long.
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of_bytes(size_bytes: int) -> int:
    """Return the estimated tokens of a text of so many UTF-8 bytes."""
    return -(-size_bytes // BYTES_PER_TOKEN)
