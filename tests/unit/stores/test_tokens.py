"""What the fleet knows of its models' tokens."""

from __future__ import annotations

import math

from fanout.policy.token_ratio import MOST_CALLS, TokenSums, bytes_by_kind

CALL = TokenSums.of_call(bytes_by_kind(["Hello, world"]), 9, output_tokens=4, elapsed_s=0.25)


def test_sums_of_workers_are_added_by_model(store):
    assert store.token_sums("m") == TokenSums()
    assert store.add_token_sums("m", CALL) == CALL
    both = store.add_token_sums("m", CALL)
    assert both == TokenSums.total([CALL, CALL])
    assert store.token_sums("m") == both
    assert store.token_sums("other") == TokenSums()


def test_long_ago_counts_less(store):
    for _ in range(12):
        known = store.add_token_sums("m", TokenSums.total([CALL] * 500))
        assert known.calls <= MOST_CALLS
    assert math.isclose(known.output_tokens / known.answers, 4)


def test_damaged_or_other_sums_are_begun_anew(store):
    for damaged in ("1 2 3", "x y", ""):
        store._redis.hset(store._tokens, "m", damaged)
        assert store.token_sums("m") == TokenSums()
        assert store.add_token_sums("m", CALL) == CALL


def test_the_ratio_that_texts_were_cut_by_is_kept_by_script(store):
    assert store.cut_ratio("m", "han") is None
    store.keep_cut_ratio("m", "han", 1.5)
    assert store.cut_ratio("m", "han") == 1.5
    assert store.cut_ratio("m", "words") is None
    assert store._redis.ttl(store._cut_ratios) > 0, "no key stays for ever"
    store._redis.hset(store._cut_ratios, "han m", "damaged")
    assert store.cut_ratio("m", "han") is None
