"""The tokens of a text are learnt from the calls of a model."""

from __future__ import annotations

import math
import random

import pytest

from fanout.core.tokens import estimate_tokens, utf8_bytes
from fanout.policy.token_ratio import (
    KINDS,
    TokenRatio,
    TokenSums,
    bytes_by_kind,
    kept_ratio,
    script_of,
)

TEXTS = {
    "words": "The quick brown fox jumps over the lazy dog, and then it sleeps. ",
    "han": "人人生而自由，在尊严和权利上一律平等。",  # noqa: RUF001
    "latin": "Все люди рождаются свободными и равными. ",  # noqa: RUF001
    "code": "def f(x):\n    return {x: [1, 22]}\n",
    "others": "すべての人間は、生まれながらにして自由である。",
}
# A tokenizer that is nothing like four bytes a token; by kind.
WEIGHTS = {
    "calls": 11, "lower": 0.2, "upper": 0.5, "digits": 1.0, "spaces": 0.1, "indents": 0.05,
    "marks": 0.6, "latin": 0.4, "han": 0.33, "others": 0.5, "shapes": 0.0,
}  # fmt: skip


def counted(texts, shape_bytes=0):
    kinds = bytes_by_kind(texts, shape_bytes=shape_bytes)
    return round(sum(WEIGHTS[name] * count for name, count in zip(KINDS, kinds, strict=True)))


def learnt(prompts):
    return TokenRatio.fitted(
        TokenSums.total(
            [TokenSums.of_call(bytes_by_kind([one]), counted([one])) for one in prompts]
        )
    )


def prompts_of(text, count, seed=1):
    chance = random.Random(seed)
    words = text.split(" ") if " " in text else [*text]
    return [" ".join(chance.choices(words, k=chance.randint(20, 400))) for _ in range(count)]


@pytest.mark.parametrize("text", [*TEXTS.values(), "", "\ud800 lone", "a" * 9, "🦊 four"])
def test_each_byte_is_of_one_kind(text):
    kinds = bytes_by_kind((text, text))
    assert sum(kinds) == 1 + 2 * utf8_bytes(text)
    assert min(kinds) >= 0


@pytest.mark.parametrize("text", TEXTS.values())
def test_without_calls_it_is_a_quarter_of_the_bytes(text):
    assert TokenRatio().tokens([text]) == estimate_tokens(text)
    assert TokenRatio().bytes_per_token(text) == 4
    assert TokenRatio.fitted(TokenSums()) == TokenRatio()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_after_200_calls_it_is_right_within_5_percent(text):
    ratio = learnt(prompts_of(text, 200))
    for prompt in prompts_of(text, 50, seed=2):
        assert ratio.tokens([prompt]) == pytest.approx(counted([prompt]), rel=0.05)


def test_calls_in_several_languages_make_it_right_for_each():
    ratio = learnt([one for text in TEXTS.values() for one in prompts_of(text, 60)])
    for text in TEXTS.values():
        prompts = prompts_of(text, 20, seed=3)
        expected = sum(ratio.tokens([prompt]) for prompt in prompts)
        assert expected == pytest.approx(sum(counted([one]) for one in prompts), rel=0.05)


def test_what_was_never_seen_stays_near_the_estimate():
    ratio = learnt(prompts_of(TEXTS["words"], 200))
    assert 2 <= ratio.bytes_per_token(TEXTS["han"] * 20) <= 6


def test_a_schema_that_is_not_counted_is_told_from_the_prompt():
    chance = random.Random(1)
    calls = [
        (bytes_by_kind(["x" * chance.randint(100, 900)], shape_bytes=size), size)
        for size in chance.choices((0, 400, 2_000), k=200)
    ]
    sums = [TokenSums.of_call(kinds, round(kinds[1] / 5) + 7) for kinds, _ in calls]
    ratio = TokenRatio.fitted(TokenSums.total(sums))
    assert ratio.tokens(["x" * 500], shape_bytes=2_000) == pytest.approx(107, rel=0.05)
    assert ratio.tokens(["x" * 500]) == pytest.approx(107, rel=0.05)


def test_absurd_usage_does_not_make_absurd_estimates():
    sums = [TokenSums.of_call(bytes_by_kind(["word " * 50]), 10**9) for _ in range(5)]
    ratio = TokenRatio.fitted(TokenSums.total(sums))
    assert 0 < ratio.tokens(["word"]) < 10**9
    assert all(map(math.isfinite, ratio.weights))


@pytest.mark.parametrize("numbers", [[], [1.0], [math.nan] * len(TokenSums().numbers)])
def test_damaged_sums_are_none(numbers):
    assert TokenSums.of_numbers(numbers) == TokenSums()


def test_sums_survive_their_numbers():
    sums = TokenSums.of_call(bytes_by_kind([TEXTS["code"]]), 33, output_tokens=5, elapsed_s=1.5)
    assert TokenSums.of_numbers(sums.numbers) == sums
    total = TokenSums.total([sums, sums])
    assert (total.calls, total.output_tokens, total.answers, total.elapsed_s) == (2, 10, 2, 3.0)
    assert total.output_squares == 50


@pytest.mark.parametrize(
    ("kept", "learnt", "used"),
    [
        (None, 4.4, 4.0),  # near the estimate: chunks keep their boundaries
        (None, 3.4, 4.0),
        (None, 1.5, 1.5),
        (1.5, 1.6, 1.5),
        (1.5, 1.25, 1.5),
        (1.5, 2.0, 2.0),
        (None, 24.0, 8.0),  # not all tokens were counted
    ],
)
def test_boundaries_move_only_for_a_ratio_that_is_far_off(kept, learnt, used):
    assert kept_ratio(kept, learnt) == used


@pytest.mark.parametrize(("script", "text"), TEXTS.items(), ids=TEXTS)
def test_the_script_is_what_most_of_a_text_is(script, text):
    assert script_of(text) == script
    assert script_of("") == "words"
