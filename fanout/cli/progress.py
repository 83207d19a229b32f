"""The progress of a run on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, TextIO

from fanout.cli.run_facts import lane_text, more_parts, token_counts, wait_hint
from fanout.cli.speed import Meter, Speed, eta_s
from fanout.core.queue_names import NO_CONSUMER
from fanout.core.records import RunStatus
from fanout.core.units import clock, cost_of, duration, percent, plain, plural
from fanout.runs.savings import saved_parts
from fanout.runs.status import failed_call_parts, kept_notes
from fanout.system.terminal import can_draw, notebook_shell, write_line

if TYPE_CHECKING:
    from fanout.cli.console import LiveFrame
    from fanout.cli.notebook import NotebookFrame
    from fanout.core.rate_limits import LimitState
    from fanout.runs.status import Status

__all__ = ["Follower", "Progress", "RunnerProgress", "summary"]

_LIVE_S = 0.2
_PLAIN_S = 10.0


class Follower:
    """Shows the progress of a run; by default it shows nothing."""

    def show(self, status: Status) -> None:
        """Show the status, unless one was shown a moment ago and the run goes on."""

    def away(self) -> None:
        """Say that the server does not answer."""

    def refused(self, problem: str | None) -> None:
        """Say why the server refuses the records of a run; None: it accepts them again."""

    def held(self, model: str, limit: LimitState | None) -> None:
        """Say that the calls of a run wait for their model; None: they go on."""

    def unended(self, why: str) -> None:
        """Say why nobody waits any longer for the end of a run that was stopped."""

    def close(self) -> None:
        """Stop drawing, before the caller prints how the run ended."""


class Progress(Follower):
    """Shows the status of a run as it changes.

    Args:
        stream: The stream to write to; None is standard error.
        is_quiet: Write nothing.
        is_plain: Draw no bar, also on a terminal: other lines are printed there.
        plain_s: Least time between two lines where there is no terminal.
        idle: The hint to print while work is left and no worker does it; empty prints none.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        is_quiet: bool = False,
        is_plain: bool = False,
        plain_s: float = _PLAIN_S,
        idle: str = NO_CONSUMER,
    ) -> None:
        self._idle = idle
        self._stream = stream or sys.stderr
        self._is_quiet = is_quiet
        # Of a notebook, only its cells: a command that one of them starts has no kernel.
        self._notebook = notebook_shell() if stream is None else None
        self._is_live = self._notebook is not None or (can_draw(self._stream) and not is_plain)
        self._frame: LiveFrame | NotebookFrame | None = None
        self._plain_s = plain_s
        self._shown_at = float("-inf")
        self._shown: tuple[object, object] | None = None
        self._meter = Meter()
        self._speed = Speed()
        self._is_away = False
        self._refusal: str | None = None
        self._is_held = False
        self._notice: str | None = None

    def load(self) -> None:
        """Load what draws, if there is something to draw on: that takes a tenth of a second."""
        if self._is_live and not self._is_quiet:
            for module in ("views", "console" if self._notebook is None else "notebook"):
                import_module(f"fanout.cli.{module}")

    def note(self, text: str, *, is_needed: bool = False) -> None:
        """Write a line that stays; ``is_needed``: even if the user asked for no progress."""
        if is_needed or not self._is_quiet:
            self._write(text)

    def warn(self, text: str) -> None:
        """Write a line that stays, even if the user asked for no progress."""
        self._write(f"fanout: warning: {text}")

    def _write(self, text: str) -> None:
        if self._frame is None:
            write_line(self._stream, text)
        else:
            self._frame.print(text)

    def show(self, status: Status) -> None:
        """Show the status, unless it was shown a moment ago."""
        if self._is_away:
            self._is_away = False
            self.note("the broker answers again")
        if status.notice is not None and status.notice != self._notice:
            self.warn(status.notice)
            self._notice = status.notice
        now = time.monotonic()
        self._speed = self._meter.see(status.done, status.usage, now=now)
        if self._is_quiet or not self._is_due(status, now):
            return
        self._shown_at, self._shown = now, self._marks(status)
        if self._is_live:
            self._draw(status)
        else:
            write_line(self._stream, self.line(status))

    def _draw(self, status: Status) -> None:
        from fanout.cli.views import progress_view

        if self._frame is None:
            self._frame = self._new_frame()
        parts = [status.status.value, *self._parts(status)]
        width = self._frame.width
        self._frame.draw(progress_view(status, parts, self.hint(status), width=width))

    def _new_frame(self) -> LiveFrame | NotebookFrame:
        if self._notebook is not None:
            from fanout.cli.notebook import NotebookFrame

            return NotebookFrame(self._notebook)
        from fanout.cli.console import LiveFrame

        return LiveFrame(self._stream, is_transient=True)

    def _is_due(self, status: Status, now: float) -> bool:
        if self._is_live:
            return now - self._shown_at >= _LIVE_S
        marks = self._marks(status)
        has_moved = self._shown is None or marks[0] != self._shown[0]
        return has_moved or (marks != self._shown and now - self._shown_at >= self._plain_s)

    def _marks(self, status: Status) -> tuple[object, object]:
        """Return what shows at once when it changes, and what shows now and then."""
        batches = [(one.number, one.state, one.answered, one.problem) for one in status.batches]
        return (status.status.value, wait_hint(status), status.slowed), (
            status.done,
            status.gathered,
            batches,
        )

    def away(self) -> None:
        """Say once that the server does not answer."""
        if self._is_away or self._is_quiet:
            return
        self._is_away = True
        self.note("the broker does not answer; the run goes on, and so does the waiting")

    def refused(self, problem: str | None) -> None:
        """Say once why the server refuses the records of the run."""
        if problem is not None and problem != self._refusal:
            self.warn(f"{problem}; the run waits for it")
        elif problem is None and self._refusal is not None:
            self.note("the broker takes what is written again")
        self._refusal = problem

    def held(self, model: str, limit: LimitState | None) -> None:
        """Say once that the calls of the run wait for their model."""
        is_held = limit is not None and limit.blocked_s > 0
        if limit is not None and is_held and not self._is_held:
            asks = f"asks to wait {clock(limit.blocked_s)}"
            fails = f"fails for everybody since {clock(limit.down_s or 0.0)}"
            self.note(f"{model} {asks if limit.down_s is None else fails}: all its calls wait")
        elif limit is None and self._is_held:
            self.note(f"{model} answers again")
        self._is_held = is_held

    def unended(self, why: str) -> None:
        """Say why the waiting ends before the run."""
        self.warn(why)

    def close(self) -> None:
        """Remove the bar."""
        if self._frame is not None:
            self._frame.close()
            self._frame = None

    def line(self, status: Status) -> str:
        """Return the status as one line."""
        more = "+" if status.status is RunStatus.ENQUEUING else ""
        # The word `succeeded` beside failures, or beside all branches of a run, would mislead.
        what = "ended" if status.status.has_ended else status.status.value
        parts = [f"{what} {status.done:,}/{status.total:,}{more}"]
        if status.failed:
            parts.append(f"{status.failed:,} failed")
        if status.stage and len(status.stages) > 1:
            reduce = status.stages[-1]
            parts.append(f"reduce {len(status.stages) - 1}: {reduce.done:,}/{reduce.total:,}")
        elif len(status.stages) > 1 and not status.status.has_ended:
            begun = status.stages[1:]
            done, total = (sum(getattr(one, name) for one in begun) for name in ("done", "total"))
            parts.append(f"reduce {done:,}/{total:,}+")
        parts += failed_call_parts(status)
        hint = self.hint(status)
        parts += self._parts(status)
        return " · ".join([*parts, *([hint] if hint else [])])

    def _parts(self, status: Status) -> list[str]:
        """Return the speed of a run, its ETA, tokens, cost, lane, batches and limits."""
        parts = [f"{self._speed.calls:,.1f} calls/s"] if self._speed.calls else []
        seconds = eta_s(status, self._speed)
        if seconds is not None:
            parts.append(f"ETA {clock(seconds)}")
        parts += [*_spent(status), *saved_parts(status.saved)]
        return [*parts, *more_parts(status)]

    def hint(self, status: Status) -> str:
        """Return why a run waits, or what to do about it; empty if there is nothing."""
        is_idle = not status.workers and status.done < status.total
        return wait_hint(status) or (self._idle if is_idle else "")


