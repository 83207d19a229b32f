"""The page: its head, its headline, and the parts below it, in the order of their importance."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING

from fanout.private_files import whole_file
from fanout.report import sections
from fanout.report.answers import aggregates
from fanout.report.charts import meter
from fanout.report.figures import Figures, gather
from fanout.report.markup import Markup, fragment, one_line, tag
from fanout.runs import RunStatus
from fanout.words import (
    dollars,
    duration,
    moment,
    plural,
    share,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.handle import Run
    from fanout.results import Status, StoredResult
    from fanout.spec import RunSpec

__all__ = ["Facts", "facts_of", "page", "render", "write"]

_ERROR_CHARS = 2000
_SHOWN_KINDS = 3
_HUNDRED = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that the page says.

    Attributes:
        status: Where the run is.
        spec: What it was asked to do.
        figures: What its branches came to.
        stored: Its aggregates, and the calls of an aggregate that failed.
        made_at: When all this was looked up, in seconds since the epoch.
    """

    status: Status
    spec: RunSpec
    figures: Figures
    stored: StoredResult
    made_at: float

    @property
    def total(self) -> int:
        """Branches known so far; those of a run that goes on may have become more meanwhile."""
        return max(self.status.total, self.figures.done)


def facts_of(run: Run) -> Facts:
    """Look a run up, reading its branches as a stream. Raises UnknownRunError."""
    status = run.status()
    branches = run.outcomes(with_text=True)
    return Facts(
        status=status,
        spec=run.spec,
        figures=gather(branches, created_at=status.created_at, latency=status.latency),
        stored=run.stored_result(),
        made_at=time.time(),
    )


def render(run: Run) -> str:
    """Return a run as a web page that needs no other file. Raises UnknownRunError."""
    return page(facts_of(run))


def write(run: Run, path: Path | str) -> None:
    """Write a run as a web page; one that was there before is replaced when this one is whole.

    Raises:
        UnknownRunError: There is no such run.
        OSError: The file cannot be written; what was there before is as it was.
    """
    with whole_file(path) as file:
        file.write(render(run))


def page(facts: Facts) -> str:
    """Return the page."""
    status = facts.status
    body = tag(
        "body",
        _header(facts),
        tag("main", sections.question(facts.spec), _tiles(facts), _answer(facts), *_below(facts)),
        _footer(facts),
    )
    title = tag("title", f"Run {status.run_id}: {status.status.value}")
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *_head(), title), body, lang='en')}\n"


def _below(facts: Facts) -> list[Markup | None]:
    figures = facts.figures
    return [
        sections.reduce_errors(facts.stored.errors),
        sections.errors(figures.errors, figures.failed),
        sections.timing(figures),
        sections.coverage(figures),
        sections.answers(figures),
        sections.settings(facts.spec),
    ]


@cache
def _style() -> str:
    return resources.files("fanout.report").joinpath("style.css").read_text(encoding="utf-8")


def _head() -> list[Markup]:
    style = _style()
    # Whatever gets into the page, it loads nothing and runs nothing: only this style is let in.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        # Else browsers ask the server for a favicon.
        tag("link", rel="icon", href="data:,"),
        Markup(f"<style>{style}</style>"),
    ]


def _header(facts: Facts) -> Markup:
    status, figures = facts.status, facts.figures
    error = None
    if status.error:
        error = tag("p", tag("bdi", one_line(status.error, _ERROR_CHARS)), class_="error")
    left = facts.total - figures.done
    parts = [(figures.succeeded, "ok"), (figures.failed, "bad"), (left, "left")]
    return tag(
        "header",
        tag("p", tag("span", status.status.value, class_=f"status {status.status.value}"),
            " ", tag("span", f"Run {status.run_id}"), class_="run"),
        tag("h1", headline(facts)),
        error,
        tag("p", _lead(facts), class_="lead"),
        meter(parts, facts.total, label=_meter_label(facts)),
    )  # fmt: skip


def headline(facts: Facts) -> str:
    """Return what the run came to, in one sentence."""
    figures, status = facts.figures, facts.status
    if not facts.total:
        return "The run has no branches" if status.status.has_ended else "The run has just begun"
    if not status.status.has_ended and figures.done < facts.total:
        more = " or more" if status.status is RunStatus.ENQUEUING else ""
        return (
            f"So far, {figures.done:,} of {facts.total:,}{more} branches "
            f"({share(figures.done, facts.total)}) have ended"
        )
    return (
        f"{figures.succeeded:,} of {plural(facts.total, 'branch', 'branches')} "
        f"({share(figures.succeeded, facts.total)}) succeeded in {duration(status.elapsed_s)}"
    )


def _lead(facts: Facts) -> str:
    status = facts.status
    if not status.status.has_ended:
        return (
            f"The run still goes on: this is what there is after "
            f"{duration(status.elapsed_s)}, and not its end."
        )
    groups = sum(one.value is not None for one in facts.stored.aggregates.values())
    if groups:
        if facts.spec.group_by:
            return f"{plural(groups, 'aggregate', 'aggregates')}, by {facts.spec.group_by}, below."
        return "The aggregate is below."
    if facts.spec.reduction == "none":
        return "The job asked for no aggregate; some of the answers are below."
    return "There is no aggregate."


