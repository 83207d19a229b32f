"""Measures how many answers about many texts are right, by the way in which they are made.

    python benchmarks/reduce_quality.py [--trials 10] [--local 2] [--only local]

Asks for facts that are planted in the texts of examples/, for counts, and for answers that stand in one
text: with a tree, with ``fold: refine``, with one call for all texts (cut at the window, as one does it by
hand), and others. The mock (benchmarks/recall/forgetful.py) forgets what stands in the middle of a long
prompt. ``--local`` puts fewer such questions to the local model. Answers are scored by code. The result is
benchmarks/results/reduce_quality.json; ``--only`` measures one model again, and keeps what is there of the
other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import RESULTS, machine, rounded, save, versions
from recall.forgetful import Forgetful
from recall.questions import (
    QUESTIONS,
    amendments,
    count_task,
    fact_task,
    reviews,
    span_task,
    split_fact_task,
)

from fanout import FakeLLM, ParallelCalls
from fanout.core.tokens import BYTES_PER_TOKEN, estimate_tokens
from fanout.policy.metrics import share_estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from recall.questions import Task
    from recall.scoring import Score

    from fanout import Result

_PACKAGES = ("fanout-llm", "xllamacpp")
_MOCK_WINDOW = 8_192
_LOCAL_WINDOW = 2_048
# As the tree: the rest is for errors of the estimate, and for what a chat adds.
_USED = 0.85
# Characters of the longest text for the local model: ten amendments have no more.
_SHORT = 290
_FACTS, _COUNTS, _QUESTIONS = "facts", "counts", "questions"
_SPLIT = "split facts"
_KINDS = (_FACTS, _SPLIT, _COUNTS, _QUESTIONS)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to make one answer about many texts.

    Attributes:
        name: Its name in the tables.
        fields: The fields of the job.
        kinds: The kinds of questions that it is for; all but those over two paragraphs by default.
        is_whole: Whether one call sees all texts.
        has_shape: Whether the way gives the answers about one text their shape.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = (_FACTS, _COUNTS, _QUESTIONS)
    is_whole: bool = False
    has_shape: bool = False


def ways(window: int, *, has_small: bool) -> list[Way]:
    """Return the ways; those with smaller prompts than fit the window only if ``has_small``."""
    small = window // 4
    shorter = {"context_tokens": small}
    found = [
        Way(name="one call", is_whole=True, kinds=(_FACTS, _COUNTS, _QUESTIONS, _SPLIT)),
        Way(name="`tree`"),
        Way(name="`tree`, short prompts", fields=shorter),
        Way(name="`refine`", fields={"fold": "refine"}),
        Way(name="`refine`, short prompts", fields={"fold": "refine", **shorter}),
        Way(name="`cluster`", fields={"fold": "cluster"}),
        Way(name="`cluster`, short prompts", fields={"fold": "cluster", **shorter}),
        Way(name="`tree`, `sources`", fields={"sources": True}),
        Way(name="`tree`, `fence: false`", fields={"fence": False}),
        Way(
            name="`map_rerank`", fields={"fold": "map_rerank", "max_tokens": 96}, kinds=(_QUESTIONS,),
            has_shape=True,
        ),
        Way(name="`vote`", fields={"reduce": "vote"}, kinds=(_COUNTS,)),
        Way(name="`tree`, paragraphs", fields={"split": "lines"}, kinds=(_SPLIT,)),
        Way(
            name="`tree`, paragraphs, `neighbours`",
            fields={"split": "lines", "neighbours": 1}, kinds=(_SPLIT,),
        ),
    ]  # fmt: skip
    return [way for way in found if has_small or "short" not in way.name]


def mock_tasks(trials: int) -> Iterator[Task]:
    """Yield the questions for the mock: texts that fit its window, and more than do."""
    sentences = [text for text, _ in reviews()]
    for seed in range(trials):
        yield fact_task(amendments(), 20, seed)
        yield fact_task(sentences, 30, seed)
        yield split_fact_task(amendments(), 20, seed)
        yield count_task(200, seed)
    for seed in range((trials + 1) // 2):
        others = random.Random(seed).sample(sentences, 73)  # noqa: S311 - repeatable
        for question in QUESTIONS:
            yield span_task(question, others, seed)


def local_tasks(first: int, trials: int) -> Iterator[Task]:
    """Yield fewer questions over fewer and shorter texts, for the local model, which is slow."""
    short = [text for text in amendments() if len(text) <= _SHORT]
    known = [one for one in QUESTIONS if amendments()[one.number - 1] in short]
    for seed in range(first, first + trials):
        rng = random.Random(seed)  # noqa: S311 - repeatable
        yield from _turned(
            [
                fact_task(rng.sample(short, 4), 3, seed),
                count_task(8, seed),
                span_task(known[seed % len(known)], [], seed, most=4, longest=_SHORT),
                split_fact_task(rng.sample(short, 2), 2, seed),
            ],
            seed,
        )


def _turned(tasks: list[Task], by: int) -> list[Task]:
    """Return tasks in another order for each trial: where time ends, none is always the one left out."""
    at = by % len(tasks)
    return [*tasks[at:], *tasks[:at]]


class Cost:
    """What calls have cost."""

    def __init__(self, calls: int = 0, input_tokens: int = 0, output_tokens: int = 0) -> None:
        self.calls = calls
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens

    @classmethod
    def of(cls, result: Result) -> Cost:
        """Return what the calls of a run have cost."""
        usage = result.usage
        return cls(usage.calls, usage.input_tokens or 0, usage.output_tokens or 0)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


class Asker:
    """Puts questions to a model, each in several ways.

    Args:
        runner: Makes the calls.
        window: The model's context window in tokens.
        fields: Fields of all jobs.
        keeps: Whether answers are kept from run to run, so that the same branches cost nothing again.
    """

    def __init__(
        self, runner: ParallelCalls, window: int, fields: dict[str, Any], *, keeps: bool
    ) -> None:
        self._runner = runner
        self._window = window
        self._fields = {"tokenizer": "bytes/4", "fence": True, **fields, "cache": keeps}
        self._keeps = keeps
        self._paid: dict[tuple[str, ...], Cost] = {}

    def asked(self, task: Task, way: Way) -> tuple[Score, Cost]:
        """Return the score of an answer, and what it costs to make it without what was kept."""
        if way.is_whole:
            return self._whole(task)
        fields = {**self._fields, **({} if way.has_shape else task.fields), **way.fields}
        prompt = task.ask_one
        if "neighbours" in fields:
            prompt = f"{{before}}\n{prompt}"
        kept = self._kept(task, way, prompt, fields)
        if fields.get("fold") != "map_rerank" and fields.get("reduce") != "vote":
            fields["aggregate_prompt"] = task.ask_all
            fields["aggregate_max_tokens"] = task.answer_tokens
        result = self._run(task, way, branch_prompt=prompt, **fields)
        cited = {one.id: one.index for one in result.sources} if way.fields.get("sources") else {}
        return task.score(_text(result.aggregated), cited), Cost.of(result) + kept

    def _kept(self, task: Task, way: Way, prompt: str, fields: dict[str, Any]) -> Cost:
        """Return what the branches of a way cost, whose answers are kept, when they were paid for."""
        if not self._keeps:
            return Cost()
        own = {
            name: value
            for name, value in fields.items()
            if name not in {"fold", "sources", "reduce", "context_tokens"}
        }
        key = (
            prompt,
            *task.texts,
            repr(sorted(own.items(), key=lambda one: one[0])),
            str(way.has_shape),
        )
        if key not in self._paid:
            shape = {"fold": "map_rerank"} if way.has_shape else {"reduce": "none"}
            self._paid[key] = Cost.of(self._run(task, way, branch_prompt=prompt, **own, **shape))
        return self._paid[key]

    def _run(self, task: Task, way: Way, **fields: Any) -> Result:
        if "split" not in way.fields:
            return self._runner.run(list(task.texts), **fields)
        with tempfile.TemporaryDirectory(prefix="fanout-texts-") as folder:
            for number, text in enumerate(task.texts):
                Path(folder, f"{number:03}.txt").write_text(text, encoding="utf-8")
            return self._runner.run(inputs=folder, **fields)

    def _whole(self, task: Task) -> tuple[Score, Cost]:
        """Ask once for all texts, or for as much of them as fits."""
        prompt = task.ask_whole
        room = int(self._window * _USED) - estimate_tokens(prompt) - task.answer_tokens
        texts = "\n".join(task.texts).encode()[: room * BYTES_PER_TOKEN].decode(errors="ignore")
        result = self._runner.run(
            [texts],
            branch_prompt=prompt,
            max_tokens=task.answer_tokens,
            reduce="none",
            **self._fields,
        )
        return task.score(_text(result.outputs[0]), {}), Cost.of(result)


def _text(answer: Any) -> str | None:
    """Return an answer as it is scored."""
    if isinstance(answer, dict) and "votes" in answer:
        return f"{answer['votes'].get('positive', 0)} positive"
    return None if answer is None else str(answer)


def measured(
    asker: Asker, tasks: Iterator[Task], some: list[Way], keep: Callable[[list[Row]], None]
) -> None:
    """Put questions in each way; keep the rows so far after each answer.

    A row is for a kind of question, a number of texts, and a way.
    """
    scores: dict[tuple[str, int, str], list[tuple[Score, Cost]]] = {}
    for task in tasks:
        for way in some:
            if task.kind in way.kinds:
                began = time.perf_counter()
                found = asker.asked(task, way)
                scores.setdefault((task.kind, len(task.texts), way.name), []).append(found)
                took_s = time.perf_counter() - began
                print(task.kind, way.name, found[0], f"{took_s:.1f} s", file=sys.stderr, flush=True)
                keep(_rows(scores))


def _rows(scores: dict[tuple[str, int, str], list[tuple[Score, Cost]]]) -> list[Row]:
    return [
        {"kind": kind, "texts": texts, "way": way, **_figures(all_of, has_ids="sources" in way)}
        for (kind, texts, way), all_of in sorted(
            scores.items(), key=lambda one: (_KINDS.index(one[0][0]), one[0][1])
        )
    ]


def _figures(found: list[tuple[Score, Cost]], *, has_ids: bool) -> dict[str, Any]:
    trials = len(found)
    asked, right, wrong, cited = (
        sum(getattr(score, name) for score, _ in found)
        for name in ("asked", "right", "wrong", "cited")
    )
    estimate = share_estimate(right, asked)
    assert estimate is not None  # noqa: S101 - something was asked
    offs = [score.off for score, _ in found if score.off is not None]
    return {
        "trials": trials,
        "asked": asked,
        "right": right,
        "wrong": wrong,
        "cited": cited if has_ids else None,
        "right_share": {name: rounded(getattr(estimate, name)) for name in ("value", "low", "high")},
        "mean_off": rounded(sum(offs) / len(offs)) if offs else None,
        **{
            name: rounded(sum(getattr(cost, name) for _, cost in found) / trials)
            for name in ("calls", "input_tokens", "output_tokens")
        },
    }  # fmt: skip


def _mock(options: argparse.Namespace, keep: Callable[[list[Row]], None]) -> None:
    script = Forgetful(dict(reviews()), seed=options.seed)
    model = FakeLLM(script=script, context_tokens=_MOCK_WINDOW)
    with ParallelCalls(llm=model) as runner:
        asker = Asker(runner, _MOCK_WINDOW, {}, keeps=False)
        measured(asker, mock_tasks(options.trials), ways(_MOCK_WINDOW, has_small=True), keep)


def _local(options: argparse.Namespace, keep: Callable[[list[Row]], None]) -> None:
    # As many calls at once as the local model serves: none waits for another until it times out.
    with ParallelCalls(llm="local", max_workers=4) as runner:
        asker = Asker(
            runner,
            _LOCAL_WINDOW,
            {"temperature": 0, "timeout_s": 600, "on_truncated": "keep"},
            keeps=True,
        )
        tasks = _begun_within(local_tasks(options.first, options.local), options.minutes * 60)
        measured(asker, tasks, ways(_LOCAL_WINDOW, has_small=False), keep)


def _begun_within(tasks: Iterator[Task], most_s: float) -> Iterator[Task]:
    began = time.monotonic()
    for task in tasks:
        if time.monotonic() - began > most_s:
            return
        yield task


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="of the mock")
    parser.add_argument("--local", type=int, default=0, help="trials of the local model")
    parser.add_argument(
        "--minutes", type=float, default=60, help="begin no question to the local model after that"
    )
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["mock", "local"])
    parser.add_argument("--out", type=Path, default=RESULTS / "reduce_quality.json")
    options = parser.parse_args()
    measure = {"mock": _mock, "local": _local}
    if options.only is None and not options.local:
        del measure["local"]
    about = {"machine": machine(), "versions": versions(_PACKAGES)}
    with tempfile.TemporaryDirectory(prefix="fanout-reduce-quality-") as folder:
        os.environ.setdefault("FANOUT_STATE_DIR", folder)
        for model in [options.only] if options.only else list(measure):
            told = {"trials": options.trials, "seed": options.seed}
            if model == "local":
                told = {"trials": options.local, "minutes": options.minutes}
            measure[model](options, partial(_keep, options.out, model, {"options": told, **about}))


def _keep(path: Path, model: str, about: dict[str, Any], rows: list[Row]) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    save(path, {**known, model: {**about, "rows": rows}})


if __name__ == "__main__":
    main()
