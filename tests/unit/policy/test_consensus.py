from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction
from math import comb, pi, sqrt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.errors import StoredDataError
from fanout.core.records import ErrorKind, Outcome, Usage
from fanout.policy.answers_so_far import AnswersSoFar
from fanout.policy.consensus import OTHERS, Poll, Question, is_decided, majority_certainty, question

VOTES = st.lists(st.integers(1, 40), max_size=6)
CERTAINTIES = st.floats(0.5, 1, exclude_min=True, exclude_max=True)


@pytest.mark.parametrize(
    ("first", "second", "certainty"),
    [
        # 1 - I(1/2; first + 1, second + 1).
        (0, 0, 1 / 2),
        (1, 0, 3 / 4),
        (3, 0, 15 / 16),
        (4, 0, 31 / 32),
        (1, 1, 1 / 2),
        (2, 1, 11 / 16),
        (5, 1, 120 / 128),
        (6, 1, 247 / 256),
        (7, 2, 968 / 1024),
        (5000, 5000, 1 / 2),
        # The many terms of a sum that is nearly a tie.
        (100, 99, 1 / 2 + comb(200, 100) / 2**201),
        (101, 100, 1 / 2 + comb(202, 101) / 2**203),
        (5000, 4999, 1 / 2 + comb(10_000, 5000) / 2**10_001),
        (4999, 5000, 1 / 2 - comb(10_000, 5000) / 2**10_001),
        (5000, 0, 1),
        (0, 5000, 0),
    ],
)
def test_the_certainty_of_a_majority(first, second, certainty):
    assert majority_certainty(first, second) == pytest.approx(certainty, rel=1e-11)


def test_the_certainty_of_more_votes_than_an_exact_sum_could_count_in_time():
    million = 1_000_000
    nearly_a_tie = 1 / 2 + 1 / (2 * sqrt(pi * million))
    assert majority_certainty(million, million - 1) == pytest.approx(nearly_a_tie, rel=1e-9)
    assert majority_certainty(million, million // 2) == 1


@given(first=st.integers(0, 60), second=st.integers(0, 60))
def test_it_is_the_integral_of_the_beta_density_above_one_half(first, second):
    # x^a (1-x)^b, expanded and integrated term by term, exactly.
    def integral(low):
        return sum(
            Fraction(comb(second, k) * (-1) ** k, first + k + 1) * (1 - low ** (first + k + 1))
            for k in range(second + 1)
        )

    expected = integral(Fraction(1, 2)) / integral(Fraction(0))
    assert majority_certainty(first, second) == pytest.approx(float(expected), abs=1e-12)


@given(first=st.integers(0, 300), second=st.integers(0, 300))
def test_more_votes_for_the_first_make_it_more_certain_and_for_the_second_less(first, second):
    now = majority_certainty(first, second)
    assert (
        0 <= majority_certainty(first, second + 1) <= now <= majority_certainty(first + 1, second)
    )
    assert now <= 1


@pytest.mark.parametrize(
    ("votes", "left", "certainty", "decided"),
    [
        ([], 9, 0.95, False),
        ([], 0, 0.95, True),
        ([3], 6, 0.95, False),
        ([4], 5, 0.95, True),
        ([4, 1], 4, 0.95, False),
        ([6, 1], 12, 0.95, True),
        ([1, 6], 12, 0.95, True),
        ([5, 1, 1], 12, 0.95, False),
        # What is left cannot change the winner; on a tie, the first to have so many wins.
        ([2], 1, 0.999, True),
        ([1], 1, 0.999, True),
        ([2, 1], 1, 0.999, True),
        ([3, 1], 2, 0.999, True),
        ([2, 1], 2, 0.999, False),
        ([2, 2], 1, 0.999, False),
        ([1], 9, 0.75, True),
        ([1], 9, 0.76, False),
    ],
)
def test_when_no_further_answer_is_needed(votes, left, certainty, decided):
    assert is_decided(votes, left=left, certainty=certainty) is decided


@given(votes=VOTES, left=st.integers(0, 60), certainty=CERTAINTIES)
def test_what_is_decided_stays_so_with_more_votes_for_the_winner_or_fewer_left(
    votes, left, certainty
):
    if is_decided(votes, left=left, certainty=certainty):
        at = votes.index(max(votes)) if votes else 0
        more = [count + (number == at) for number, count in enumerate(votes or [0])]
        assert is_decided(more, left=max(0, left - 1), certainty=certainty)
        assert is_decided(votes, left=max(0, left - 1), certainty=certainty)
        assert is_decided(votes, left=left, certainty=0.5001)


def answered(output, calls=1, **more):
    usage = Usage(calls=calls, input_tokens=10, output_tokens=2)
    return Outcome(index=0, output=output, attempts=calls, usage=usage, elapsed_s=1.5, **more)


def polled(answers, *, most=None, certainty=None):
    """Give answers to a poll until it is decided; None is one that failed."""
    poll = Poll()
    for answer in answers:
        if certainty and poll.is_decided(most=most, certainty=certainty):
            break
        poll = poll.with_vote((answer or "").lower().encode(), answered(answer))
    return poll


ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=40)


