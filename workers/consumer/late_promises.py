"""Promises that are made once somebody needs them: see ``LatePromise``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.consumer.consumer import promise

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LatePromise"]


class LatePromise:
    """A promise of vine in what Celery does with the two of each message: to call it, and ``then``.

    They settle the message. Nearly all are those of branches, which the pool settles many at a time
    without them, and a promise of vine is dear to make.

    Args:
        fun: What to call.
        args: The first arguments of the call.
        on_error: Gets the error of the call.
    """

    __slots__ = ("_args", "_fun", "_made", "_on_error")

    def __init__(
        self,
        fun: Callable[..., Any],
        args: tuple[Any, ...],
        on_error: Callable[..., Any] | None = None,
    ) -> None:
        self._fun, self._args, self._on_error = fun, args, on_error
        self._made: Any = None

    def _promise(self) -> Any:
        if self._made is None:
            self._made = promise(self._fun, self._args, on_error=self._on_error)
        return self._made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Settle the message, as a promise of vine does."""
        return self._promise()(*args, **kwargs)

    def then(self, callback: Callable[..., Any], on_error: Callable[..., Any] | None = None) -> Any:
        """Call back once the message is settled."""
        return self._promise().then(callback, on_error=on_error)
