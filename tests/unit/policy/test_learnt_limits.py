"""Which rate limits of headers are believed, and the pace by them."""

from __future__ import annotations

import pytest

from fanout.core.rate_limits import LearntLimits, Rates, SeenLimit, SeenLimits
from fanout.policy.learnt_limits import LimitLearner, pace_factor, per_minute


def limit(limit=None, remaining=None, reset_s=None, period_s=None):
    return SeenLimit(limit=limit, remaining=remaining, reset_s=reset_s, period_s=period_s)


@pytest.mark.parametrize(
    ("seen", "rate"),
    [
        (limit(1200), 1200),
        (limit(1200, 600, 30), 1200),
        (limit(10, period_s=1), 600),
        (limit(100, period_s=300), 20),
        (limit(), None),
        # Of an hour or a day: its even pace would waste the time until it is used up.
        (limit(14_400, period_s=86_400), None),
        (limit(14_400, 14_370, 180), None),
    ],
)
def test_a_limit_is_one_of_a_minute(seen, rate):
    assert per_minute(seen) == rate


@pytest.mark.parametrize(
    ("seen", "age_s", "refused_s", "factor"),
    [
        # A bucket: half full, fuller, nearly empty, full.
        (limit(600, 300, 30), 1, 1e9, 1.0),
        (limit(600, 312, 28.8), 1, 1e9, 1.0833),
        (limit(600, 450, 15), 1, 1e9, 1.1),
        (limit(600, 60, 54), 1, 1e9, 0.1111),
        (limit(600, 600, 0), 1, 1e9, 1.0),
        # A window: as fast as it lasts; one that is over tells nothing of the next.
        (limit(600, 500, 50), 1, 1e9, 1.0),
        (limit(600, 100, 50), 1, 1e9, 0.2),
        (limit(600, 0, 0.4), 1, 1e9, 1.0),
        (limit(600, 0, 20), 1, 1e9, 0.1),
        # Near its end a call at a low pace would book time of the next window.
        (limit(600, 0, 5), 1, 1e9, 0.5),
        # A provider that refuses all the same counts otherwise than it tells.
        (limit(600, 450, 15), 1, 30, 0.985),
        (limit(600, 450, 15), 1, 90, 1.0),
        (limit(600, 60, 54), 1, 30, 0.1111),
        # Nobody tells what remains, or when it is there again.
        (limit(600), 1, 1e9, 1.0),
        (limit(600), 1, 30, 0.985),
        (limit(600, 300), 1, 1e9, 1.0),
        (limit(600, 150), 1, 1e9, 0.5),
    ],
)
def test_the_pace_is_what_remains_over_the_time_until_all_is_there_again(
    seen, age_s, refused_s, factor
):
    found = pace_factor(seen, age_s=age_s, refused_s=refused_s)
    assert found == pytest.approx(factor, abs=1e-4)


def saw(learner, now, requests=None, **others):
    return learner.saw(SeenLimits(requests=requests, **others), began=now, now=now)


def test_calls_keep_to_a_limit_when_half_of_it_is_used():
    learner = LimitLearner()
    assert learner.pace(0) is None
    assert saw(learner, 0, limit(600, 590, 1)), "the fleet is told"
    assert learner.pace(0) is None, "no call waits while much is left"
    assert not saw(learner, 1, limit(600, 400, 20))
    assert saw(learner, 2, limit(600, 290, 31))
    assert learner.pace(2).requests_per_minute == pytest.approx(600 * 290 / 310)
    assert not saw(learner, 3, limit(600, 320, 28))
    assert learner.pace(3).requests_per_minute == pytest.approx(660)
    # It does no longer when much has been left for a while.
    for second in range(4, 74):
        assert not saw(learner, second, limit(600, 590, 1))
    assert saw(learner, 75, limit(600, 590, 1))
    assert learner.pace(75) is None


def test_a_limit_without_a_count_is_kept_from_the_first_reply():
    learner = LimitLearner()
    saw(learner, 0, limit(600))
    assert learner.pace(0) == Rates(requests_per_minute=600)


