"""The parts of the page below its answer: what failed, what took long, what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.report.charts import meter
from fanout.report.markup import Markup, cut, fragment, one_line, tag
from fanout.report.plots import duration_plot, throughput_plot, token_plot
from fanout.report.tables import table
from fanout.runs import ErrorKind
from fanout.words import duration, plural, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.report.figures import AttemptRow, ErrorRow, Figures, Place, Tally
    from fanout.results import ReduceError
    from fanout.spec import RunSpec

__all__ = [
    "MEANINGS",
    "answers",
    "coverage",
    "errors",
    "question",
    "reduce_errors",
    "section",
    "settings",
    "timing",
]

_REDUCE_ERRORS = 20
_ASPECTS = 50
_PROMPT_CHARS = 20_000
_PROMPTS = 20
_INPUTS = 20
_NAME_CHARS = 200
_MESSAGE_CHARS = 500

MEANINGS = {
    ErrorKind.RATE_LIMITED: "the provider asked to slow down",
    ErrorKind.TIMEOUT: "no complete answer in time",
    ErrorKind.CONNECTION: "the provider could not be reached",
    ErrorKind.SERVER_ERROR: "the provider failed",
    ErrorKind.CONTEXT_LENGTH: "prompt and answer do not fit the context window",
    ErrorKind.CONTENT_FILTER: "the provider refused the content",
    ErrorKind.TRUNCATED: "the answer was cut at its limit of tokens",
    ErrorKind.INVALID_OUTPUT: "the answer is empty, or not of the form asked for",
    ErrorKind.BAD_REQUEST: "the document or the request cannot be used as it is",
    ErrorKind.AUTH: "the provider refused the credentials",
    ErrorKind.BUDGET: "there is no money left",
    ErrorKind.CANCELLED: "the run was stopped before or during the call",
    ErrorKind.TIME_LIMIT: "the task exceeded its hard time limit",
    ErrorKind.WORKER_LOST: "the worker process died",
    ErrorKind.POISONED: "the branch killed its worker again and again",
    ErrorKind.EXPIRED: "the run's deadline passed",
    ErrorKind.LOST: "no trace of the branch was left",
    ErrorKind.INTERNAL: "a fault in fanout or in the caller's own function",
}


def section(name: str, title: str, *content: Markup | None) -> Markup | None:
    """Return a part of the page under its heading; None where there is nothing in it."""
    if not any(content):
        return None
    heading = tag("h2", title, id=name)
    return tag("section", heading, *content, aria_labelledby=name)


def errors(rows: Sequence[ErrorRow], failed: int) -> Markup | None:
    """Return the failed branches by kind, with examples."""
    return section("errors", "What failed", *(_error(row, failed) for row in rows))


def _error(row: ErrorRow, failed: int) -> Markup:
    heading = tag("h3", tag("code", row.kind.value), " ", tag("small", MEANINGS[row.kind]))
    said = f"{plural(row.count, 'branch', 'branches')}, {share(row.count, failed)} of the failed"
    examples = [
        (_name(example.branch), tag("bdi", example.message or "(no message)"),
         f"{example.branch.attempts:,}")
        for example in row.examples
    ]  # fmt: skip
    heads = ("Branch, for example", "Message", "Calls")
    rows = table(f"Examples of {row.kind.value}", heads, examples, numbers=(2,))
    bar = meter([(row.count, "bad")], failed)
    return tag("div", heading, tag("p", said), bar, rows, class_="kind")


def reduce_errors(failures: Sequence[ReduceError]) -> Markup | None:
    """Return the calls of the aggregate that failed."""
    rows = [
        (tag("bdi", one_line(one.group, _NAME_CHARS)), tag("code", one.kind.value),
         tag("bdi", one_line(one.message, _MESSAGE_CHARS)), f"{one.attempts:,}")
        for one in failures[:_REDUCE_ERRORS]
    ]  # fmt: skip
    if not rows:
        return None
    count = plural(len(failures), "call of the aggregate failed.", "calls of the aggregate failed.")
    heads = ("Group", "Kind", "Message", "Calls")
    shown = table("Failed calls of the aggregate", heads, rows, numbers=(3,))
    return section("reduce-errors", "The aggregate is not whole", tag("p", count), shown)


def timing(figures: Figures) -> Markup | None:
    """Return the charts, the retries, and the slowest branches."""
    plots = [
        throughput_plot(figures.over_time),
        duration_plot(figures.durations),
        token_plot(figures.over_time),
        _attempts(figures.attempts) if figures.done else None,
    ]
    grid = tag("div", *plots, class_="grid") if any(plots) else None
    return section("timing", "How it went", grid, _slowest(figures.slowest))


def _attempts(rows: Sequence[AttemptRow]) -> Markup:
    most = max(row.succeeded + row.failed for row in rows)
    cells = [
        ("none" if not row.attempts else f"{row.attempts:,}", f"{row.succeeded:,}",
         f"{row.failed:,}", meter([(row.succeeded, "ok"), (row.failed, "bad")], most))
        for row in rows
    ]  # fmt: skip
    heads = ("Calls", "Succeeded", "Failed", "")
    note = tag("p", "More than one: the branch was tried again.", class_="faint")
    caption = tag("figcaption", tag("h3", "Calls that a branch needed"), note)
    shown = table("Branches by calls", heads, cells, numbers=(0, 1, 2))
    return tag("figure", caption, shown)


def _slowest(places: Sequence[Place]) -> Markup | None:
    if not places:
        return None
    rows = [
        (_name(place), duration(place.elapsed_s), f"{place.attempts:,}",
         tag("code", place.kind.value) if place.kind else "succeeded")
        for place in places
    ]  # fmt: skip
    title = "The slowest branch" if len(rows) == 1 else f"The {len(rows)} slowest branches"
    heads = ("Branch", "Took", "Calls", "Ended")
    return tag("div", tag("h3", title), table(title, heads, rows, numbers=(1, 2)))


def coverage(figures: Figures) -> Markup | None:
    """Return what became of the aspects, and of the documents that are not complete."""
    documents = figures.documents
    count = documents.complete + documents.partial + documents.failed
    if not figures.aspects and (not count or documents.complete == count):
        return None
    aspects = None
    if figures.aspects:
        shown = _tallies("Aspect", figures.aspects[:_ASPECTS])
        more = len(figures.aspects) - _ASPECTS
        left_out = tag("p", f"{more:,} more are not shown.", class_="faint") if more > 0 else None
        aspects = fragment(tag("h3", "By aspect"), shown, left_out)
    said = (
        f"{documents.complete:,} of {plural(count, 'document', 'documents')} have all their "
        f"outputs, {documents.partial:,} some of them, {documents.failed:,} none."
    )
    worst = fragment(
        tag("h3", "By document"),
        tag("p", said),
        _tallies("Document", documents.worst) if documents.worst else None,
    )
    return section("coverage", "What is covered", aspects, worst)


def _tallies(name: str, tallies: Sequence[Tally]) -> Markup:
    most = max(one.succeeded + one.failed for one in tallies)
    rows = [
        (tag("bdi", one_line(one.name, _NAME_CHARS)), f"{one.succeeded:,}", f"{one.failed:,}",
         share(one.succeeded, one.succeeded + one.failed),
         meter([(one.succeeded, "ok"), (one.failed, "bad")], most))
        for one in tallies
    ]  # fmt: skip
    heads = (name, "Succeeded", "Failed", "Covered", "")
    return table(f"Coverage by {name.lower()}", heads, rows, numbers=(1, 2, 3))


def answers(figures: Figures) -> Markup | None:
    """Return some of the answers, from all over the run."""
    if not figures.answers:
        return None
    of = len(figures.answers), figures.succeeded
    said = "All of them." if of[0] == of[1] else f"{of[0]:,} of {of[1]:,}, evenly spread."
    rows = [
        (fragment(_name(one.branch), tag("div", tag("bdi", one.text or ""))),
         tag("bdi", one.output))
        for one in figures.answers
    ]  # fmt: skip
    shown = table("Some of the answers", ("Text", "Answer"), rows)
    return section("answers", "Some of the answers", tag("p", said, class_="faint"), shown)


def _name(place: Place) -> Markup:
    """Return which branch it is: its document, aspect and sample, and its index."""
    more = [one_line(place.aspect, _NAME_CHARS)] if place.aspect is not None else []
    more += [f"sample {place.sample + 1}"] if place.sample else []
    where = tag("bdi", " · ".join([place.document, *more]))
    return fragment(where, " ", tag("small", f"#{place.index:,}", class_="faint"))


def question(spec: RunSpec) -> Markup | None:
    """Return what was asked: the prompts, which the rest of the page answers."""
    templates = [
        (f"Prompt {one_line(name, _NAME_CHARS)}" if name is not None else "Prompt", text)
        for name, text in spec.prompts.items()
    ]
    more = len(templates) - _PROMPTS
    shown = [("System prompt", spec.system), *templates[:_PROMPTS]]
    shown.append(("Aggregate prompt", spec.aggregate_prompt))
    room = _PROMPT_CHARS // max(1, len(shown) // 2)
    prompts = [
        tag("div", tag("h3", tag("bdi", name)), tag("pre", cut(text, room), tabindex=0))
        for name, text in shown
        if text
    ]
    if more > 0:
        prompts.append(tag("p", f"{more:,} more prompts are not shown.", class_="faint"))
    return section("question", "What was asked", *prompts)


def settings(spec: RunSpec) -> Markup | None:
    """Return how the run was to be done."""
    rows = [pair for name, value in _settings(spec) for pair in _row(name, value)]
    return section("settings", "Settings", tag("dl", *rows, class_="settings"))


def _row(name: str, value: str) -> tuple[Markup, Markup]:
    return tag("dt", name), tag("dd", tag("bdi", value))


def _settings(spec: RunSpec) -> list[tuple[str, str]]:
    """Return what was set, and what matters although it was not."""
    sampling = {
        "temperature": spec.temperature, "max_tokens": spec.max_tokens, "seed": spec.seed,
        "stop": ", ".join(map(repr, spec.stop)) or None, "aggregate_max_tokens":
        spec.aggregate_max_tokens, "context_tokens": spec.context_tokens,
    }  # fmt: skip
    return [
        ("model", one_line(spec.model, _NAME_CHARS)),
        *([("inputs", _inputs(spec.inputs))] if spec.inputs else []),
        ("split", _split(spec)),
        *([("samples", f"{spec.samples:,} of each prompt")] if spec.samples > 1 else []),
        ("reduce", spec.reduction),
        *([("group_by", one_line(spec.group_by, _NAME_CHARS))] if spec.group_by else []),
        ("policy", _policy(spec)),
        ("output_format", spec.output_format),
        ("max_workers", f"{spec.max_workers:,}" if spec.max_workers else "no cap"),
        ("timeout_s", f"{spec.timeout_s:g} for one call"),
        ("retries", _retries(spec)),
        *([("deadline_s", f"{spec.deadline_s:g}")] if spec.deadline_s else []),
        *((name, one_line(str(value), _NAME_CHARS)) for name, value in sampling.items()
          if value is not None),
    ]  # fmt: skip


def _inputs(inputs: Sequence[str]) -> str:
    more = len(inputs) - _INPUTS
    names = ", ".join(one_line(name, _NAME_CHARS) for name in inputs[:_INPUTS])
    return f"{names} and {more:,} more" if more > 0 else names


def _split(spec: RunSpec) -> str:
    if spec.split in {"none", "lines"}:
        return spec.split
    overlap = f", {spec.chunk_overlap_tokens:,} shared" if spec.chunk_overlap_tokens else ""
    return f"{spec.split}, chunks of up to {spec.chunk_tokens:,} tokens{overlap}"


def _policy(spec: RunSpec) -> str:
    if not spec.min_success:
        return "any branch that succeeds is enough"
    return f"at least {spec.min_success:.4%} must succeed".replace(".0000", "")


def _retries(spec: RunSpec) -> str:
    retries = spec.retries
    return (
        f"up to {plural(retries.max_attempts, 'call', 'calls')} a branch, "
        f"within {retries.max_elapsed_s:g} s"
    )