class RunnerProgress:
    """Shows the progress of a run that a Python program waits for, and then how it ended.

    Args:
        is_embedded: Whether the run's worker is this program's own.
    """

    def __init__(self, *, is_embedded: bool) -> None:
        self._progress = Progress(idle="" if is_embedded else NO_CONSUMER)
        self._progress.load()

    def __call__(self, status: Status) -> None:
        """Show the status."""
        self._progress.show(status)
        if status.status.has_ended:
            self._progress.note(summary(status))

    def close(self) -> None:
        """Remove the bar."""
        self._progress.close()


def summary(status: Status) -> str:
    """Return how a run ended, as one line."""
    share = f" ({percent(status.succeeded, status.total)})" if status.total else ""
    parts = [f"{status.succeeded:,} of {plural(status.total, 'branch', 'branches')}{share}"]
    if status.failed:
        kinds = ", ".join(
            f"{kind.value} {count:,}" for kind, count in sorted(status.errors.items())
        )
        parts.append(f"{status.failed:,} failed: {kinds}")
    parts.extend(failed_call_parts(status))
    parts.extend(kept_notes(status))
    calls = plural(status.usage.calls, "call", "calls")
    parts.append(f"{calls} in {duration(status.elapsed_s)}")
    median_s, slow_s = (status.latency.percentile_s(share) for share in (0.5, 0.99))
    if median_s is not None and slow_s is not None:
        parts.append(f"half took {duration(median_s)} at most, 99% {duration(slow_s)}")
    parts.extend(_spent(status))
    parts.extend(saved_parts(status.saved))
    if lane := lane_text(status):
        parts.append(f"lane {lane}")
    if status.budget is not None:
        parts.append(status.budget.words)
    return plain(f"run {status.run_id} {status.status.value}: {' · '.join(parts)}")


def _spent(status: Status) -> list[str]:
    """Return tokens and cost; unknown ones are named for providers only, and 0 is left out."""
    usage = status.usage
    parts = []
    if usage.known("input_tokens") + usage.known("output_tokens") > 0:
        parts.append(token_counts(usage))
    elif status.asks_providers and usage.input_tokens is None and usage.output_tokens is None:
        parts.append("tokens unknown")
    if usage.known("cost_usd"):
        parts.append(cost_of(usage))
    elif status.asks_providers and usage.cost_usd is None:
        parts.append("cost unknown")
    return parts