def test_after_a_refusal_the_fleet_keeps_to_the_limits():
    learner = LimitLearner()
    assert not learner.refused(0), "nothing is known yet"
    saw(learner, 1, limit(600, 590, 1))
    assert learner.refused(2)
    assert learner.learnt == LearntLimits(rates=Rates(requests_per_minute=600), is_tight=True)
    assert learner.pace(3).requests_per_minute == pytest.approx(0.985 * 600)
    other = LimitLearner()
    other.heard(learner.learnt)
    assert other.pace(3) == Rates(requests_per_minute=600)
    # That the limit was used up explains a refusal: what is told is right.
    saw(other, 4, limit(600, 3, 55))
    assert not other.refused(4)
    saw(other, 5, limit(600, 450, 15))
    assert other.pace(6).requests_per_minute == pytest.approx(660)


def test_a_limit_that_changes_is_news():
    learner = LimitLearner()
    assert saw(learner, 0, limit(600, 590, 1))
    assert saw(learner, 1, limit(900, 890, 1))
    assert learner.learnt.rates == Rates(requests_per_minute=900)


def test_a_bucket_that_refills_in_a_day_is_no_limit_of_a_minute():
    learner = LimitLearner()
    for used in range(1, 5):
        saw(learner, used, limit(10_000, 10_000 - used, used * 8.64))
    assert learner.learnt.rates == Rates()
    # A window of a minute may look so by chance, once.
    learner = LimitLearner()
    for used in range(1, 5):
        saw(learner, used, limit(1_440, 1_440 - used, 60 - used))
    assert learner.learnt.rates == Rates(requests_per_minute=1_440)


def test_input_and_output_are_limited_apart():
    learner = LimitLearner()
    limits = {"input_tokens": limit(50_000, 10_000, 48), "output_tokens": limit(10_000, 9_000, 6)}
    saw(learner, 0, **limits)
    pace = learner.pace(0)
    assert pace.input_tokens_per_minute == pytest.approx(12_500)
    assert pace.output_tokens_per_minute == pytest.approx(11_000)
    told = Rates(requests_per_minute=60, input_tokens_per_minute=9_000)
    assert told.lower(pace) == Rates(
        requests_per_minute=60,
        input_tokens_per_minute=9_000,
        output_tokens_per_minute=pace.output_tokens_per_minute,
    )


def test_an_older_reply_tells_nothing_of_what_remains():
    learner = LimitLearner()
    learner.saw(SeenLimits(requests=limit(600, 200, 40)), began=5, now=6)
    learner.saw(SeenLimits(requests=limit(600, 590, 1)), began=1, now=7)
    assert learner.pace(7).requests_per_minute == pytest.approx(300)


@pytest.mark.parametrize(
    ("told", "rate"),
    [
        (limit(1, 0, 0.001), 60_000),
        (limit(100, 0, 1.0), 6_000),
        (limit(50, 25, 0.5), 3_000),
        # The bucket of a minute that is nearly full, and windows of a minute.
        (limit(600, 599, 0.1), 600),
        (limit(600, 0, 40), 600),
        (limit(600, 300, 1.0), 600),
    ],
)
def test_a_limit_that_is_there_again_at_once_is_none_of_a_minute(told, rate):
    learner = LimitLearner()
    for number in range(4):
        saw(learner, 100 * number, told, tokens=told)
    assert learner.learnt.rates.requests_per_minute == pytest.approx(rate)
    assert learner.learnt.rates.tokens_per_minute == pytest.approx(rate)


def test_the_end_of_a_window_of_a_minute_does_not_make_it_shorter_for_long():
    learner = LimitLearner()
    for number in range(9):
        saw(learner, number / 10, limit(600, 0, 0.9 - number / 10))
    saw(learner, 1, limit(600, 599, 59.9))
    assert learner.learnt.rates.requests_per_minute == 600


def test_a_provider_that_answers_more_than_its_limit_contradicts_it():
    learner = LimitLearner()
    for number in range(4):
        saw(learner, number, limit(1, 0, 60))
    assert learner.learnt.rates.requests_per_minute == 1, "two windows may have as many"
    saw(learner, 5, limit(1, 0, 60))
    assert not learner.learnt.rates.is_limited
    # So does no call that it refuses, nor one of another minute; and a higher limit is believed anew.
    learner = LimitLearner()
    for number in range(9):
        told = SeenLimits(requests=limit(1, 0, 60))
        learner.saw(told, began=number, now=number, is_answer=False)
        saw(learner, 60 * number, limit(1, 0, 60))
    assert learner.learnt.rates.requests_per_minute == 1
