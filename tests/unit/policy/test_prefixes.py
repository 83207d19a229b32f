"""Where a provider's prompt cache pays: tables of lengths, calls and prices."""

import pytest

from fanout.policy.prefixes import CacheRules, Prefix, cache_rules, marked, pays
from fanout.policy.pricing import FREE, Price

AUTOMATIC = CacheRules(read=0.1)
SONNET = CacheRules(is_marked=True, write=1.25, read=0.1)
PRICE = Price(input_mtok=2, output_mtok=8, cached_input_mtok=0.2, cache_write_mtok=2.5)


@pytest.mark.parametrize(
    ("model", "shortest", "is_marked"),
    [
        ("openai/gpt-5-mini", 1_024, False),
        ("litellm/openai/gpt-5", 1_024, False),
        ("litellm/deepseek/deepseek-chat", 1_024, False),
        ("gemini/gemini-2.5-flash", 1_024, False),
        ("gemini/gemini-2.5-pro", 4_096, False),
        ("anthropic/claude-sonnet-4-5-20250929", 1_024, True),
        ("anthropic/claude-haiku-4-5", 4_096, True),
        ("anthropic/claude-opus-4-5", 4_096, True),
        ("anthropic/claude-opus-4-1", 1_024, True),
        ("anthropic/claude-3-5-haiku-latest", 2_048, True),
    ],
)
def test_each_provider_has_its_own_rules(model, shortest, is_marked):
    rules = cache_rules(model, PRICE)
    assert (rules.shortest_tokens, rules.is_marked) == (shortest, is_marked)
    assert rules.read == pytest.approx(0.1)
    assert rules.write == (1.25 if is_marked else 1.0)


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("openai/gpt-5", None),
        ("openai/gpt-5", FREE),
        ("openai/gpt-3.5-turbo", Price(input_mtok=1, output_mtok=2)),
        ("litellm/anthropic/claude-sonnet-4-5", PRICE),
        ("litellm/mistral/x", PRICE),
        ("local", PRICE),
        ("fake?answer=openai/x", PRICE),
        ("package.module:function", PRICE),
    ],
)
def test_where_nothing_is_known_of_a_cache_none_is_used(model, price):
    assert cache_rules(model, price) is None


@pytest.mark.parametrize(
    ("rules", "tokens", "calls", "lane", "expected"),
    [
        (AUTOMATIC, 1_023, 3, "realtime", False),
        (AUTOMATIC, 1_024, 3, "realtime", True),
        (AUTOMATIC, 1_024, 2, "realtime", True),
        (AUTOMATIC, 9_000, 1, "realtime", False),
        (AUTOMATIC, 9_000, 0, "realtime", False),
        (AUTOMATIC, 9_000, 3, "flex", True),
        (AUTOMATIC, 9_000, 3, "batch", True),
        (SONNET, 9_000, 2, "realtime", True),
        (SONNET, 1_023, 9, "realtime", False),
        # In a batch, most of a few siblings write as well.
        (SONNET, 9_000, 3, "batch", False),
        (SONNET, 9_000, 4, "batch", True),
        (SONNET, 9_000, 500, "batch", True),
        # What is written costs so much that two calls do not pay for it.
        (CacheRules(is_marked=True, write=2.0, read=0.1), 9_000, 2, "realtime", False),
        (CacheRules(is_marked=True, write=2.0, read=0.1), 9_000, 3, "realtime", True),
        (CacheRules(is_marked=True, write=1.25, read=1.0), 9_000, 9, "realtime", False),
    ],
)
def test_a_prefix_pays_if_it_is_long_enough_and_read_often_enough(
    rules, tokens, calls, lane, expected
):
    assert pays(rules, Prefix(tokens=tokens, calls=calls), lane) is expected


@pytest.mark.parametrize(
    ("rules", "prefixes", "expected"),
    [
        (AUTOMATIC, [Prefix(tokens=9_000, calls=3, end=7)], ()),
        (SONNET, [], ()),
        (SONNET, [Prefix(tokens=9_000, calls=3, end=7)], (7,)),
        (
            SONNET,
            [Prefix(tokens=9_000, calls=3, end=7), Prefix(tokens=2_000, calls=50, end=0)],
            (0, 7),
        ),
        (SONNET, [Prefix(tokens=900, calls=50), Prefix(tokens=2_000, calls=1, end=9)], ()),
        (SONNET, [Prefix(tokens=9_000, calls=9, end=n) for n in range(9)], (0, 1, 2, 3)),
    ],
)
def test_what_pays_is_marked(rules, prefixes, expected):
    assert marked(rules, prefixes) == expected