def _meter_label(facts: Facts) -> str:
    figures = facts.figures
    left = facts.total - figures.done
    return f"{figures.succeeded:,} succeeded, {figures.failed:,} failed, {left:,} not ended"


def _tiles(facts: Facts) -> Markup:
    tiles = [
        *_outcome_tiles(facts),
        *_time_tiles(facts),
        *_usage_tiles(facts),
    ]
    shown = [
        tag("div", tag("dt", name), tag("dd", tag("strong", value), tag("span", note)))
        for name, value, note in tiles
    ]
    return tag("dl", *shown, class_="tiles")


def _outcome_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    figures = facts.figures
    kinds = [f"{row.kind.value} {row.count:,}" for row in figures.errors]
    more = len(kinds) - _SHOWN_KINDS
    said = ", ".join(kinds[:_SHOWN_KINDS]) + (f" and {more} more kinds" if more > 0 else "")
    return [
        ("Succeeded", f"{figures.succeeded:,}", f"{share(figures.succeeded, facts.total)} of all"),
        ("Failed", f"{figures.failed:,}", said or "no branch"),
    ]


def _time_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    status, figures = facts.status, facts.figures
    over_time, took = figures.over_time, figures.durations
    most = max((one.succeeded + one.failed for one in over_time.slices), default=0)
    peak = f"at most {most:,} in {duration(over_time.width_s)}" if most else "none has ended"
    median, tail = "none", "no branch made a call"
    if took.p50_s is not None and took.p90_s is not None and took.p99_s is not None:
        median = duration(took.p50_s)
        tail = f"90 % within {duration(took.p90_s)}, 99 % within {duration(took.p99_s)}"
    return [
        ("Took" if status.status.has_ended else "Time so far", duration(status.elapsed_s),
         f"from {moment(status.created_at)}"),
        (*_rate(figures.done, status.elapsed_s), peak),
        ("Half of the branches took", median, tail),
    ]  # fmt: skip


def _rate(count: int, seconds: float) -> tuple[str, str]:
    a_second = count / seconds if seconds else 0.0
    if 0 < a_second < 1:
        return "Branches a minute", f"{60 * a_second:.3g}"
    # Three digits say enough, and no number is said in powers of ten.
    return "Branches a second", f"{a_second:.3g}" if a_second < _HUNDRED else f"{a_second:,.0f}"


def _usage_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    usage, figures = facts.status.usage, facts.figures
    others = usage.calls - figures.calls
    again = sum((row.attempts - 1) * (row.succeeded + row.failed)
                for row in figures.attempts if row.attempts)  # fmt: skip
    said = [f"{again:,} again, after one that failed"] if again else []
    if others > 0:
        said.append(f"{others:,} by the aggregate, or before a retry of the run")
    note = "; ".join(said) or "none had to be made again"
    return [("Calls", f"{usage.calls:,}", note), _token_tile(facts), _cost_tile(facts)]


def _token_tile(facts: Facts) -> tuple[str, str, str]:
    usage, tokens = facts.status.usage, facts.figures.tokens
    if usage.input_tokens is not None and usage.output_tokens is not None:
        both = f"{usage.input_tokens + usage.output_tokens:,}"
        return "Tokens", both, f"{usage.input_tokens:,} in, {usage.output_tokens:,} out"
    if not tokens.known:
        return "Tokens", "unknown", "no answer came with a count"
    note = (
        f"at least {tokens.input_tokens:,} in, {tokens.output_tokens:,} out: "
        f"{tokens.known:,} of {tokens.answered:,} answers came with a count"
    )
    return "Tokens", "unknown", note


def _cost_tile(facts: Facts) -> tuple[str, str, str]:
    cost_usd, tokens = facts.status.usage.cost_usd, facts.figures.tokens
    if cost_usd is not None:
        return "Cost", dollars(cost_usd), "US dollars"
    if not tokens.priced:
        return "Cost", "unknown", "no price is known"
    note = (
        f"at least {dollars(tokens.cost_usd)}: the price of {tokens.priced:,} of "
        f"{tokens.answered:,} answers is known"
    )
    return "Cost", "unknown", note


def _answer(facts: Facts) -> Markup | None:
    if not facts.stored.aggregates:
        return None
    spec = facts.spec
    shown = aggregates(facts.stored, spec.reduction, is_grouped=spec.group_by is not None)
    return sections.section("aggregate", "The aggregate", shown)


def _footer(facts: Facts) -> Markup:
    version = metadata.version("fanout-llm")
    made = f"Made by fanout {version} on {moment(facts.made_at)}. All times are since the "
    return tag(
        "footer", tag("p", fragment(made, "submission, or in UTC.")),
    )  # fmt: skip
