"""The layout of bar charts, which ``templates/chart.svg.j2`` draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.units import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Bar", "Chart", "Drawing", "Tick", "draw", "linear_ticks", "log_ticks", "time_ticks"]

_HEIGHT = 230
_TOP, _RIGHT, _BOTTOM = 26, 14, 40
_MARKER_LINE = 16
_DIGIT_WIDTH = 7.2
_LEAST_LABEL_GAP = 10
# An axis needs two labels to show its scale.
_FEWEST_TICKS = 3
_STEPS = (1, 2, 5)
_TIME_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400, 172_800, 432_000, 864_000, 2_592_000),
)


class Tick(NamedTuple):
    """A mark on an axis: its position and its label."""

    value: float
    label: str


class Bar(NamedTuple):
    """A bar of a chart, between two values of the horizontal axis.

    Attributes:
        values: The parts of its height, from the bottom up; one for each series.
        start: Its lower bound as text; ``end`` is its upper one.
    """

    low: float
    high: float
    values: tuple[int, ...]
    start: str = ""
    end: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A bar chart of counts.

    Attributes:
        bars: From left to right; at least one.
        ticks: Those of the horizontal axis.
        markers: Lines through the chart, such as percentiles.
    """

    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    markers: Sequence[Tick] = ()
    is_log: bool = False

    @property
    def sums(self) -> list[int]:
        """The sum of each series."""
        return [sum(values) for values in zip(*(bar.values for bar in self.bars), strict=True)]

    @property
    def peak(self) -> Bar:
        """The first of the highest bars."""
        return max(self.bars, key=lambda bar: sum(bar.values))


class Rect(NamedTuple):
    """A part of a bar; ``series`` is the index of its series."""

    x: float
    y: float
    width: float
    height: float
    series: int


class Label(NamedTuple):
    """A text and its position."""

    x: float
    y: float
    text: str


class Plot(NamedTuple):
    """The plot area, and the mapping of values to positions in it."""

    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float
    most: float
    is_log: bool

    def x(self, value: float) -> float:
        low, high, here = self.low, self.high, value
        if self.is_log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        share = (here - low) / (high - low) if high > low else 0.5
        return self.left + (self.right - self.left) * min(max(share, 0.0), 1.0)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * value / self.most


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """The layout of a chart, in SVG units; x grows to the right and y down.

    Attributes:
        plot: The edges of the plot; the horizontal axis is its bottom.
        rules: Labels of the vertical axis; each has a line through the plot, 4 units above.
        bars: The bars that are not empty, with their parts.
        tick_labels: As many of the labels of the horizontal axis as fit.
        marker_labels: Markers close to each other share one.
    """

    width: int
    height: int
    plot: Plot
    rules: list[Label]
    bars: list[tuple[Bar, list[Rect]]]
    ticks: list[float]
    tick_labels: list[Label]
    markers: list[float]
    marker_labels: list[Label]


def draw(chart: Chart, width: int) -> Drawing:
    """Return the layout of a chart for an image of a width."""
    y_ticks = linear_ticks(0, max(sum(chart.peak.values), 1), wanted=4, is_whole=True)
    plot = Plot(
        left=_px(10 + _DIGIT_WIDTH * max(len(tick.label) for tick in y_ticks)),
        right=width - _RIGHT,
        top=_TOP + (_MARKER_LINE if chart.markers else 0),
        bottom=_HEIGHT - _BOTTOM,
        low=chart.bars[0].low,
        high=chart.bars[-1].high,
        most=y_ticks[-1].value,
        is_log=chart.is_log,
    )
    return Drawing(
        width=width,
        height=_HEIGHT,
        plot=plot,
        rules=[
            Label(_px(plot.left - 6), _px(plot.y(value) + 4), label) for value, label in y_ticks
        ],
        bars=[(bar, _rects(plot, bar)) for bar in chart.bars if any(bar.values)],
        ticks=[_px(plot.x(tick.value)) for tick in chart.ticks],
        tick_labels=list(_tick_labels(plot, chart.ticks)),
        markers=[_px(plot.x(marker.value)) for marker in chart.markers],
        marker_labels=list(_marker_labels(plot, chart.markers)),
    )


