"""The deadline of a call: like ``asyncio.timeout``, in less than half the time."""

from __future__ import annotations

import asyncio

__all__ = ["Deadline"]


class Deadline:
    """Cancels its ``with`` block after some seconds; can be used once.

    The block then raises TimeoutError. As with ``asyncio.timeout``, any other cancellation of the
    task in the meantime has precedence.
    """

    __slots__ = ("_cancelling", "_handle", "_has_passed", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._has_passed = False

    @property
    def has_passed(self) -> bool:
        """Whether it has passed: a TimeoutError of the block may be another one."""
        return self._has_passed

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a running task")
        self._task = task
        self._cancelling = task.cancelling()
        self._handle = loop.call_later(self._seconds, self._pass)

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        self._handle.cancel()
        # The handle refers back to this object.
        del self._handle
        if not self._has_passed:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _pass(self) -> None:
        self._has_passed = True
        self._task.cancel()
