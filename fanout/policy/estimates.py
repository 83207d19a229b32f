"""What a run will use, as ranges: pure functions of counts, prices and limits."""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from fanout.core.records import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fanout.core.lanes import Lane
    from fanout.core.rate_limits import LimitState, Rates
    from fanout.policy.pricing import Price
    from fanout.policy.token_ratio import TokenSums

__all__ = [
    "Calls",
    "LaneEstimate",
    "Projection",
    "answer_range",
    "any_of",
    "cost_range",
    "is_telling",
    "known_most",
    "known_sum",
    "likely_answer",
    "likely_cost",
    "models_of",
    "project",
    "tightest",
    "time_range",
]

# A mean is worth something from so many answers on; the total is within this factor of it.
_SEEN = 10
_WITHIN = 2.0
_MINUTE_S = 60.0
# Tokens of an answer, as long as none of the model was seen.
_ASSUMED_ANSWER_TOKENS = 500.0


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of a model, and their tokens, each as a range, and what is likely of it.

    An upper end of tokens out that is unknown is None; calls and tokens in are infinite where nothing
    limits them.
    """

    calls_low: float = 0
    calls_likely: float = 0
    calls_high: float = 0
    input_low: float = 0
    input_likely: float = 0
    input_high: float = 0
    output_low: float = 0
    output_likely: float = 0
    output_high: float | None = 0

    def plus(self, other: Calls) -> Calls:
        """Return both together."""
        high = None
        if self.output_high is not None and other.output_high is not None:
            high = self.output_high + other.output_high
        return Calls(
            calls_low=self.calls_low + other.calls_low,
            calls_likely=self.calls_likely + other.calls_likely,
            calls_high=self.calls_high + other.calls_high,
            input_low=self.input_low + other.input_low,
            input_likely=self.input_likely + other.input_likely,
            input_high=self.input_high + other.input_high,
            output_low=self.output_low + other.output_low,
            output_likely=self.output_likely + other.output_likely,
            output_high=high,
        )


def any_of(found: Sequence[tuple[float, Calls]]) -> Calls:
    """Return the range over several ways, each with its share: the least, the mean and the most."""
    highs = [one.output_high for _, one in found]
    return Calls(
        calls_low=min(one.calls_low for _, one in found),
        calls_likely=sum(share * one.calls_likely for share, one in found),
        calls_high=max(one.calls_high for _, one in found),
        input_low=min(one.input_low for _, one in found),
        input_likely=sum(share * one.input_likely for share, one in found),
        input_high=max(one.input_high for _, one in found),
        output_low=min(one.output_low for _, one in found),
        output_likely=sum(share * one.output_likely for share, one in found),
        output_high=None if None in highs else max(one for one in highs if one is not None),
    )


class LaneEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a run costs in a lane, and how long it takes.

    Attributes:
        lane: How the calls are bought.
        cost_usd_low: The least; None if a price is unknown.
        cost_usd_likely: With answers as long as those of the model so far, or, if none was seen, of 500
            tokens where they may be so long; None if a price is unknown.
        cost_usd_high: The most; None if a price is unknown, or the length of an answer has no limit.
        time_s_low: The least seconds by the limits that are known; None if none is, or in a batch.
        time_s_high: The most by these; None in flex, too, where calls may wait long.
    """

    lane: Lane
    cost_usd_low: float | None
    cost_usd_likely: float | None
    cost_usd_high: float | None
    time_s_low: float | None = None
    time_s_high: float | None = None


def is_telling(seen: TokenSums) -> bool:
    """Return whether the answers of a model so far say how long further ones are."""
    return seen.answers >= _SEEN


def answer_range(
    *, least: float, most: float | None, seen: TokenSums
) -> tuple[float, float | None]:
    """Return the fewest and the most tokens of an answer on average.

    Args:
        least: The fewest that it can have.
        most: The most that it can have; None if there is no limit.
        seen: The answers of the model so far, of any job.
    """
    if not is_telling(seen):
        return least, most
    mean = seen.output_tokens / seen.answers
    high = max(mean * _WITHIN, least)
    low = max(mean / _WITHIN, least)
    return (low, high) if most is None else (min(low, most), min(high, most))


def likely_answer(*, least: float, most: float | None, seen: TokenSums) -> float:
    """Return the tokens that an answer likely has on average; see ``answer_range``."""
    mean = seen.output_tokens / seen.answers if seen.answers else _ASSUMED_ANSWER_TOKENS
    found = max(mean, least)
    return found if most is None else min(found, most)


def likely_cost(price: Price | None, calls: Calls, lane: Lane) -> float | None:
    """Return the US dollars that calls likely cost; None if that is unknown."""
    if price is None:
        return None
    return _cost(price, calls.calls_likely, calls.input_likely, calls.output_likely, lane)