def _rects(plot: Plot, bar: Bar) -> list[Rect]:
    left, right = plot.x(bar.low), plot.x(bar.high)
    # A small gap between bars, if they are wide enough.
    width = max(right - left - min(1.0, (right - left) / 4), 0.5)
    rects, below = [], 0
    for series, value in enumerate(bar.values):
        if value:
            top, bottom = plot.y(below + value), plot.y(below)
            # A bar of one in a hundred thousand stays visible.
            height = max(bottom - top, 1.0)
            y = _px(bottom - height)
            rects.append(Rect(_px(left), y, _px(width), _px(height), series))
        below += value
    return rects


def _tick_labels(plot: Plot, ticks: Sequence[Tick]) -> Iterable[Label]:
    free = -math.inf
    for tick in ticks:
        half = _DIGIT_WIDTH * len(tick.label) / 2
        x = min(plot.x(tick.value), plot.right + _RIGHT - half)
        if x - half >= free:
            yield Label(_px(x), plot.bottom + 17, tick.label)
            free = x + half + _LEAST_LABEL_GAP


def _marker_labels(plot: Plot, markers: Sequence[Tick]) -> Iterable[Label]:
    labels: list[tuple[float, str]] = []
    for marker in markers:
        x, label = plot.x(marker.value), marker.label
        if labels and x - labels[-1][0] < _DIGIT_WIDTH * (len(labels[-1][1]) / 2 + 2.5):
            left, before = labels.pop()
            x, label = (left + x) / 2, f"{before}, {label}"
        labels.append((x, label))
    for x, label in labels:
        half = _DIGIT_WIDTH * len(label) / 2
        yield Label(_px(min(max(x, half), plot.right + _RIGHT - half)), plot.top - 9, label)


def _px(number: float) -> float:
    return round(number, 1)


def linear_ticks(
    low: float, high: float, *, wanted: int, is_whole: bool = False, label_of: str = ",.10g"
) -> list[Tick]:
    """Return ticks at round numbers, the last one at or above ``high``."""
    rough = max((high - low) / wanted, 1e-12)
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (*_STEPS, 10) if step * power >= rough * 0.999)
    step = max(step, 1.0) if is_whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [Tick(n * step, format(n * step, label_of)) for n in range(first, last + 1)]


def log_ticks(low_s: float, high_s: float) -> list[Tick]:
    """Return ticks of durations on a logarithmic axis: at 1, 2 and 5 of each power of ten."""
    powers = range(math.floor(math.log10(low_s)), math.ceil(math.log10(high_s)) + 1)
    values = [step * 10.0**power for power in powers for step in _STEPS]
    within = [value for value in values if low_s <= value <= high_s]
    if len(within) < _FEWEST_TICKS:
        # On so short an axis, evenly spaced ticks are good enough.
        linear = linear_ticks(low_s, high_s, wanted=4)
        within = [tick.value for tick in linear if low_s <= tick.value <= high_s]
    return [Tick(value, duration(value)) for value in within]


def time_ticks(low_s: float, high_s: float, *, wanted: int = 5) -> list[Tick]:
    """Return ticks of a clock that runs from the submission: at round seconds, minutes, hours."""
    rough = (high_s - low_s) / wanted
    if rough < 1:
        values = [tick.value for tick in linear_ticks(low_s, high_s, wanted=wanted)]
    else:
        step = next((step for step in _TIME_STEPS_S if step >= rough), math.ceil(rough))
        first, last = math.ceil(low_s / step), math.floor(high_s / step)
        values = [number * step for number in range(first, last + 1)]
    return [Tick(value, _clock(value)) for value in values if low_s <= value <= high_s]


def _clock(seconds: float) -> str:
    return f"-{duration(-seconds)}" if seconds < 0 else duration(seconds) if seconds else "0"
