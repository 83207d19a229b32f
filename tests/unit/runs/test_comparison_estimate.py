"""How many comparisons a job will make, before any."""

from __future__ import annotations

from random import Random

import pytest

from fanout.core.records import Document
from fanout.core.spec import make_spec
from fanout.policy.reduce_ranges import comparisons_of
from fanout.policy.token_ratio import TokenSums
from fanout.policy.tournaments import Ranking
from fanout.runs.estimate import Estimator

COMPARED = {"model": "openai/m", "prompt": "{input}", "criteria": ["c"], "max_tokens": 50}


def estimated(rows, **fields):
    estimator = Estimator(
        make_spec(**{**COMPARED, **fields}), seen=lambda _model: TokenSums(), places=None
    )
    documents = (
        Document(name=f"d{at}", index=at, text="x" * 40, columns={"kind": kind})
        for at, kind in enumerate(rows)
    )
    for _ in estimator.documents(documents):
        pass
    return estimator.result()


@pytest.mark.parametrize(("count", "k"), [(10, None), (100, None), (100, 1), (100, 10), (400, 20)])
def test_the_comparisons_of_rankings_are_within_what_is_estimated(count, k):
    made = []
    for seed in range(30):
        values = list(range(count))
        Random(seed).shuffle(values)
        ranking = Ranking([range(count)], seed=seed, k=k)
        made.append(0)
        while pairs := ranking.pairs():
            made[-1] += len(pairs)
            ranking.settle([
                (values[one] > values[other]) - (values[one] < values[other]) for one, other in pairs
            ])  # fmt: skip
    low, likely, high = comparisons_of(count, k=k, is_best=False)
    assert low <= min(made)
    assert max(made) <= high
    assert likely == pytest.approx(sum(made) / len(made), rel=0.25)


def test_one_answer_is_compared_with_none():
    assert (
        comparisons_of(1, k=None, is_best=False)
        == comparisons_of(0, k=3, is_best=True)
        == (0, 0, 0)
    )
    assert comparisons_of(2, k=None, is_best=False) == pytest.approx((1, 1, 1), rel=0.01)


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({"samples": 4}, 6 * 2 * 3),
        ({"samples": 2, "models": ["openai/m", "openai/n"]}, 6 * 2 * 3),
        ({"samples": 2, "prompt": None, "aspects": {"a": "{input}", "b": "{input}"}}, 2 * 6 * 2),
        ({"prompt": None, "aspects": {"a": "{input}", "b": "{input}", "c": "{input}"}}, 6 * 2 * 2),
    ],
)
def test_best_takes_two_calls_for_each_candidate_but_one(fields, calls):
    found = estimated(["x"] * 6, reduce="best", **fields)
    assert (found.reduce.calls_low, found.reduce.calls_likely, found.reduce.calls_high) == (
        0,
        calls,
        calls,
    )
    prompt = found.calls.input_likely / found.calls.calls_likely
    assert found.reduce.input_likely / calls > prompt + 2, (
        "the judge sees the prompt, and two answers"
    )


def test_a_ranking_counts_for_each_group_and_its_calls_are_those_of_the_judge():
    found = estimated(["x"] * 50 + ["y"] * 50, reduce="pairwise", group_by="column.kind",
                      judge_model="openai/judge")  # fmt: skip
    likely = 2 * 2 * comparisons_of(50, k=None, is_best=False)[1]
    assert found.reduce.calls_likely == pytest.approx(likely)
    assert found.by_model["openai/judge"] == found.reduce
    assert found.by_model["openai/m"].calls_likely == 100
    whole = estimated(["x"] * 100, reduce="pairwise").reduce
    assert whole.calls_low == 2 * 99 < whole.calls_likely < whole.calls_high
    first = estimated(["x"] * 100, reduce="pairwise", k=1).reduce
    assert first.calls_likely < whole.calls_likely / 2
