"""Validates answers in threads, so that the loop of the other calls is not blocked."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VALIDATION_LIMIT_S", "validated"]

# Validating an answer of a megabyte takes a few hundredths of a second.
VALIDATION_LIMIT_S = 30.0
_THREADS = 4


@cache
def _pool() -> ThreadPoolExecutor:
    # A separate pool: a check that never ends must not occupy threads of other work.
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="fanout-validate")


async def validated(
    validate: Callable[[str], str], answer: str, *, limit_s: float = VALIDATION_LIMIT_S
) -> str:
    """Return the result of ``validate`` for an answer.

    Args:
        validate: Returns the answer to keep, or raises LLMError.
        answer: The answer.
        limit_s: The most seconds for ``validate``.

    Raises:
        LLMError: The answer is invalid, or the check took too long (``invalid_output``).
    """
    loop = asyncio.get_running_loop()
    try:
        with Deadline(limit_s):
            return await loop.run_in_executor(_pool(), validate, answer)
    except TimeoutError:
        raise LLMError(
            ErrorKind.INVALID_OUTPUT, f"the answer could not be checked within {limit_s:g} s"
        ) from None
    except LLMError:
        raise
    except Exception as error:
        message = f"the check of the answer failed: {type(error).__name__}: {error}"
        raise LLMError(ErrorKind.INTERNAL, message) from error
