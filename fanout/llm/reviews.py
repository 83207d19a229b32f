"""The review of answers: one that is not right is asked for once more, and then kept with marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.answer_shape import WrongShapeError
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.answers import WrongAnswerError, validated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.llm.base import AnswerReview, Turn

__all__ = ["earlier_answer", "marked_answer", "reviewed"]

_FIRST_WORDS = "That cannot stay: "
_LAST_WORDS = ". Give the whole answer again, corrected."


async def reviewed(review: AnswerReview, answer: str, *, asks_again: bool) -> str:
    """Return an answer with marks at what is wrong with it.

    Args:
        review: What checks it.
        answer: The answer in its stored form.
        asks_again: Whether it may be asked for once more instead.

    Raises:
        WrongAnswerError: It is to be asked for again.
        LLMError: With its marks, it does not have its shape.
    """
    if asks_again:
        problem = await validated(review.problem, answer)
        if problem is not None:
            raise WrongAnswerError(problem, answer, f"{_FIRST_WORDS}{problem}{_LAST_WORDS}")
    return await marked_answer(review, answer)


async def marked_answer(review: AnswerReview, answer: str) -> str:
    """Return an answer with marks at what is wrong with it. Raises LLMError."""
    try:
        return await validated(review.marked, answer)
    except WrongShapeError as error:
        raise LLMError(ErrorKind.INVALID_OUTPUT, str(error)) from None


def earlier_answer(turns: Iterable[Turn]) -> str | None:
    """Return the answer of a conversation that a review has sent back; None if it has sent back none."""
    found = (turn.answer for turn in turns if turn.reply.startswith(_FIRST_WORDS))
    return next(found, None)
