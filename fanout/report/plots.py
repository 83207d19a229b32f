"""The charts of a run: branches over time, and the histogram of their durations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.units import duration
from fanout.report.charts import Bar, Chart, Tick, log_ticks, time_ticks

if TYPE_CHECKING:
    from fanout.report.durations import DurationFigures
    from fanout.report.slices import SliceFigures

__all__ = ["latency", "over_time"]


def over_time(figures: SliceFigures, *series: str) -> Chart | None:
    """Return the chart of some fields over time; None if all values are 0."""
    bars = []
    for one in figures.slices:
        end_s = one.start_s + figures.width_s
        values = tuple(getattr(one, name) for name in series)
        bars.append(Bar(one.start_s, end_s, values, _since_start(one.start_s), _since_start(end_s)))
    if not any(map(any, (bar.values for bar in bars))):
        return None
    return Chart(bars=bars, ticks=time_ticks(bars[0].low, bars[-1].high))


def latency(figures: DurationFigures) -> Chart | None:
    """Return the histogram of the durations of branches; None if none made a call."""
    bins = figures.bins
    if not bins:
        return None
    marks = (("p50", figures.p50_s), ("p90", figures.p90_s), ("p99", figures.p99_s))
    return Chart(
        bars=[
            Bar(one.low_s, one.high_s, (one.succeeded, one.failed), duration(one.low_s),
                duration(one.high_s))
            for one in bins
        ],
        ticks=log_ticks(bins[0].low_s, bins[-1].high_s),
        markers=[Tick(value, name) for name, value in marks if value],
        is_log=True,
    )  # fmt: skip


def _since_start(seconds: float) -> str:
    """Return the time since the submission; it is negative if a worker's clock is slow."""
    return f"-{duration(-seconds)}" if seconds < 0 else duration(round(seconds, 1))
