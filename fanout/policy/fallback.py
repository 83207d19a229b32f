"""The fallback policy: after which failures of a model another one is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FALLS_BACK", "asked_in_turn", "falls_back", "without_answer"]

# Another model may give an answer where these come from. A wrong key or an empty account is to be put
# right, and not to be hidden by calls of another model; a limit, a time-out or a lost connection
# passes, and the same model answers then.
FALLS_BACK = frozenset(
    {
        ErrorKind.CONTENT_FILTER,  # another provider has other rules
        ErrorKind.CONTEXT_LENGTH,  # another model may have a larger window
        ErrorKind.TRUNCATED,  # another model may allow longer answers, or be briefer
        ErrorKind.INVALID_OUTPUT,  # another model may give the requested form
        ErrorKind.SERVER_ERROR,  # another provider may be well
    }
)


def falls_back(kind: ErrorKind | None) -> bool:
    """Say whether another model is asked after a model has ended with this, None for an answer."""
    return kind in FALLS_BACK


def asked_in_turn(model: str, fallback: Sequence[str]) -> tuple[str, ...]:
    """Return the models that a branch may ask, in order; a model is not its own fallback."""
    return (model, *(other for other in fallback if other != model))


def without_answer(message: str, before: Sequence[tuple[str, ErrorKind]], last: str) -> str:
    """Return the message of a branch that no model answered: the last one's, and who was asked.

    Args:
        message: Of the last model.
        before: The models that were asked before it, each with how it ended.
        last: The last model.
    """
    if not before:
        return message
    asked = "; ".join(f"{model}: {kind.value}" for model, kind in before)
    return f"{last}: {message} (asked before it: {asked})"