@given(answers=ANSWERS, certainty=CERTAINTIES)
def test_no_more_are_asked_for_than_there_are_and_those_left_out_of_need_change_nothing(
    answers, certainty
):
    most = len(answers)
    early = polled(answers, most=most, certainty=certainty)
    assert 1 <= early.asked <= most
    # Certainty aside, stopping never changes the winner.
    almost_sure = polled(answers, most=most, certainty=1 - 1e-15)
    everything = polled(answers)
    assert (almost_sure.winner and almost_sure.winner.answer) == (
        everything.winner and everything.winner.answer
    )


@pytest.mark.parametrize(
    ("answers", "winner", "votes"),
    [
        (["b", "a", "A", "B"], "a", {"a": 2, "b": 2}),
        (["b", "a", "A", "B", "c"], "a", {"a": 2, "b": 2, "c": 1}),
        ([None, "b", None], "b", {"b": 1}),
        ([None], None, {}),
        (["a", "b"], "a", {"a": 1, "b": 1}),
        ([" B ", "b"], " B ", {"B": 2}),
    ],
)
def test_most_votes_win_and_on_a_tie_the_one_that_had_so_many_first(answers, winner, votes):
    poll = Poll()
    for answer in answers:
        poll = poll.with_vote((answer or "").strip().lower().encode(), answered(answer))
    assert (poll.winner and poll.winner.answer) == winner
    assert list(poll.votes().items()) == list(votes.items())


def test_few_answers_are_named_and_all_votes_are_there():
    long = "x" * 9_000
    poll = polled([str(number) for number in range(99)] + ["7", "8", long, long, long, long])
    votes = poll.votes()
    assert sum(votes.values()) == 105
    assert len(votes) == 21
    assert list(votes.values())[:3] == [4, 2, 2]
    assert list(votes)[1:3] == ["7", "8"]
    assert max(map(len, votes)) == 2_000
    assert polled(["a", "a", long]).votes() == {"a": 2, OTHERS: 1}


def sent(poll, answers):
    """Return the poll after these answers, and the sizes of its checkpoints."""
    sizes = []
    for answer in answers:
        poll = poll.with_vote(hashlib.blake2b(answer.encode(), digest_size=12).digest(),
                              answered(answer))  # fmt: skip
        sizes.append(len(msgspec.json.encode(poll)))
    return poll, sizes


