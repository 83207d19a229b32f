"""The check of one answer: whether it is complete, what it must be, and what of it is stored."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from fanout.core.answer_shape import WrongShapeError, quoted
from fanout.core.errors import LLMError
from fanout.core.json_text import bare_json
from fanout.core.reasoning import without_reasoning
from fanout.core.records import ErrorKind
from fanout.llm.deadline import Deadline
from fanout.llm.finish_reasons import ending, is_clear, require_complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.answer_shape import AnswerShape
    from fanout.llm.base import LLMReply

__all__ = [
    "WrongAnswerError",
    "checked_answer",
    "rechecked_answer",
    "storable",
    "validate_json",
    "validated",
]

_T = TypeVar("_T")

# Validating an answer of a megabyte takes a few hundredths of a second.
_VALIDATION_LIMIT_S = 30.0
_VALIDATION_THREADS = 4
# A short answer is checked in microseconds: a thread would cost more.
_CHECKED_AT_ONCE_CHARS = 8_000
# Of a wrong answer, so much is sent back to the model.
_SHOWN_ANSWER_CHARS = 4_000
_NUMBERS = tuple("-0123456789")
_REASONING = "<think>"
_SURROGATES = re.compile("[\ud800-\udfff]")


async def checked_answer(
    reply: LLMReply,
    *,
    shape: AnswerShape | None,
    validate: Callable[[str], str] | None,
    max_output_kb: int | None,
    keeps_cut: bool,
) -> str:
    """Return the stored form of an answer.

    One that has its shape is an answer also if its finish reason does not say how it ended.

    Args:
        reply: The reply with the answer.
        shape: What the answer must be; None is any text.
        validate: Without a shape: returns the answer to store, or raises LLMError.
        max_output_kb: The longest answer in kilobytes; None is any length.
        keeps_cut: Whether to accept an answer that was cut off, if it is valid as it is.

    Raises:
        WrongAnswerError: The answer is complete, and lacks its shape.
        LLMError: There is no valid answer.
    """
    try:
        return await _stored(reply, shape, validate, max_output_kb, keeps_cut=keeps_cut)
    except LLMError as error:
        error.finish_reason = error.finish_reason or reply.finish_reason
        raise


async def _stored(
    reply: LLMReply,
    shape: AnswerShape | None,
    validate: Callable[[str], str] | None,
    max_output_kb: int | None,
    *,
    keeps_cut: bool,
) -> str:
    # It is accepted only if it is whole by itself.
    is_doubtful = bool(reply.text.strip()) and (
        (keeps_cut and ending(reply.finish_reason) is ErrorKind.TRUNCATED)
        or (not is_clear(reply.finish_reason) and (shape is not None or validate is not None))
    )
    if not is_doubtful:
        require_complete(reply)
    _require_size(reply.text, max_output_kb)
    try:
        text = await _checked(reply.text, shape, validate)
    except LLMError as error:
        if is_doubtful and error.kind is ErrorKind.INVALID_OUTPUT:
            require_complete(reply)
        raise
    if is_doubtful and not _is_whole(reply.text, text, shape, is_json=validate is not None):
        require_complete(reply)
    return storable(text)


async def _checked(
    answer: str, shape: AnswerShape | None, validate: Callable[[str], str] | None
) -> str:
    if shape is not None:
        return await _shaped(shape, answer)
    return await validated(validate, answer) if validate else _plain(answer)


def _is_whole(answer: str, stored: str, shape: AnswerShape | None, *, is_json: bool) -> bool:
    """Say whether an answer that was, or may be, cut off is one all the same.

    ``good`` may be the beginning of the label ``good enough``, and 12 that of 123; only quotes show
    where a text in JSON ends. Of a text without a shape any part is an answer, but not of the
    reasoning before it.
    """
    if shape is not None and shape.choices:
        return not shape.is_beginning(answer)
    if shape is not None and shape.is_bare_text(answer, stored):
        return False
    if shape is not None or is_json:
        return not stored.startswith(_NUMBERS)
    return stored.lstrip()[: len(_REASONING)].lower() != _REASONING


async def rechecked_answer(
    text: str,
    *,
    shape: AnswerShape | None,
    validate: Callable[[str], str] | None,
    max_output_kb: int | None,
) -> str | None:
    """Return a stored answer that is still one; None if it is not.

    Users of the server could have changed it. See ``checked_answer`` for the arguments.
    """
    try:
        _require_size(text, max_output_kb)
        if shape is None and validate is None:
            return storable(text) if text.strip() else None
        return storable(await _checked(text, shape, validate))
    except LLMError:
        return None


class WrongAnswerError(LLMError):
    """An answer that does not have its shape, and what to say to the model."""

    def __init__(self, problem: str, answer: str, reply: str) -> None:
        super().__init__(ErrorKind.INVALID_OUTPUT, problem)
        self.answer = answer
        self.reply = reply


async def _shaped(shape: AnswerShape, answer: str) -> str:
    """Return the stored form of an answer. Raises WrongAnswerError."""
    try:
        if len(answer) <= _CHECKED_AT_ONCE_CHARS:
            return shape.checked(answer)
        return await validated(shape.checked, answer)
    except WrongShapeError as error:
        shown = (
            answer if len(answer) <= _SHOWN_ANSWER_CHARS else answer[:_SHOWN_ANSWER_CHARS] + "..."
        )
        raise WrongAnswerError(str(error), shown, f"That is not valid: {error}.") from None


@cache
def _validation_threads() -> ThreadPoolExecutor:
    # A separate pool: a check that never ends must not occupy threads of other work.
    return ThreadPoolExecutor(_VALIDATION_THREADS, thread_name_prefix="fanout-validate")


async def validated(
    validate: Callable[[str], _T], answer: str, *, limit_s: float = _VALIDATION_LIMIT_S
) -> _T:
    """Return the result of ``validate``, which runs in a thread and must not block other calls.

    Raises:
        LLMError: The answer is invalid, or the check took too long (``invalid_output``).
    """
    loop = asyncio.get_running_loop()
    try:
        with Deadline(limit_s):
            return await loop.run_in_executor(_validation_threads(), validate, answer)
    except TimeoutError:
        raise LLMError(
            ErrorKind.INVALID_OUTPUT, f"the answer could not be checked within {limit_s:g} s"
        ) from None
    except (LLMError, WrongShapeError):
        raise
    except Exception as error:
        message = f"the check of the answer failed: {type(error).__name__}: {error}"
        raise LLMError(ErrorKind.INTERNAL, message) from error


def _require_size(text: str, max_output_kb: int | None) -> None:
    if max_output_kb is None or 4 * len(text) <= 1_000 * max_output_kb:
        return
    size = len(text.encode("utf-8", "replace"))
    if size > 1_000 * max_output_kb:
        raise LLMError(
            ErrorKind.INVALID_OUTPUT,
            f"the answer of {size / 1000:,.0f} kB is larger than FANOUT_MAX_OUTPUT_KB allows "
            f"({max_output_kb:,})",
        )


def storable(text: str) -> str:
    """Return a text with U+FFFD for lone surrogates, which UTF-8 cannot encode; some models send them."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _plain(text: str) -> str:
    """Return a plain text answer without the reasoning of the model before it."""
    plain = without_reasoning(text)
    if not plain.strip():
        where = " behind its reasoning" if text.strip() else ""
        raise LLMError(ErrorKind.INVALID_OUTPUT, f"the answer is empty{where}")
    return plain


def validate_json(text: str) -> str:
    """Return the JSON of an answer without the text around it. Raises LLMError if it has none."""
    try:
        return bare_json(text)
    except ValueError as error:
        reason = f"the answer {quoted(text)} is not JSON: {error}"
        raise LLMError(ErrorKind.INVALID_OUTPUT, reason) from None
