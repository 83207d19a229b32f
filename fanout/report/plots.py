"""The charts of a run: what ended when, and how long branches took. Each has its figures below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.report.charts import Bar, Chart, Tick, draw, log_ticks, time_ticks
from fanout.report.markup import Markup, fragment, tag
from fanout.report.tables import folded, table
from fanout.words import duration, plural

if TYPE_CHECKING:
    from fanout.report.durations import DurationFigures
    from fanout.report.slices import Slice, SliceFigures

__all__ = ["duration_plot", "throughput_plot", "token_plot"]

# One for screens and paper, one whose text can be read on a phone.
_WIDE, _NARROW = 520, 320
_OUTCOMES = (("ok", "succeeded"), ("bad", "failed"))
_TOKENS = (("in", "tokens in"), ("out", "tokens out"))


def throughput_plot(over_time: SliceFigures) -> Markup | None:
    """Return how many branches ended in each slice of time; None where nobody knows."""
    values = [(one.succeeded, one.failed) for one in over_time.slices]
    if not values:
        return None
    width = duration(over_time.width_s)
    best = max(over_time.slices, key=lambda one: one.succeeded + one.failed)
    note = f"Branches that ended in each {width}."
    if over_time.undated:
        undated = plural(over_time.undated, "branch is", "branches are")
        note += f" {undated} not shown: nobody knows when they ended."
    peak = f"At most {best.succeeded + best.failed:,}, from {_at(best.start_s)} on."
    chart = Chart(
        name="throughput",
        title="Branches over time",
        description=f"{note} {peak}",
        y_label=f"branches in {width}",
        x_label="time since submission",
        series=("ok", "bad"),
        bars=_time_bars(over_time, values, ("succeeded", "failed")),
        ticks=_time_axis(over_time),
    )
    rows = [(_at(one.start_s), f"{one.succeeded:,}", f"{one.failed:,}") for one in over_time.slices]
    figures = table(chart.title, ("From", "Succeeded", "Failed"), rows, numbers=(0, 1, 2))
    return _figure(chart, note, _OUTCOMES, figures)


def token_plot(over_time: SliceFigures) -> Markup | None:
    """Return the tokens over time; None where none are known."""
    values = [(one.input_tokens, one.output_tokens) for one in over_time.slices]
    if not any(map(sum, values)):
        return None
    width = duration(over_time.width_s)
    most = max(map(sum, values))
    note = f"Tokens, as far as known, of the branches that ended in each {width}."
    chart = Chart(
        name="tokens",
        title="Tokens over time",
        description=f"{note} At most {most:,}.",
        y_label=f"tokens in {width}",
        x_label="time since submission",
        series=("in", "out"),
        bars=_time_bars(over_time, values, ("in", "out")),
        ticks=_time_axis(over_time),
    )
    rows = [(_at(one.start_s), f"{one.input_tokens:,}", f"{one.output_tokens:,}")
            for one in over_time.slices]  # fmt: skip
    figures = table(chart.title, ("From", "Tokens in", "Tokens out"), rows, numbers=(0, 1, 2))
    return _figure(chart, note, _TOKENS, figures)


def duration_plot(durations: DurationFigures) -> Markup | None:
    """Return the histogram of how long branches took; None where none made a call."""
    bins = durations.bins
    marks = (("p50", durations.p50_s), ("p90", durations.p90_s), ("p99", durations.p99_s))
    markers = [Tick(value, name) for name, value in marks if value]
    if not bins:
        return None
    said = ", ".join(f"{tick.label} {duration(tick.value)}" for tick in markers)
    chart = Chart(
        name="latency",
        title="How long branches took",
        description=f"Histogram of {durations.count:,} branches: {said}.",
        y_label="branches",
        x_label="from the first call to the end (logarithmic)",
        series=("ok", "bad"),
        bars=[
            Bar(one.low_s, one.high_s, (one.succeeded, one.failed),
                f"{_between(one.low_s, one.high_s)}: {one.succeeded:,} succeeded, "
                f"{one.failed:,} failed")
            for one in bins
        ],
        ticks=log_ticks(bins[0].low_s, bins[-1].high_s),
        markers=markers,
        is_log=True,
    )  # fmt: skip
    rows = [(_between(one.low_s, one.high_s), f"{one.succeeded:,}", f"{one.failed:,}")
            for one in bins]  # fmt: skip
    figures = table(chart.title, ("Took", "Succeeded", "Failed"), rows, numbers=(1, 2))
    note = "Waits and retries included; branches that made no call are left out."
    return _figure(chart, note, _OUTCOMES, fragment(_percentiles(durations), figures))


def _percentiles(durations: DurationFigures) -> Markup:
    named = (
        ("Least", durations.least_s), ("Mean", durations.mean_s), ("Median", durations.p50_s),
        ("90 %", durations.p90_s), ("99 %", durations.p99_s), ("Most", durations.most_s),
    )  # fmt: skip
    cells = [duration(value) for _, value in named if value is not None]
    return table("Percentiles", [name for name, _ in named], [cells], numbers=tuple(range(6)))


def _figure(
    chart: Chart, note: str, legend: tuple[tuple[str, str], ...], figures: Markup
) -> Markup:
    keys = [
        tag("li", tag("span", class_=f"key {class_}"), name)
        for number, (class_, name) in enumerate(legend)
        if any(bar.values[number] for bar in chart.bars)
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", chart.title), tag("p", note, class_="faint")),
        tag("ul", *keys, class_="legend"),
        tag("div", draw(chart, _WIDE), class_="chart wide"),
        tag("div", draw(chart, _NARROW), class_="chart narrow"),
        folded("Figures", figures),
    )


def _time_bars(
    over_time: SliceFigures, values: list[tuple[int, int]], names: tuple[str, str]
) -> list[Bar]:
    def label(one: Slice, pair: tuple[int, int]) -> str:
        said = ", ".join(f"{value:,} {name}" for value, name in zip(pair, names, strict=True))
        return f"{_at(one.start_s)} to {_at(one.start_s + over_time.width_s)}: {said}"

    return [
        Bar(one.start_s, one.start_s + over_time.width_s, pair, label(one, pair))
        for one, pair in zip(over_time.slices, values, strict=True)
    ]


def _time_axis(over_time: SliceFigures) -> list[Tick]:
    slices = over_time.slices
    return time_ticks(slices[0].start_s, slices[-1].start_s + over_time.width_s)


def _at(seconds: float) -> str:
    if seconds < 0:
        return f"-{duration(-seconds)}"
    return duration(round(seconds, 1))


def _between(low_s: float, high_s: float) -> str:
    return f"{duration(low_s)} to {duration(high_s)}"
