"""Estimates of the number of tokens in a text, without a tokenizer."""

from __future__ import annotations

__all__ = ["BYTES_PER_TOKEN", "encoded", "estimate_tokens", "tokens_of_bytes", "utf8_bytes"]

BYTES_PER_TOKEN = 4


def estimate_tokens(text: str) -> int:
    """Return an estimate of a text's tokens: a quarter of its UTF-8 bytes, rounded up.

    It counts bytes and not characters: a token of English is about four letters of one byte, while
    a Chinese character is three bytes and about one token.
    """
    return tokens_of_bytes(utf8_bytes(text))


def encoded(text: str) -> bytes:
    """Return the UTF-8 bytes of a text, which may have lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def utf8_bytes(text: str) -> int:
    """Return the size of a text in UTF-8, in bytes."""
    # For ASCII, Python knows the answer without a scan, which matters for long prompts.
    return len(text) if text.isascii() else len(encoded(text))


def tokens_of_bytes(size_bytes: int) -> int:
    """Return the estimated tokens of a text of ``size_bytes`` UTF-8 bytes."""
    return -(-size_bytes // BYTES_PER_TOKEN)
