"""Answers that a server sends as an error, because they do not have their schema."""

from __future__ import annotations

import re
from typing import Any

from fanout.llm.base import LLMReply
from fanout.llm.finish_reasons import require_answer
from fanout.llm.usage import UNKNOWN_USAGE

__all__ = ["invalid_answer"]

_BAD_REQUEST = 400
# Groq's, where another server would send the answer as it is.
_CODE, _ANSWER = "json_validate_failed", "failed_generation"
_NO_ROOM = re.compile(r"\bmax\w*[ _](?:completion[ _])?tokens", re.IGNORECASE)


def invalid_answer(status: int, fields: dict[str, Any]) -> LLMReply | None:
    """Return the answer in an error that says it lacks its schema; None for any other error.

    It is then checked as any answer is: it may be valid but for what surrounds it, and else the model is
    told what is wrong. What it cost is unknown. Source: Groq's page on structured outputs.

    Args:
        status: The HTTP status.
        fields: The JSON of the reply.

    Raises:
        LLMError: The error has no answer (``invalid_output``), or one that was cut off before it began.
    """
    error = fields.get("error")
    if status != _BAD_REQUEST or not isinstance(error, dict) or error.get("code") != _CODE:
        return None
    text = error.get(_ANSWER)
    found = LLMReply(
        text=text if isinstance(text, str) else "",
        usage=UNKNOWN_USAGE,
        finish_reason="length" if _NO_ROOM.search(str(error.get("message"))) else "stop",
    )
    require_answer(found)
    return found
