"""The command that prints one branch from end to end: ``show``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.session import (
    EMBEDDED,
    RUN_EPILOG,
    broker_option,
    one_run,
    print_json,
    run_argument,
)
from fanout.core.units import cost_of, count_of, duration, page_range, plural
from fanout.runs.rows import full_row
from fanout.system.terminal import print_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fanout.core.passage_uses import PassageUse
    from fanout.runs.branch_output import Output
    from fanout.runs.branch_trace import BranchTrace, TracedCall
    from fanout.runs.traced_comparisons import TracedComparison

__all__ = ["command"]

_INDENT = "  "


class _Index(click.IntRange):
    """The number of a branch, and not the name of its document."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(
                f"{value!r} is no number from 0: give that of a branch, the `index` of its row, "
                "which `fanout errors` prints first",
                param,
                ctx,
            )
        return number


@click.command("show", epilog=RUN_EPILOG)
@run_argument
@click.argument("index", metavar="INDEX", type=_Index(0))
@broker_option(EMBEDDED)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_id: str, index: int, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Print one branch from end to end: its document, and every prompt and answer with what it took.

    INDEX is the number of the branch, from 0: the `index` of its row. Chunks are counted from 0, too: the
    `position` of the row. Prompts are made anew from the job and the stored input. It prints the contents
    of documents, prompts and answers.
    """
    with one_run(broker_url, run_id) as run:
        trace = run.trace(index)
    if as_json:
        print_json(
            {
                "run_id": run.run_id,
                **full_row(trace.branch),
                **trace.standing,
                **({"standings": trace.standings} if trace.standings else {}),
                "text": trace.branch.text,
                "calls": [call.to_dict() for call in trace.calls],
                "compared": [one.to_dict() for one in trace.compared],
            }
        )
        return
    for line in _lines(run.run_id, trace):
        print_line(line)


def _lines(run_id: str, trace: BranchTrace) -> Iterator[str]:
    branch = trace.branch
    yield f"branch {branch.index} of run {run_id}: {_place(branch)}"
    yield _INDENT + " · ".join(_ending(branch))
    if compared := list(_standing(trace)):
        yield _INDENT + " · ".join(compared)
    for number, call in enumerate(trace.calls, 1):
        yield ""
        yield f"{number}. {' · '.join(_head(call))}"
        yield from _parts(call)
    for one in trace.compared:
        yield ""
        yield " · ".join(_compared(one))
        yield from _part("prompt", one.prompt)
        if one.kind is not None:
            yield from _part("failed", f"{one.kind.value}: {one.message or ''}")
        else:
            yield from _part("reasons", one.reasons)


def _compared(one: TracedComparison) -> Iterator[str]:
    by = f" by reduce {one.reduce}" if one.reduce else ""
    yield f"compared{by} with branch {one.other:,}, round {one.round}"
    yield "seen first" if one.was_first else "seen second"
    yield one.verdict or "no verdict"
    yield plural(one.attempts, "call", "calls")
    yield f"cost {cost_of(one.usage)}"
    yield duration(one.elapsed_s)


def _place(branch: Output[Any]) -> str:
    parts = [branch.document]
    if branch.text is not None:
        parts.append(f"chunk {branch.position}, characters {branch.start:,} to {branch.end:,}")
    if branch.pages:
        parts.append(f"page{'' if len(branch.pages) == 1 else 's'} {page_range(branch.pages)}")
    if branch.headings:
        parts.append(branch.headings)
    if branch.aspect is not None:
        parts.append(f"aspect {branch.aspect}")
    if branch.sample:
        parts.append(f"sample {branch.sample}")
    return ", ".join(parts)


def _ending(branch: Output[Any]) -> Iterator[str]:
    if branch.kind is None:
        yield "succeeded" if not branch.is_rejected else "succeeded, though a judge did not pass it"
    else:
        yield f"failed ({branch.kind.value}): {branch.message or ''}".rstrip(": ")
    yield plural(branch.attempts, "call", "calls")
    yield f"{count_of(branch.usage, 'input_tokens')} tokens in"
    yield f"{count_of(branch.usage, 'output_tokens')} out"
    yield f"cost {cost_of(branch.usage)}"
    yield duration(branch.elapsed_s)
    if branch.votes:
        votes = ", ".join(f"{answer!r} {count}" for answer, count in branch.votes.items())
        yield f"votes: {votes}"


def _standing(trace: BranchTrace) -> Iterator[str]:
    if trace.branch.is_best is not None:
        yield f"best: {'yes' if trace.branch.is_best else 'no'}"
    yield from _found(trace.standing)
    for name, found in trace.standings.items():
        yield f"{name}: {', '.join(_found(found))}"


def _found(standing: Mapping[str, int]) -> Iterator[str]:
    if "rank" in standing:
        yield f"rank {standing['rank']:,}"
    if "wins" in standing:
        of = plural(standing["comparisons"], "comparison", "comparisons")
        yield f"wins {standing['wins']:,} of {of}"


def _head(call: TracedCall) -> Iterator[str]:
    if call.step is not None:
        yield f"step {call.step}"
    if call.judges is not None:
        yield f"judges {call.judges}"
    if call.round > 1:
        yield f"round {call.round}"
    yield call.function or call.model or "?"
    if call.cached:
        yield "from the cache"
    if call.function is None:
        yield plural(call.attempts, "call", "calls")
        yield f"{count_of(call.usage, 'input_tokens')} tokens in"
        yield f"{count_of(call.usage, 'output_tokens')} out"
        yield f"cost {cost_of(call.usage)}"
    yield duration(call.elapsed_s)
    if call.finish_reason:
        yield f"ended by {call.finish_reason}"


def _parts(call: TracedCall) -> Iterator[str]:
    if call.system:
        yield from _part("system", call.system)
    if call.prompt is not None:
        yield from _part("prompt", call.prompt)
    if call.passages is not None:
        yield from _part("passages", "\n".join(map(_passage, call.passages)) or "none was found")
    for answer, reply in call.turns:
        yield from _part("answered", answer)
        if reply:
            yield from _part("told", reply)
    if call.kind is not None:
        yield from _part("failed", f"{call.kind.value}: {call.message or ''}")
    else:
        yield from _part("answer", _text(call.answer))


def _passage(one: PassageUse) -> str:
    """Return where a passage is from, how well it fits, and how much of it the prompt had."""
    place = " > ".join(filter(None, (one.source, one.title)))
    facts = [f"[{one.id}] {place}".rstrip()]
    if one.score is not None:
        facts.append(f"score {one.score:g}")
    if not one.share:
        facts.append("no room for it")
    elif one.share < 1:
        facts.append(f"{100 * one.share:.0f}% of it")
    return ", ".join(facts)


def _text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return json.dumps(answer, ensure_ascii=False, indent=2)


def _part(name: str, text: str) -> Iterator[str]:
    yield f"{_INDENT}{name}:"
    for line in text.splitlines() or [""]:
        yield f"{_INDENT * 2}{line}".rstrip()
