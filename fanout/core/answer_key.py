"""The key of a kept answer: a digest of all that determines the answer to a request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KEY_BYTES", "answer_key"]

KEY_BYTES = 20
# Raise it when adapters make other messages of the same request.
_VERSION = 1
_encode = msgspec.json.Encoder().encode


def answer_key(
    model: str,
    *,
    prompt: str,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    stop: Sequence[str],
    shape: str | None,
    turns: Sequence[Sequence[str]],
    sample: int,
    output_format: str,
    on_truncated: str,
    attempt: str = "",
) -> bytes:
    """Return the key of the answer to a request.

    How the call is bought, how long it may take and how often it may be made are no part of it: they
    do not change the answer.

    Args:
        model: The identity of the model: provider, name and address.
        prompt: The user's message.
        system: The system prompt.
        temperature: Sampling temperature.
        max_tokens: The longest answer.
        seed: Sampling seed.
        stop: Strings that end the answer.
        shape: What the answer must be, as ``AnswerShape.text``; None is any text.
        turns: What followed in the conversation.
        sample: The number of the sample: two samples of one prompt are two answers.
        output_format: What else the answer must be.
        on_truncated: What an answer that was cut off is.
        attempt: What names the retry that asks anew for an answer that was kept; empty for none.
    """
    parts = (
        *(_VERSION, model, system, prompt, temperature, max_tokens, seed, stop, shape, turns),
        *(sample, output_format, on_truncated),
        *filter(None, [attempt]),
    )
    try:
        data = _encode(parts)
    except UnicodeEncodeError:
        # A lone surrogate, which no adapter sends as it is.
        data = repr(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).digest()[:KEY_BYTES]
