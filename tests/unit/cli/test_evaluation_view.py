from __future__ import annotations

import pytest
from rich.cells import cell_len

from fanout.cli.evaluation_view import (
    Threshold,
    evaluation_lines,
    evaluation_note,
    shortfalls,
)
from fanout.core.records import ErrorKind
from fanout.core.spec import make_spec
from fanout.runs.branch_output import Output
from fanout.runs.evaluation import evaluate
from tests.unit.report.test_report import NASTY, branch


def answers(pairs, spec, **fields):
    variants = spec.branches_per_chunk
    return evaluate(spec, [
        branch(at, None if answer else ErrorKind.TIMEOUT, document_index=at // variants, output=answer,
               columns={"gold": label}, **fields)
        for at, (label, answer) in enumerate(pairs)
    ])  # fmt: skip


def test_the_table_has_a_line_for_each_variant_and_what_differs_between_them():
    spec = make_spec(models=["m1", "m2"], aspects={"p": "{input}", "q": "{input}"}, labels="gold")
    found = answers([("a", "a"), ("a", "b"), ("a", "a"), ("a", None)] * 10, spec)
    lines = list(evaluation_lines(found))
    assert lines[0].split() == [
        "PROMPT", "MODEL", "ANSWERS", "USABLE", "ACCURACY", "MACRO-F1", "TIME", "PER", "RIGHT",
        "ANSWER",
    ]  # fmt: skip
    assert lines[1].split()[:7] == ["p", "m1", "10", "100%", "1.000", "(0.722", "to"]
    assert lines[4].split()[:4] == ["q", "m2", "10", "0%"]
    assert (
        "p · m1 against p · m2: better on 10 documents, worse on 0 (p = 0.002, corrected 0.012)"
        in lines
    )
    assert "LABEL \\ ANSWER  a  (failed)" in lines
    assert "most frequent wrong answers: b for a (10)" in lines
    one_prompt = make_spec(models=["m1", "m2"], prompt="{input}", labels="gold")
    assert next(evaluation_lines(answers([("a", "a")], one_prompt))).startswith("MODEL  ANS")
    # A single variant is told by its model.
    alone = list(evaluation_lines(answers([("a", "a")], make_spec(model="m", prompt="{input}",
                                                                  labels="gold"))))  # fmt: skip
    assert alone[1].split()[:2] == ["m", "1"]
    assert not any("against" in line for line in alone)
    # A vote of several models is of none of them.
    vote = make_spec(models=["m1", "m2"], prompt="{input}", labels="gold", certainty=0.9)
    assert list(evaluation_lines(answers([("a", "a")], vote)))[1].startswith("several models  ")


def test_confidences_are_shown_by_bin():
    spec = make_spec(model="m", prompt="{input}", choices="a,b", labels="gold")
    lines = list(evaluation_lines(answers([("a", "a"), ("b", "a")], spec, confidence=0.95)))
    assert "confidence: mean 0.950, accuracy 0.500, calibration error 0.450 (2 answers)" in lines
    assert lines[-1].split() == ["0.9", "to", "1.0", "2", "0.950", "0.500"]


def test_hostile_labels_stay_in_their_cells():
    spec = make_spec(model="m", prompt="{input}", labels="gold")
    wide = "\u5b57" * 200
    hostile = NASTY.replace("\ud800", "")
    pairs = [(hostile, "x\ny\x1b[2J"), (wide, wide), ("\U0001f9ea", "a\tb")]
    lines = list(evaluation_lines(answers(pairs, spec)))
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(cell_len, lines)) < 400
    at = lines.index(next(line for line in lines if line.startswith("LABEL  ")))
    assert len({cell_len(line) for line in lines[at : at + 4]}) == 1


def test_many_labels_and_variants_are_not_printed_at_length():
    spec = make_spec(models=[f"m{at}" for at in range(12)], prompt="{input}", labels="gold")
    pairs = [(f"label {at}", "label 0") for at in range(30) for _ in range(12)]
    found = answers(pairs, spec)
    lines = list(evaluation_lines(found))
    assert "30 labels: --json has their scores" in lines
    assert "and 56 more comparisons: --json has all" in lines
    assert len(list(evaluation_note(found))) == 2


@pytest.mark.parametrize(
    ("metric", "least", "said"),
    [
        ("accuracy", 0.5, []),
        ("accuracy", 0.75, ["the accuracy of m2 is 0.5, below 0.75"]),
        ("macro_f1", 0.9, ["the macro-F1 of m2 is 0.3333, below 0.9"]),
    ],
)
def test_each_variant_must_reach_the_threshold(metric, least, said):
    spec = make_spec(models=["m1", "m2"], prompt="{input}", labels="gold", choices="a,b")
    found = answers([("a", "a"), ("a", "a"), ("b", "b"), ("b", "a")], spec)
    assert list(shortfalls(found, Threshold(metric, least))) == said


def test_what_is_unknown_reaches_no_threshold():
    spec = make_spec(model="m", prompt="{input}", labels="gold")
    found = evaluate(spec, list[Output]())
    assert list(shortfalls(found, Threshold("accuracy", 0.0))) == [
        "the accuracy is unknown, and not 0 or more"
    ]
    assert list(evaluation_note(found)) == [
        "accuracy: unknown, as no document with a label has an answer"
    ]
    assert list(evaluation_lines(found))[1].split()[0] == "m"