def cost_range(price: Price | None, calls: Calls, lane: Lane) -> tuple[float | None, float | None]:
    """Return the least and the most US dollars that calls cost; None where that is unknown."""
    if price is None:
        return None, None
    low = _cost(price, calls.calls_low, calls.input_low, calls.output_low, lane)
    if price.is_free:
        return 0.0, 0.0
    if calls.output_high is None:
        return low, None
    return low, _cost(price, calls.calls_high, calls.input_high, calls.output_high, lane)


def _cost(price: Price, calls: float, tokens_in: float, tokens_out: float, lane: Lane) -> float:
    """Return the cost of calls of average length."""
    if not calls:
        return 0.0
    usage = Usage(
        calls=1, input_tokens=round(tokens_in / calls), output_tokens=round(tokens_out / calls)
    )
    own = price.of(lane, usage.input_tokens or 0)
    return (tokens_in * own.input_mtok + tokens_out * own.output_mtok) / 1e6


def tightest(told: Rates, learnt: LimitState, places: int | None) -> tuple[Rates, int | None]:
    """Return the rates and the places of calls, by the job and workers and by what a fleet has learnt."""
    rates = told if learnt.learnt is None else told.lower(learnt.learnt)
    return rates, min((one for one in (places, learnt.calls_at_once) if one), default=None)


def models_of(
    calls: Mapping[tuple[str, str], Calls], reduced: Iterable[tuple[str, Calls]]
) -> dict[str, Calls]:
    """Return calls by model, with those of reduces, which come with their models."""
    found: dict[str, Calls] = {}
    for (_, model), one in calls.items():
        found[model] = found.get(model, Calls()).plus(one)
    for model, one in reduced:
        if one.calls_high:
            found[model] = found.get(model, Calls()).plus(one)
    return found


def time_range(
    calls: Calls,
    *,
    rates: Rates,
    places: int | None,
    call_s: float | None,
    in_turn: tuple[float, float] = (1.0, 1.0),
) -> tuple[float | None, float | None]:
    """Return the least and the most seconds that calls take by the limits that are known.

    No run is faster than one call.

    Args:
        calls: The calls of one model.
        rates: Its limits, told and learnt.
        places: How many calls may be in flight; None if that is unknown.
        call_s: How long a call has taken on average; None if that is unknown.
        in_turn: How many calls follow each other, at least and at most.
    """
    low: list[float] = []
    high: list[float | None] = []
    out = calls.output_high
    all_tokens = None if out is None else calls.input_high + out
    for rate, least, most in (
        (rates.requests_per_minute, calls.calls_low, calls.calls_high),
        (rates.tokens_per_minute, calls.input_low + calls.output_low, all_tokens),
        (rates.input_tokens_per_minute, calls.input_low, calls.input_high),
        (rates.output_tokens_per_minute, calls.output_low, out),
    ):
        if rate:
            low.append(least * _MINUTE_S / rate)
            high.append(None if most is None else most * _MINUTE_S / rate)
    if places and call_s:
        low.append(ceil(calls.calls_low / places) * call_s)
        high.append(ceil(calls.calls_high / places) * call_s)
    if call_s and low:
        low.append(call_s * in_turn[0] if calls.calls_low else 0.0)
        high.append(call_s * in_turn[1] if calls.calls_high else 0.0)
    known = [one for one in high if one is not None]
    return max(low, default=None), max(known) if known and len(known) == len(high) else None


def known_sum(values: Sequence[float | None]) -> float | None:
    """Return the sum of values; None if one is unknown."""
    known = [one for one in values if one is not None]
    return sum(known) if len(known) == len(values) else None


def known_most(values: Sequence[float | None]) -> float | None:
    """Return the largest of values; None if one is unknown, or there is none."""
    known = [one for one in values if one is not None]
    return max(known) if known and len(known) == len(values) else None


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """A sum over all chunks, by a sample of them, with its 95 % interval.

    One chunk of several has no interval: its ends are None.
    """

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the three numbers."""
        return structs.asdict(self)


# The 97.5th percentile of Student's distribution by degrees of freedom; between them, the next smaller.
_STUDENT = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 12: 2.179, 15: 2.131, 19: 2.093, 24: 2.064, 29: 2.045, 39: 2.023, 59: 2.001, 119: 1.980,
}  # fmt: skip


def project(values: Sequence[float], total: int) -> Projection | None:
    """Return the sum over ``total`` chunks by the values of a random sample; None if it is empty.

    The interval is Student's, with the correction for a finite population: a sample of all chunks has
    no error. (W. G. Cochran, Sampling Techniques, 1977, chapter 2.)
    """
    size = len(values)
    if not size:
        return None
    mean = sum(values) / size
    if size >= total:
        return Projection(value=mean * total, low=mean * total, high=mean * total)
    if size == 1:
        return Projection(value=mean * total, low=None, high=None)
    variance = sum((one - mean) ** 2 for one in values) / (size - 1)
    t = _STUDENT[max(freedom for freedom in _STUDENT if freedom <= size - 1)]
    margin = t * total * sqrt(variance / size * (1 - size / total))
    seen = sum(values)
    value = mean * total
    # The others cost something, too: at least nothing.
    return Projection(value=value, low=max(seen, value - margin), high=value + margin)
