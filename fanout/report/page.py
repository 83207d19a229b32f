"""The page of the report: the values of its templates, and their rendering."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from fanout.core import units as words
from fanout.inputs.documents.urls import shown_input
from fanout.report import text
from fanout.report.answers import aggregates
from fanout.report.charts import Bar, Chart, Tick, draw, log_ticks, time_ticks
from fanout.report.evaluations import estimate, shown_evaluation
from fanout.report.gathering import gather
from fanout.report.settings import answer_settings, input_settings
from fanout.runs.evaluation import Evaluator
from fanout.runs.job_drawing import job_drawing
from fanout.runs.status import kept_notes
from fanout.system.private_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from jinja2 import Environment

    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.report.durations import DurationFigures
    from fanout.report.figures import Figures
    from fanout.report.slices import SliceFigures
    from fanout.runs.branch_output import Output
    from fanout.runs.evaluation_result import Evaluation
    from fanout.runs.result_values import ResultValues
    from fanout.runs.status import Status
    from fanout.runs.stored_aggregate import StoredAggregate
    from fanout.runs.stored_aggregates import StoredAggregates

__all__ = ["Facts", "ReportedRun", "page", "render", "write"]

# Of the calls of aggregates that failed, the page shows so many.
_FAILED_CALLS = 20


class ReportedRun(Protocol):
    """The part of ``fanout.Run`` that the page needs. Its methods raise UnknownRunError."""

    @property
    def spec(self) -> RunSpec:
        """The job of the run."""

    def status(self) -> Status:
        """Return the status of the run."""

    def outcomes(self, *, with_text: bool = False) -> Iterable[Output[Any]]:
        """Yield the branches that have ended, in input order."""

    def stored_aggregate(self) -> StoredAggregate | StoredAggregates:
        """Return its aggregates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All data of the page.

    ``made_at`` is when it was read, in seconds since the epoch; ``evaluation`` is None without labels.
    """

    status: Status
    spec: RunSpec
    figures: Figures
    values: ResultValues
    made_at: float
    evaluation: Evaluation | None = None

    @property
    def total(self) -> int:
        """Branches known so far; an active run may have more than when its status was read."""
        return max(self.status.total, self.figures.done)


def render(run: ReportedRun, *, labels: Mapping[str, str] | None = None) -> str:
    """Return the report of a run as a self-contained page.

    Args:
        run: The run.
        labels: The columns of labels by field of the answer; None takes those of the job.

    Raises:
        UnknownRunError: The run does not exist.
        SpecError: The labels do not fit the answers.
    """
    status, spec = run.status(), run.spec
    if labels is not None:
        spec = spec.model_copy(update={"labels": dict(labels)})
    evaluator = Evaluator(spec) if spec.labels else None
    # As a stream: a run may be larger than the memory.
    branches = run.outcomes(with_text=True)
    if evaluator is not None:
        branches = evaluator.observed(branches)
    figures = gather(branches, created_at=status.created_at, latency=status.latency)
    facts = Facts(
        status=status,
        spec=spec,
        figures=figures,
        values=run.stored_aggregate().values,
        made_at=time.time(),
        evaluation=None if evaluator is None else evaluator.result(),
    )
    return page(facts)


def write(run: ReportedRun, path: Path | str, *, labels: Mapping[str, str] | None = None) -> None:
    """Write the report of a run; it replaces an older file when it is complete.

    Args:
        run: The run.
        path: The file.
        labels: The columns of labels by field of the answer; None takes those of the job.

    Raises:
        UnknownRunError: The run does not exist.
        SpecError: The labels do not fit the answers.
        OSError: The file cannot be written; an older file is unchanged.
    """
    with whole_file(path) as file:
        file.write(render(run, labels=labels))


def _asked(step: StepSpec) -> str:
    """Return the prompt of a step, or what takes its place."""
    criteria = "\n".join(f"- {one}" for one in step.criteria)
    return step.prompt or criteria or step.function or ""


def page(facts: Facts) -> str:
    """Return the page with the data of a run."""
    environment, spec, figures = _environment(), facts.spec, facts.figures
    style = environment.get_template("style.css").render().encode()
    return environment.get_template("page.html.j2").render(
        facts=facts,
        status=facts.status,
        spec=spec,
        input_settings=input_settings(spec),
        answer_settings=answer_settings(spec),
        step_prompts=[(step.name, _asked(step)) for step in spec.steps],
        drawing=job_drawing(spec),
        kept_cut=kept_notes(facts.status),
        figures=figures,
        made=sum(one.exists for _, one in facts.values.aggregates()),
        failed_calls=sum(1 for _ in facts.values.errors()),
        first_failed_calls=list(islice(facts.values.errors(), _FAILED_CALLS)),
        aggregates=aggregates(facts.values, spec.reductions),
        throughput=_over_time(figures.over_time, "succeeded", "failed"),
        tokens=_over_time(figures.over_time, "input_tokens", "output_tokens"),
        latency=_latency(figures.durations),
        evaluation=None if facts.evaluation is None else shown_evaluation(facts.evaluation),
        version=metadata.version("fanout-llm"),
        style_digest=base64.b64encode(hashlib.sha256(style).digest()).decode(),
    )


def _over_time(figures: SliceFigures, *series: str) -> Chart | None:
    """Return the chart of some fields over time; None if all values are 0."""
    bars = []
    for one in figures.slices:
        end_s = one.start_s + figures.width_s
        values = tuple(getattr(one, name) for name in series)
        bars.append(Bar(one.start_s, end_s, values, _since_start(one.start_s), _since_start(end_s)))
    if not any(map(any, (bar.values for bar in bars))):
        return None
    return Chart(bars=bars, ticks=time_ticks(bars[0].low, bars[-1].high))


def _latency(figures: DurationFigures) -> Chart | None:
    """Return the histogram of the durations of branches; None if none made a call."""
    bins = figures.bins
    if not bins:
        return None
    marks = (("p50", figures.p50_s), ("p90", figures.p90_s), ("p99", figures.p99_s))
    return Chart(
        bars=[
            Bar(one.low_s, one.high_s, (one.succeeded, one.failed), words.duration(one.low_s),
                words.duration(one.high_s))
            for one in bins
        ],
        ticks=log_ticks(bins[0].low_s, bins[-1].high_s),
        markers=[Tick(value, name) for name, value in marks if value],
        is_log=True,
    )  # fmt: skip


def _since_start(seconds: float) -> str:
    """Return the time since the submission; it is negative if a worker's clock is slow."""
    return f"-{words.duration(-seconds)}" if seconds < 0 else words.duration(round(seconds, 1))


@cache
def _environment() -> Environment:
    """Return the template environment, which escapes all values."""
    # Commands that render no page need not load jinja2.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cost": words.cost_of,
        "count": "{:,.0f}".format,
        "cut": text.cut,
        "dollars": words.dollars,
        "draw": draw,
        "duration": words.duration,
        "estimate": estimate,
        "line": text.one_line,
        "moment": words.moment,
        "shown_input": shown_input,
        "known": words.known,
        "plural": words.plural,
        "repr": repr,
        "share_of": words.share,
        "tokens": words.count_of,
    }
    return environment


def _shown(value: Any) -> Any:
    """Return a value as a template prints it: text is cleaned, unless it is already escaped."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return text.clean(value) if is_text else value
