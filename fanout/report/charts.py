"""Bar charts as SVG, drawn on the server: pure functions, no script, no library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout.report.markup import Markup, fragment, tag
from fanout.words import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Bar", "Chart", "Tick", "draw", "linear_ticks", "log_ticks", "meter", "time_ticks"]

_HEIGHT = 230
_TOP, _RIGHT, _BOTTOM = 26, 14, 40
_MARKER_LINE = 16
_DIGIT_WIDTH = 7.2
_LEAST_LABEL_GAP = 10
# Two labels of an axis say what its scale is; one does not.
_FEWEST_TICKS = 3
_STEPS = (1, 2, 5)
_TIME_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400, 172_800, 432_000, 864_000, 2_592_000),
)


class Tick(NamedTuple):
    """A mark on an axis: where it is, and what stands there."""

    value: float
    label: str


class Bar(NamedTuple):
    """A bar of a chart.

    Attributes:
        low: Where it begins on the horizontal axis.
        high: Where it ends.
        values: The parts of its height, from the bottom up; one for each series.
        label: What it says when it is pointed at.
    """

    low: float
    high: float
    values: tuple[int, ...]
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A bar chart of counts.

    Attributes:
        name: What its elements are called in the page.
        title: What it shows, for who does not see it.
        description: What it comes to, for the same.
        y_label: What is counted.
        x_label: The horizontal axis, with its unit.
        series: The class of each part of a bar.
        bars: From left to right.
        ticks: Of the horizontal axis.
        markers: Lines through the chart, such as percentiles.
        is_log: Whether the horizontal axis is logarithmic.
    """

    name: str
    title: str
    description: str
    y_label: str
    x_label: str
    series: tuple[str, ...]
    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    markers: Sequence[Tick] = ()
    is_log: bool = False


class _Frame(NamedTuple):
    """Where things are on the paper."""

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


def draw(chart: Chart, width: int) -> Markup:
    """Return a chart as SVG of a width, in units of its own text; it scales to its place."""
    most = max((sum(bar.values) for bar in chart.bars), default=0)
    y_ticks = linear_ticks(0, max(most, 1), wanted=4, is_whole=True)
    left = 10 + _DIGIT_WIDTH * max(len(tick.label) for tick in y_ticks)
    frame = _Frame(
        left=left,
        right=width - _RIGHT,
        top=_TOP + (_MARKER_LINE if chart.markers else 0),
        bottom=_HEIGHT - _BOTTOM,
        low=min(bar.low for bar in chart.bars),
        high=max(bar.high for bar in chart.bars),
        most=y_ticks[-1].value,
        is_log=chart.is_log,
    )
    name = f"{chart.name}-{width}"
    return tag(
        "svg",
        tag("title", chart.title, id=f"{name}-title"),
        tag("desc", chart.description, id=f"{name}-desc"),
        *_y_axis(frame, y_ticks, chart.y_label),
        *(_bar(frame, bar, chart.series) for bar in chart.bars),
        *_markers(frame, chart.markers),
        *_x_axis(frame, chart.ticks, chart.x_label),
        viewBox=f"0 0 {width} {_HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _y_axis(frame: _Frame, ticks: Sequence[Tick], label: str) -> Iterable[Markup]:
    yield tag("text", label, x=0, y=12, class_="axis")
    for tick in ticks:
        y = _px(frame.y(tick.value))
        yield tag("line", x1=_px(frame.left), x2=_px(frame.right), y1=y, y2=y, class_="rule")
        yield tag("text", tick.label, x=_px(frame.left - 6), y=_px(y + 4), text_anchor="end")


def _x_axis(frame: _Frame, ticks: Sequence[Tick], label: str) -> Iterable[Markup]:
    bottom, free = frame.bottom, -math.inf
    yield tag("line", x1=_px(frame.left), x2=_px(frame.right), y1=bottom, y2=bottom, class_="base")
    for tick in ticks:
        x, half = frame.x(tick.value), _DIGIT_WIDTH * len(tick.label) / 2
        x_text = min(x, frame.right + _RIGHT - half)
        yield tag("line", x1=_px(x), x2=_px(x), y1=bottom, y2=bottom + 4, class_="base")
        if x_text - half >= free:
            yield tag("text", tick.label, x=_px(x_text), y=bottom + 17, text_anchor="middle")
            free = x_text + half + _LEAST_LABEL_GAP
    x = _px(frame.right + _RIGHT)
    yield tag("text", label, x=x, y=_HEIGHT - 6, text_anchor="end", class_="axis")


def _bar(frame: _Frame, bar: Bar, series: tuple[str, ...]) -> Markup | None:
    if not any(bar.values):
        return None
    left, right = frame.x(bar.low), frame.x(bar.high)
    # A little air between bars, as long as they are wide enough to bear it.
    width = max(right - left - min(1.0, (right - left) / 4), 0.5)
    parts, below = [], 0
    for value, class_ in zip(bar.values, series, strict=True):
        if value:
            top, bottom = frame.y(below + value), frame.y(below)
            # One in a hundred thousand is still to be seen.
            height = max(bottom - top, 1.0)
            parts.append(
                tag(
                    "rect",
                    x=_px(left),
                    y=_px(bottom - height),
                    width=_px(width),
                    height=_px(height),
                    class_=class_,
                )
            )
        below += value
    return tag("g", tag("title", bar.label), *parts)


def _markers(frame: _Frame, markers: Sequence[Tick]) -> Iterable[Markup]:
    labels: list[tuple[float, str]] = []
    for marker in markers:
        x, label = frame.x(marker.value), marker.label
        yield tag(
            "line", x1=_px(x), x2=_px(x), y1=frame.top - 6, y2=frame.bottom, class_="marker"
        )  # fmt: skip
        # Two that are too close to be told apart share a label.
        if labels and x - labels[-1][0] < _DIGIT_WIDTH * (len(labels[-1][1]) / 2 + 2.5):
            left, before = labels.pop()
            x, label = (left + x) / 2, f"{before}, {label}"
        labels.append((x, label))
    for x, label in labels:
        half = _DIGIT_WIDTH * len(label) / 2
        x_text = min(max(x, half), frame.right + _RIGHT - half)
        y = frame.top - 9
        yield tag("text", label, x=_px(x_text), y=y, text_anchor="middle", class_="mark")


def _px(number: float) -> float:
    return round(number, 1)


def meter(parts: Sequence[tuple[int, str]], whole: int, *, label: str | None = None) -> Markup:
    """Return a flat bar whose parts are shares of a whole, each with its class.

    It is for who sees: what it says also stands beside it, unless it has a label.
    """
    drawn, at = [], 0.0
    for value, class_ in parts:
        width = 100 * value / whole if whole else 0.0
        if value:
            drawn.append(tag("rect", x=f"{at:.3f}%", width=f"{width:.3f}%", y=0, height="100%",
                             class_=class_))  # fmt: skip
        at += width
    hidden = {"aria_hidden": "true"} if label is None else {"role": "img", "aria_label": label}
    return tag("svg", fragment(*drawn), class_="meter", **hidden)


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
        # The axis is short: it does not matter that it is not a straight one.
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