@pytest.mark.parametrize(
    ("answers", "most_bytes"),
    [
        ([f"{number} {'y' * 2_000}" for number in range(400)], 20_000),
        ([f"{number} {'y' * 500}" for number in range(400)], 30_000),
        ([str(number) for number in range(1_500)], 50_000),
        ([f"{number} {'y' * 1_000_000}" for number in range(8)], 1_005_000),
        (["a", "a", *(f"{number} {'y' * 1_000_000}" for number in range(8))], 5_000),
    ],
    ids=["long", "medium", "many", "very long", "one short that leads"],
)
def test_a_checkpoint_has_the_text_of_the_winner_and_little_else(answers, most_bytes):
    poll, sizes = sent(Poll(), answers)
    assert max(sizes) < most_bytes
    assert poll.winner.answer == answers[0]
    votes = poll.votes()
    assert sum(votes.values()) == len(answers)
    assert sum(map(len, votes)) <= 12_000
    # One whose text was left out wins once it has more votes, with its text.
    late = answers[-1]
    won, _ = sent(poll, [late, late])
    won = msgspec.json.decode(msgspec.json.encode(won), type=Poll)
    assert (won.winner.answer, won.winner.votes) == (late, 3)
    assert won.votes()[late[:2_000]] == 3
    assert sum(won.votes().values()) == len(answers) + 2


TEXTS = [letter * length for letter in "abc" for length in (1, 1_900, 9_000)] + list("defgh")


@given(answers=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=60))
def test_texts_that_are_left_out_change_no_winner_and_no_vote(answers):
    counted, since = Counter(), {}
    poll = Poll()
    for number, answer in enumerate(answers):
        poll, _ = sent(poll, [answer])
        counted[answer] += 1
        since[answer] = number
        winner = min(counted, key=lambda one: (-counted[one], since[one]))
        assert (poll.winner.answer, poll.winner.votes) == (winner, counted[winner])
        both = [counted[one] for one in sorted(counted, key=counted.get)[-2:]]
        for left in (2, 5):
            most = poll.asked + left
            assert poll.is_decided(most=most, certainty=0.99) is is_decided(
                both, left=left, certainty=0.99
            )
    names = poll.votes()
    assert {name: names[name] for name in names if name} == {
        name: counted.get(name) or counted[winner] for name in names if name
    }
    assert sum(names.values()) == len(answers)


def test_each_model_is_asked_in_turn_and_then_for_its_next_sample():
    asked = [question(number, models=3) for number in range(6)]
    assert [(one.model, one.sample) for one in asked] == [
        (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1),
    ]  # fmt: skip
    assert question(7, models=1) == Question(model=0, sample=7)


def test_a_checkpoint_has_all_that_was_paid_for():
    failed = answered(None, calls=3, kind=ErrorKind.TIMEOUT, message="too slow")
    first = answered("yes", finish_reason="length", is_cut=True, model="other")
    so_far = AnswersSoFar().with_outcome(first, model="m", key=b"\xff")
    so_far = so_far.with_outcome(failed, model="n", key=b"")
    so_far = AnswersSoFar.of(msgspec.json.encode(so_far))
    so_far = so_far.with_outcome(answered("YES"), model="m", key=b"\xff")
    outcome = so_far.outcome(7)
    assert (outcome.index, outcome.output, outcome.kind) == (7, "yes", None)
    assert (outcome.votes, outcome.samples, outcome.attempts) == ({"yes": 2}, 3, 5)
    assert outcome.usage == Usage(calls=5, input_tokens=30, output_tokens=6)
    assert {model: usage.calls for model, usage in outcome.usage_of.items()} == {"m": 2, "n": 3}
    assert outcome.elapsed_s == 4.5
    assert (outcome.finish_reason, outcome.is_cut, outcome.model) == ("length", True, "other")


def test_without_any_answer_a_branch_fails_with_the_last_kind():
    so_far = AnswersSoFar()
    for kind in (ErrorKind.TIMEOUT, ErrorKind.CONTENT_FILTER):
        so_far = so_far.with_outcome(
            answered(None, kind=kind, message=f"it is {kind}"), model="m", key=b""
        )
    outcome = so_far.outcome(0)
    assert (outcome.kind, outcome.message) == (ErrorKind.CONTENT_FILTER, "it is content_filter")
    assert (outcome.output, outcome.votes, outcome.samples) == (None, {}, 2)
    assert outcome.usage.calls == 2


def test_a_damaged_checkpoint_is_said_to_be_one():
    with pytest.raises(StoredDataError, match="damaged"):
        AnswersSoFar.of(b'{"poll": 3}')
