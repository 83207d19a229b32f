from __future__ import annotations

import random

import pytest

from fanout.core.records import Usage, total_usage
from fanout.policy.pricing import FREE, Price, most_usd, priced

LONG = Price(input_mtok=6.0, output_mtok=22.5, cached_input_mtok=0.6, cache_write_mtok=7.5)
PRICE = Price(
    input_mtok=3.0,
    output_mtok=15.0,
    cached_input_mtok=0.3,
    cache_write_mtok=3.75,
    longer=((200_000, LONG),),
    batch=Price(input_mtok=1.5, output_mtok=7.5, cached_input_mtok=0.15, cache_write_mtok=1.875),
)
PLAIN = Price(input_mtok=2.0, output_mtok=8.0)


def used(prompt, answer, cached=None, written=None):
    return Usage(
        calls=1,
        input_tokens=prompt,
        output_tokens=answer,
        cached_input_tokens=cached,
        cache_write_tokens=written,
    )


@pytest.mark.parametrize(
    ("price", "usage", "lane", "usd"),
    [
        (PRICE, used(1_000, 100), "realtime", 0.0045),
        (PRICE, used(1_000, 100, 0, 0), "realtime", 0.0045),
        # The parts of a prompt that a cache served, or that were written to it.
        (PRICE, used(1_000, 0, 600), "realtime", (400 * 3 + 600 * 0.3) / 1e6),
        (PRICE, used(1_000, 0, 600, 300), "realtime", (100 * 3 + 600 * 0.3 + 300 * 3.75) / 1e6),
        (PRICE, used(1_000, 100, 600), "batch", (400 * 1.5 + 600 * 0.15 + 100 * 7.5) / 1e6),
        # A lane without a price of its own costs as much as any other call.
        (PRICE, used(1_000, 100), "flex", 0.0045),
        # A price without a price of cached tokens.
        (PLAIN, used(1_000, 100, 600, 300), "realtime", 0.0028),
        # The whole call of a longer prompt costs more.
        (PRICE, used(200_000, 0), "realtime", 0.6),
        (PRICE, used(200_001, 100), "realtime", (200_001 * 6 + 100 * 22.5) / 1e6),
        (FREE, used(None, None), "realtime", 0.0),
        (PLAIN, used(None, 5), "realtime", None),
        (PLAIN, used(5, None), "realtime", None),
    ],
)
def test_a_call_costs_what_the_provider_bills(price, usage, lane, usd):
    assert price.cost(usage, lane) == pytest.approx(usd)
    with_cost = priced(usage, price, lane)
    assert with_cost.cost_usd == pytest.approx(usd)
    assert with_cost.input_tokens == usage.input_tokens


def test_a_cost_that_the_provider_reports_stays_unless_the_user_gave_the_price():
    usage = Usage(calls=1, input_tokens=10, output_tokens=10, cost_usd=0.5)
    given = Price(input_mtok=2.0, output_mtok=8.0, is_given=True)
    assert priced(usage, PLAIN).cost_usd == 0.5
    assert priced(usage, None) is usage
    assert priced(usage, given).cost_usd == pytest.approx(0.0001)


def test_the_known_part_of_a_cost_is_kept():
    cut = priced(used(1_000, None), PLAIN)
    assert cut.cost_usd is None
    assert cut.at_least == {"cost_usd": pytest.approx(0.002)}
    whole = priced(used(1_000, 100), PLAIN)
    both = total_usage([cut, whole])
    assert both.cost_usd is None
    assert both.known("cost_usd") == pytest.approx(0.0048)
    assert priced(Usage(calls=1), PLAIN) == Usage(calls=1)


def test_no_call_costs_more_than_the_most():
    rng = random.Random(5)
    for _ in range(500):
        rates = [rng.choice([None, rng.uniform(0, 9)]) for _ in range(4)]
        one = Price(
            input_mtok=rng.uniform(0, 9),
            output_mtok=rng.uniform(0, 9),
            cached_input_mtok=rates[0],
            cache_write_mtok=rates[1],
        )
        price = Price(
            input_mtok=rng.uniform(0, 9),
            output_mtok=rng.uniform(0, 9),
            cached_input_mtok=rates[2],
            cache_write_mtok=rates[3],
            longer=((50, one),),
            batch=rng.choice([None, one]),
        )
        prompt, answer = rng.randint(1, 100), rng.randint(0, 50)
        real = rng.randint(0, prompt)
        cached = rng.randint(0, real)
        usage = used(real, rng.randint(0, answer), cached, rng.randint(0, real - cached))
        for lane in ("realtime", "flex", "batch"):
            assert price.cost(usage, lane) <= most_usd(price, prompt, answer, lane) + 1e-12
