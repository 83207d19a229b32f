from __future__ import annotations

import random
from collections import Counter
from math import comb, sqrt

import pytest

from fanout.policy.calibration import ReliabilityCounter
from fanout.policy.confusion import ConfusionCounter, Term
from fanout.policy.metrics import holm, macro_f1, share_estimate, sign_test, wilson_interval


def counted(pairs, known=()):
    counter = ConfusionCounter(Term(one, one) for one in known)
    for label, answer in pairs:
        counter.add(Term(label, label), None if answer is None else Term(answer, answer))
    return counter


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in
        # Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(successes, trials, low, high):
    found = wilson_interval(successes, trials)
    assert found is not None
    assert [round(one, 4) for one in found] == [low, high]
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]))


def test_a_share_of_nothing_is_unknown_and_correlated_answers_widen_the_interval():
    assert wilson_interval(0, 0) is None
    assert share_estimate(0, 0) is None
    alone, of_three = share_estimate(90, 120), share_estimate(90, 120, units=40)
    assert alone.value == of_three.value == 0.75
    assert of_three.low < alone.low < 0.75 < alone.high < of_three.high
    assert (of_three.low, of_three.high) == pytest.approx(wilson_interval(30, 40))


def test_class_scores_are_those_computed_by_hand():
    """Ten documents: a a a a b b b c c c; one c failed, one b has an answer that is no label."""
    counter = counted(
        [("a", "a")] * 3 + [("a", "b")] + [("b", "b")] + [("b", "a")] + [("b", "x")]
        + [("c", "c")] * 2 + [("c", None)],
        known=["d"],
    )  # fmt: skip
    scores = {one.label: one for one in counter.scores()}
    assert list(scores) == ["d", "a", "b", "c"]
    assert (scores["a"].precision, scores["a"].recall, scores["a"].f1) == (0.75, 0.75, 0.75)
    assert (scores["b"].precision, scores["b"].recall, scores["b"].f1) == (1 / 2, 1 / 3, 2 / 5)
    assert (scores["c"].precision, scores["c"].recall, scores["c"].f1) == (1, 2 / 3, 4 / 5)
    assert (scores["d"].precision, scores["d"].recall, scores["d"].f1) == (None, None, None)
    found = counter.macro_f1()
    assert found.value == pytest.approx((0.75 + 0.4 + 0.8) / 3)
    assert 0 <= found.low < found.value < found.high <= 1
    table = counter.confusion()
    assert table.labels == ["d", "a", "b", "c"]
    assert table.counts == [[0, 0, 0, 0], [0, 3, 1, 0], [0, 1, 1, 0], [0, 0, 0, 2]]
    assert (table.other, table.failed) == ([0, 0, 1, 0], [0, 0, 0, 1])
    assert [(one.label, one.answer, one.count) for one in table.mistakes] == [
        ("a", "b", 1), ("b", "a", 1), ("b", "x", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_plain_python_in_any_order(seed):
    draw = random.Random(seed)
    names = [f"k{at}" for at in range(draw.randint(1, 8))]
    pairs = [
        (draw.choice(names), draw.choice([*names, "other", None]))
        for _ in range(draw.randint(1, 300))
    ]
    labels = {label for label, _ in pairs}
    f1 = {}
    for one in labels:
        hits = sum(label == answer == one for label, answer in pairs)
        wrong = sum((label == one) != (answer == one) for label, answer in pairs)
        f1[one] = 2 * hits / (2 * hits + wrong)
    results = []
    for _ in range(2):
        draw.shuffle(pairs)
        counter = counted(pairs)
        results.append((counter.macro_f1(), counter.scores(), counter.confusion().counts))
        assert counter.macro_f1().value == pytest.approx(sum(f1.values()) / len(f1))
        assert {one.label: one.f1 for one in counter.scores()} == pytest.approx(f1)
    assert results[0][1:] == results[1][1:]
    assert results[0][0].low == pytest.approx(results[1][0].low)


def test_the_variance_of_macro_f1_is_that_of_a_numerical_derivative():
    cells = {("a", "a"): 30, ("a", "b"): 6, ("b", "b"): 20, ("b", "a"): 9, ("c", "c"): 11,
             ("c", "a"): 4, ("b", "x"): 3, ("c", None): 7}  # fmt: skip
    total = sum(cells.values())

    def value(shares):
        found = []
        for one in "abc":
            hit = shares[one, one]
            row = sum(share for (label, _), share in shares.items() if label == one)
            column = sum(share for (_, answer), share in shares.items() if answer == one)
            found.append(2 * hit / (row + column))
        return sum(found) / 3

    shares = {cell: count / total for cell, count in cells.items()}
    step = 1e-6
    slope = {
        cell: (value({**shares, cell: share + step}) - value({**shares, cell: share - step}))
        / (2 * step)
        for cell, share in shares.items()
    }
    mean = sum(shares[cell] * slope[cell] for cell in cells)
    variance = (sum(shares[cell] * slope[cell] ** 2 for cell in cells) - mean**2) / total
    counter = counted(cell for cell, count in cells.items() for _ in range(count))
    found = counter.macro_f1()
    assert found.value == pytest.approx(value(shares))
    sized = found.value * (1 - found.value) / variance
    assert sized < total, "the correction of the size is in use"
    assert (found.low, found.high) == pytest.approx(wilson_interval(found.value * sized, sized))


def test_the_interval_of_macro_f1_covers_the_true_value_as_often_as_it_says():
    draw = random.Random(7)
    cells = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("c", "c"), ("c", None)]
    weights = [50, 10, 15, 5, 15, 5]
    truth = counted(cell for cell, weight in zip(cells, weights, strict=True)
                    for _ in range(weight)).macro_f1().value  # fmt: skip
    covered = 0
    for _ in range(400):
        found = counted(draw.choices(cells, weights, k=150)).macro_f1()
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.985


def test_all_right_answers_have_an_interval_too():
    found = counted([("a", "a"), ("b", "b")] * 10).macro_f1()
    assert (found.value, found.high) == (1, 1)
    assert (found.low, found.high) == pytest.approx(wilson_interval(20, 20))
    assert counted([]).macro_f1() is None
    assert counted([("a", None)]).macro_f1().value == 0
    assert macro_f1({}, Counter()) is None


def test_the_sign_test_is_exact():
    for better in range(12):
        for worse in range(12):
            trials = better + worse
            tail = sum(comb(trials, k) for k in range(min(better, worse) + 1)) / 2**trials
            assert sign_test(better, worse) == pytest.approx(min(1, 2 * tail))
    # Hypothesis tests on a coin: 61 heads of 100.
    assert sign_test(39, 61) == pytest.approx(0.0352, abs=5e-5)
    assert sign_test(0, 5_000) == 0
    normal = (501_500 - 498_500) / sqrt(1_000_000)
    assert normal == 3
    assert sign_test(501_500, 498_500) == pytest.approx(0.0027, abs=1e-4)


def test_p_values_are_corrected_for_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_calibration_is_that_computed_by_hand():
    counter = ReliabilityCounter()
    assert counter.result() is None
    for confidence, is_right in [(0.95, True), (0.95, True), (0.95, False), (1.0, True),
                                 (0.5, True), (0.5, False), (0.0, False)]:  # fmt: skip
        counter.add(confidence, is_right=is_right)
    found = counter.result()
    assert [one.count for one in found.bins] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 4]
    last = found.bins[-1]
    assert (last.low, last.high, last.accuracy) == (0.9, 1.0, 0.75)
    assert last.confidence == pytest.approx(0.9625)
    assert found.bins[1].confidence is found.bins[1].accuracy is None
    assert found.ece == pytest.approx((4 * (0.9625 - 0.75) + 0 + 0) / 7)
    assert found.brier == pytest.approx((2 * 0.05**2 + 0.95**2 + 0 + 2 * 0.25 + 0) / 7)
    assert (found.count, found.accuracy) == (7, 4 / 7)


def test_very_many_labels_are_no_classes():
    counter = counted((f"label {at}", f"label {at}") for at in range(10_000))
    assert counter.is_unbounded
    assert (counter.macro_f1(), counter.scores(), counter.confusion()) == (None, [], None)


def test_very_many_wrong_answers_leave_the_scores_exact():
    pairs = [("a", f"x{at}") for at in range(30_000)] + [("a", "a"), ("b", "b")] * 10_000
    random.Random(1).shuffle(pairs)
    counter = counted([("b", None), ("a", None), *pairs])
    assert not counter.is_unbounded
    scores = {one.label: one for one in counter.scores()}
    assert (scores["a"].support, scores["a"].predicted, scores["a"].correct) == (
        40_001,
        10_000,
        10_000,
    )
    assert scores["b"].recall == 10_000 / 10_001
    table = counter.confusion()
    assert (table.counts, table.other, table.failed) == (
        [[10_000, 0], [0, 10_000]], [30_000, 0], [1, 1],
    )  # fmt: skip
    assert len(table.mistakes) == 20
    # A label that may have been an answer before would have the wrong precision.
    counter.add(Term("late", "late"), None)
    assert counter.is_unbounded
