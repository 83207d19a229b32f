"""The JSON Schemas of answers that fanout asks for by itself: no field of a job says them."""

from __future__ import annotations

from typing import Any

__all__ = ["COMPARISON_SCHEMA", "OWN_SCHEMAS", "RESOLUTION_SCHEMA", "SCORED_SCHEMA"]

# The reasons come first: what is written before the verdict can still change it.
COMPARISON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasons": {"type": "string"},
        "winner": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["reasons", "winner"],
    "additionalProperties": False,
}
RESOLUTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reasons": {"type": "string"}, "same": {"type": "boolean"}},
    "required": ["reasons", "same"],
    "additionalProperties": False,
}
# What each branch answers with the fold map_rerank. The score is judged after the answer is written.
SCORED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {
            "type": "string",
            "description": "The answer to the question, by this text alone.",
        },
        "score": {
            "type": "integer",
            "minimum": 0,
            "maximum": 100,
            "description": "How fully this text answers the question: 100 is fully and in detail, 0 is not "
            "at all, also if the text does not say.",
        },
    },
    "required": ["answer", "score"],
    "additionalProperties": False,
}
OWN_SCHEMAS = (COMPARISON_SCHEMA, RESOLUTION_SCHEMA, SCORED_SCHEMA)
