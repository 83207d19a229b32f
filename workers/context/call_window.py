"""A worker process's part of the calls to one model that its fleet may have in flight at once."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from functools import partial
from typing import TYPE_CHECKING

from fanout.core.records import ErrorKind
from fanout.policy.adaptive import WindowReport, are_alone, shares
from workers.context.fair_line import ANYBODY, FairLine
from workers.context.pacing import ask_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.errors import LLMError
    from fanout.policy.adaptive import CallWindow
    from fanout.stores import RedisStore
    from workers.context.fair_line import Turn

__all__ = ["CallPlaces", "plainly"]

# Seconds between two reports to the server while the fleet has a window.
_REPORT_S = 0.5
# A call that takes more than this share of its timeout is slow.
_SLOW_SHARE = 0.5
# The weight of the latest call in moving means, and the share of failed calls that shows a limit where
# the calls keep to told ones.
_ALPHA = 0.04
_MANY = 0.05
_MARGIN = 1e-9
# Seconds without a success, and without twice the time of a call, after which a provider does not answer.
_QUIET_S = 2.0
# Refusals without a success among them that are too many to be random.
_ROW = 8

_log = logging.getLogger(__name__)


async def plainly(awaited: Awaitable[None]) -> None:
    """Await something."""
    await awaited


class CallPlaces:
    """Counts the calls to a model in flight, and holds them back while the fleet has a window.

    Without a window a call costs a few additions.

    Args:
        store: The fleet's windows; called in threads, as it blocks.
        model: The model.
        clock: Monotonic seconds.
        until: Awaits something as a call that waits.

    Attributes:
        in_flight: The calls of this process.
        share: How many may be in flight; None while the fleet has no window.
        pace: The calls a minute of the fleet, if its provider has a quota that it does not tell.
    """

    def __init__(
        self,
        store: RedisStore,
        model: str,
        *,
        clock: Callable[[], float],
        until: Callable[[Awaitable[None]], Awaitable[None]],
    ) -> None:
        self._store = store
        self._model = model
        # The name of this process among those of the fleet.
        self._process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._clock = clock
        self._until = until
        self.in_flight = 0
        self.share: int | None = None
        self._waiting = FairLine()
        self._keeper: asyncio.Task[None] | None = None
        # Since the last report.
        self._done = 0
        self._busy_s = 0.0
        self._refused = 0
        self._refused_at: float | None = None
        # Whether a single refusal says nothing of other calls; and the refusals since the last success.
        self._has_noise = False
        self._row = 0
        self.pace: float | None = None
        # Moving means: the seconds of a call, how many were in flight when one succeeded, and the shares of
        # calls that were refused or timed out.
        self._call_s: float | None = None
        self._usual = 0.0
        self._succeeded_at = float("-inf")
        self._refused_share = 0.0
        self._timed_out_share = 0.0
        self._timeout_s: float | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether the fleet has a window, so that calls may have to wait."""
        return self.share is not None

    @property
    def has_noise(self) -> bool:
        """Whether a refusal says nothing of other calls: some are refused however few there are."""
        return self._has_noise and self._row < _ROW

    def begin(self) -> None:
        """Begin a call at once: the fleet has no window."""
        self.in_flight += 1

    async def enter(self, turn: Turn = ANYBODY) -> None:
        """Wait until a call may begin; the runs take turns."""
        if self.share is not None and (self._waiting or self.in_flight >= self.share):
            future = self._waiting.add(turn)
            try:
                await self._until(future)
            except BaseException:
                if future.done() and not future.cancelled():
                    self.leave()
                else:
                    self._waiting.remove(turn, future)
                raise
            return
        self.in_flight += 1

    def leave(self) -> None:
        """Give the place of a call to the next one."""
        self.in_flight -= 1
        # Without a window none waits.
        if self.share is not None and self._waiting:
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self.share is None or self.in_flight < self.share):
            future = self._waiting.pop()
            if not future.done():
                self.in_flight += 1
                future.set_result(None)

    def succeeded(self, elapsed_s: float, timeout_s: float | None, *, now: float) -> None:
        """Count a call that was answered just now."""
        self._row = 0
        before = self._call_s
        self._call_s = elapsed_s if before is None else before + _ALPHA * (elapsed_s - before)
        # It has just left.
        self._usual += (1.0 if before is None else _ALPHA) * (self.in_flight + 1 - self._usual)
        self._succeeded_at = now
        if self._refused_share or self._timed_out_share:
            self._refused_share *= 1 - _ALPHA
            self._timed_out_share *= 1 - _ALPHA
            if self._refused_share + self._timed_out_share < _MARGIN:
                self._refused_share = self._timed_out_share = 0.0
        if self._keeper is not None:
            self._done += 1
            self._busy_s += elapsed_s
        elif timeout_s is not None and self._call_s > _SLOW_SHARE * timeout_s:
            self._open(timeout_s)

    def failed(
        self, error: LLMError, *, began: float, is_paced: bool, timeout_s: float | None
    ) -> None:
        """Count a call that failed.

        Args:
            error: Why.
            began: When the call began.
            is_paced: Whether the calls keep to rate limits: then a single refusal shows nothing.
            timeout_s: The timeout of the call.
        """
        if error.kind is ErrorKind.RATE_LIMITED:
            self._refused_share += _ALPHA * (1 - self._refused_share)
            self._refused += 1
            self._row += 1
            if not is_paced or self._refused_share > _MANY:
                self._refused_at = max(began, self._refused_at or began)
                self._open(timeout_s)
        elif error.kind is ErrorKind.TIMEOUT and not error.is_own:
            self._timed_out_share += _ALPHA * (1 - self._timed_out_share)
            if self._timed_out_share > _MANY:
                self._open(timeout_s)

    def heard(self) -> None:
        """Take part in a window that another process has opened."""
        self._open(None)

    def _open(self, timeout_s: float | None) -> None:
        if timeout_s is not None:
            self._timeout_s = timeout_s
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        """Report to the server, and keep to this process's part, as long as there is a window."""
        try:
            goes_on = True
            while goes_on:
                goes_on = await self._report()
                await asyncio.sleep(_REPORT_S if goes_on else 0)
        finally:
            self._keeper, self.share = None, None
            self._has_noise, self.pace = False, None
            self._admit()

    async def _report(self) -> bool:
        """Report once; return whether to go on."""
        report, refused_at = self._news(), self._refused_at
        self._done, self._busy_s, self._refused_at = 0, 0.0, None
        self._refused = 0
        is_idle = not (self.in_flight or self._waiting)
        tell = partial(self._store.report_window, self._model, report)
        told = await ask_store(tell, f"cannot tell the fleet how many calls {self._model} has")
        if told is None:
            # The server is away, or others have reported too often: the part of before holds, and the
            # next report has what this one had.
            self._tell_again(report, refused_at)
            return not is_idle
        window, now = told
        before, self.share = self.share, self._part(window, now)
        self._has_noise = window is not None and are_alone(window)
        self.pace = None if window is None else window.quota.pace
        if (before is None) != (self.share is None):
            _log.warning(
                "calls to %s in flight: %s",
                self._model,
                "any number" if self.share is None else "as many as it takes without refusals",
            )
        self._admit()
        return window is not None and window.size is not None and not is_idle

    def _tell_again(self, lost: WindowReport, refused_at: float | None) -> None:
        self._done += lost.done
        self._busy_s += lost.busy_s
        self._refused += lost.refused
        if self._refused_at is None:
            self._refused_at = refused_at

    def _news(self) -> WindowReport:
        slow_s = None
        if self._timeout_s is not None:
            is_slow = (self._call_s or 0.0) > _SLOW_SHARE * self._timeout_s
            if is_slow or self._timed_out_share > _MANY:
                slow_s = max(self._call_s or 0.0, _SLOW_SHARE * self._timeout_s)
        return WindowReport(
            process=self._process,
            in_flight=self.in_flight,
            waiting=len(self._waiting),
            done=self._done,
            busy_s=self._busy_s,
            refused=self._refused,
            refused_age_s=(
                None if self._refused_at is None else max(0.0, self._clock() - self._refused_at)
            ),
            slow_s=slow_s,
            usual=0.0 if self._has_answers else self._usual,
        )

    @property
    def _has_answers(self) -> bool:
        """Whether calls have succeeded lately."""
        patience_s = max(_QUIET_S, 2 * (self._call_s or 0.0))
        return self._clock() - self._succeeded_at <= patience_s

    def _part(self, window: CallWindow | None, now: float) -> int | None:
        parts = None if window is None else shares(window, now=now)
        return None if parts is None else parts.get(self._process, 0)

    async def aclose(self) -> None:
        """Stop reporting; the loop is about to end."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
