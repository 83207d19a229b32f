"""Measures answers against labels: free text, choices, choices with examples, and consensus.

    python benchmarks/quality.py [--rows 300] [--model local] [--samples 5] [--certainty 0.95]

Puts the same question to the same reviews (examples/reviews/) in several ways. An answer is usable if
``choices`` would take it: it is a label, apart from case and from quotes and punctuation around it. An
answer that is not usable is a wrong one. The examples of the system prompt are no rows of the
measurement. The result is benchmarks/results/quality.json.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from measure import RESULTS, machine, rounded, save, versions

from fanout import ParallelCalls
from fanout.core.answer_shape import AnswerShape, WrongShapeError, shape_of
from fanout.policy.metrics import share_estimate

if TYPE_CHECKING:
    from fanout import Result

_REVIEWS = Path(__file__).parents[1] / "examples/reviews/movie-reviews.tsv"
_LABELS = ("negative", "positive")
_QUESTION = "{input}\n\nWhat is the sentiment of this movie review?"
_FREE_QUESTION = f"{_QUESTION} Answer with one word: negative or positive."
_EXAMPLES_OF_A_LABEL = 2
_PACKAGES = ("fanout-llm", "xllamacpp")
# Some words more than an answer needs; the first sentence is the answer.
_FREE = {"max_tokens": 32, "stop": ["\n", "."]}

Row = dict[str, str]


def chosen(count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows of the measurement, with as many of each label, and those of the examples."""
    with _REVIEWS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rng = random.Random(seed)  # noqa: S311 - a sample, no secret
    rng.shuffle(rows)
    by_label = [[row for row in rows if row["label"] == label] for label in _LABELS]
    examples = [row for each in by_label for row in each[:_EXAMPLES_OF_A_LABEL]]
    measured = [row for each in by_label for row in each[_EXAMPLES_OF_A_LABEL:][: count // 2]]
    for some in (examples, measured):
        rng.shuffle(some)
    return measured, examples


def few_shot(examples: list[Row]) -> str:
    """Return a system prompt with examples, in the form of the question."""
    shown = [f"{_QUESTION.format(input=row['text'])}\n{row['label']}" for row in examples]
    return "\n\n".join(["Classify movie reviews. Examples:", *shown])


def ways(examples: list[Row], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the fields of a job for each way to ask."""
    choices = {"branch_prompt": _QUESTION, "choices": list(_LABELS)}
    examples_too = {**choices, "system": few_shot(examples)}
    consensus = {"samples": options.samples, "certainty": options.certainty}
    return {
        "free text": {"branch_prompt": _FREE_QUESTION, **_FREE, "temperature": 0},
        "choices": {**choices, "temperature": 0},
        "choices, examples": {**examples_too, "temperature": 0},
        "choices, examples, warm": {**examples_too, "temperature": options.temperature},
        "choices, examples, consensus": {
            **examples_too, **consensus, "temperature": options.temperature,
        },
    }  # fmt: skip


def figures(result: Result, took_s: float, rows: list[Row]) -> dict[str, Any]:
    """Return the counts of one way; answers come in the order of the rows."""
    assert result.evaluation is not None  # noqa: S101 - the job has labels
    [scores] = result.evaluation.variants
    shape = shape_of(None, _LABELS)
    assert shape is not None  # noqa: S101 - it has choices
    answers = [_label(shape, output) for output in result.outputs]
    usable = sum(answer is not None for answer in answers)
    correct = sum(answer == row["label"] for answer, row in zip(answers, rows, strict=True))
    usage = result.usage
    return {
        "rows": len(rows),
        "usable": usable,
        "correct": correct,
        "usable_share": _interval(usable, len(rows)),
        "accuracy": _interval(correct, len(rows)),
        "macro_f1": rounded(scores.macro_f1.value) if scores.macro_f1 else None,
        "calibration": msgspec.to_builtins(scores.calibration),
        "answers": {label: answers.count(label) for label in _LABELS},
        "errors": len(result.errors),
        "calls": usage.calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "seconds": rounded(took_s),
    }


def write(path: Path, rows: list[Row]) -> None:
    """Write rows as a table with a text and its label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _label(shape: AnswerShape, output: Any) -> str | None:
    try:
        return None if output is None else shape.checked(str(output))
    except WrongShapeError:
        return None


def _interval(part: int, whole: int) -> dict[str, float]:
    found = share_estimate(part, whole)
    assert found is not None  # noqa: S101 - there are rows
    return {name: rounded(getattr(found, name)) for name in ("value", "low", "high")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300, help="at most 396")
    parser.add_argument("--model", default="local")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--certainty", type=float, default=0.95)
    parser.add_argument("--temperature", type=float, default=0.7, help="of samples")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    options = parser.parse_args()
    rows, examples = chosen(options.rows, options.seed)
    about, measured = machine(), {}
    with tempfile.TemporaryDirectory(prefix="fanout-quality-") as folder:
        os.environ.setdefault("FANOUT_STATE_DIR", folder)
        table = Path(folder) / "reviews.tsv"
        write(table, rows)
        # As many calls at once as the local model serves: none waits for another until it times out.
        with ParallelCalls(llm=options.model, max_workers=4) as runner:
            # The model's server starts before the clock does.
            runner.run([rows[0]["text"]], branch_prompt=_QUESTION, choices=_LABELS)
            for name, fields in ways(examples, options).items():
                began = time.perf_counter()
                # An answer that is kept from another way is no call.
                result = runner.run(
                    inputs=table, labels="label", reduce="none", cache=False, **fields
                )
                took_s = time.perf_counter() - began
                measured[name] = figures(result, took_s, rows)
                print(name, measured[name], file=sys.stderr, flush=True)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    about_run = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**about_run, "question": _QUESTION, "ways": measured})


if __name__ == "__main__":
    main()
