"""The evaluation on the page of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fanout.core.errors import SpecError
from fanout.core.records import ErrorKind
from fanout.core.spec import make_spec
from fanout.report import render
from fanout.runs.result_values import ResultValues
from fanout.runs.status import StoredResult
from fanout.runs.stored_aggregate import StoredAggregate
from tests.unit.report.test_report import NASTY, Reader, branch, facts


def rendered(spec, branches, labels=None):
    run = SimpleNamespace(
        spec=spec,
        status=lambda: facts(branches).status,
        outcomes=lambda *, with_text: iter(branches),
        stored_aggregate=lambda: StoredAggregate(
            ResultValues(StoredResult()), spec.reduction, is_grouped=False
        ),
    )
    return Reader(render(run, labels=labels))


def labelled(pairs, **fields):
    return [
        branch(at, None if answer else ErrorKind.TIMEOUT, output=answer, columns={"gold": label},
               **fields)
        for at, (label, answer) in enumerate(pairs)
    ]  # fmt: skip


PAIRS = [("good", "good"), ("bad", "good"), ("bad", "bad"), ("bad", None), ("", "good")]


def test_a_page_shows_the_evaluation_of_a_job_with_labels():
    spec = make_spec(model="m", prompt="{input}", choices="good,bad", labels="gold")
    text = rendered(spec, labelled(PAIRS, confidence=0.9)).text
    assert "How good the answers are 4 documents with a label in gold" in text
    assert "m 4 75.0% 0.500 (0.150 to 0.850)" in text.replace("\u202f", " ")
    assert "good 1 0.500 1.000 0.667 bad 3 1.000 0.333 0.500" in text
    assert "Label \\ answer good bad (failed) good 1 0 0 bad 1 1 1" in text
    assert "good for bad (1)" in text
    assert "expected calibration error 0.233" in text
    assert "not evaluated: 1 document without a label in 'gold'" in text


def test_a_page_compares_models_and_prompts():
    spec = make_spec(models=["m1", "m2"], prompt="{input}", labels="gold")
    branches = [
        branch(2 * document + model, document_index=document, output="ab"[model],
               columns={"gold": "a"})
        for document in range(6) for model in range(2)
    ]  # fmt: skip
    text = rendered(spec, branches).text
    assert "m1 against m2: better on 6, worse on 0 (p = 0.031)" in text


def test_a_page_without_labels_has_no_evaluation_but_may_be_given_labels():
    spec = make_spec(model="m", prompt="{input}")
    assert "How good" not in rendered(spec, labelled(PAIRS)).text
    assert "How good" in rendered(spec, labelled(PAIRS), labels={"": "gold"}).text
    with pytest.raises(SpecError, match="answers have no fields"):
        rendered(spec, labelled(PAIRS), labels={"x": "gold"})


def test_hostile_labels_are_text_on_a_page():
    spec = make_spec(model="m", prompt="{input}", labels="gold")
    hostile = NASTY.replace("\ud800", "")
    page = rendered(spec, labelled([(hostile, "<b>no</b>"), ("\U0001f9ea", NASTY[:60])]))
    assert not page.attributes("script")
    assert not page.attributes("img")
    assert not page.attributes("b")
    assert "<script>alert(1)</script>" in page.text
    assert "<b>no</b>" in page.text


def test_ten_thousand_labels_do_not_make_a_large_page():
    spec = make_spec(model="m", prompt="{input}", labels="gold")
    few = [(f"label {at % 100}", f"label {at % 90}") for at in range(1_000)]
    many = [(f"label {at}", f"answer {at}") for at in range(10_000)]
    text = rendered(spec, labelled(few)).text
    assert "75 more labels are not shown." in text
    text = rendered(spec, labelled(many)).text
    assert "'gold' has too many different labels for F1: see the accuracy" in text
    assert len(text) < 30_000
