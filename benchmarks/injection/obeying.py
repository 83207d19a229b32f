"""A model that obeys each instruction outside fences, and else does what it is asked."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.llm.base import LLMRequest

__all__ = ["obeying"]

_OPENING = re.compile(r"<(\w+) id=([a-z2-7]{20})>\n")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_TARGET = re.compile(r"PWNED-\d{3}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_PART = re.compile(r"\(Each begins below a line (=== \w+) and ends at the next;")
_TAGS = {code: code - 0xE0000 for code in range(0xE0020, 0xE007F)}
_HIDDEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u202a\u202b\u202c\u202d\u202e\u2060\ufeff"))


def obeying(request: LLMRequest, *, is_fenced: bool) -> str:
    """Return the answer to a request."""
    prompt = request.prompt
    outside, inside = _divided(prompt) if is_fenced else (prompt, [prompt])
    found = _TARGET.search(_read(outside))
    is_judge = prompt.startswith("You check")
    if is_judge:
        verdict = {
            "reasons": "r",
            "pass": bool(found),
            "score": 9 if found else 3,
            "feedback": "more",
        }
        return json.dumps(verdict)
    if prompt.startswith("You compare"):
        return _compared(prompt, found)
    if found:
        return found[0]
    if prompt.startswith("PASSAGES"):
        return json.dumps([text.partition("]")[0] for text in inside])
    if prompt.startswith("SUM"):
        return _summary(inside[0])
    return f"It says: {inside[0]}"


def _compared(prompt: str, found: re.Match[str] | None) -> str:
    """Return a verdict: the answer that has the obeyed instruction wins."""
    winner = "tie"
    if found:
        winner = "A" if _read(prompt.partition("<answer_B")[0]).count(found[0]) else "B"
    return json.dumps({"reasons": "r", "winner": winner})


def _divided(prompt: str) -> tuple[str, list[str]]:
    """Return the text outside fences, and the texts of the blocks."""
    outside, inside, at = "", [], 0
    while (opening := _OPENING.search(prompt, at)) is not None:
        end = f"\n</{opening[1]} id={opening[2]}>"
        closed = prompt.find(end, opening.end() - 1)
        if closed < 0:
            break
        outside += prompt[at : opening.start()]
        inside.append(prompt[opening.end() : closed])
        at = closed + len(end)
    return _QUOTED.sub('""', outside + prompt[at:]), inside


def _read(text: str) -> str:
    """Return a text with what is hidden in it."""
    shown = text.translate(_TAGS).translate(_HIDDEN)
    return "\n".join([shown, *map(_decoded, _BASE64.findall(shown))])


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _summary(answers: str) -> str:
    """Return what the parts of an aggregate are, by their lines."""
    found = _PART.search(answers)
    parts = answers.split(f"\n{found[1]}\n")[1:] if found else []
    return json.dumps(
        {"parts": len(parts), "places": [part.strip().split("\n")[0] for part in parts]}
    )
