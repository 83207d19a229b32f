"""What calls cost: prices, and the cost of the usage that a call reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

if TYPE_CHECKING:
    from fanout.core.lanes import Lane
    from fanout.core.records import Usage

__all__ = ["FREE", "Price", "most_usd", "priced"]

_MTOK = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a model, in US dollars per million tokens.

    Attributes:
        input_mtok: Of a prompt, but for the parts that have a price of their own.
        output_mtok: Of an answer, reasoning included.
        cached_input_mtok: Of the part of a prompt that the provider's cache serves; None for the price
            of any other part.
        cache_write_mtok: Of the part that is written to that cache; None as above.
        longer: The prices of a whole call whose prompt has more than a number of tokens, each with
            this number, in ascending order. These have no lanes.
        flex: The price of a call in the flex lane; None if it has none of its own.
        batch: The price of a call in the batch lane; None if it has none of its own.
        is_given: Whether the user gave it: it then holds also where a provider reports a cost.
    """

    input_mtok: float
    output_mtok: float
    cached_input_mtok: float | None = None
    cache_write_mtok: float | None = None
    longer: tuple[tuple[int, Price], ...] = ()
    flex: Price | None = None
    batch: Price | None = None
    is_given: bool = False

    def of(self, lane: Lane, input_tokens: int = 0) -> Price:
        """Return the price of a call in a lane, with a prompt of a length."""
        own: Price | None = None
        if lane != "realtime":
            own = self.flex if lane == "flex" else self.batch
        found = own = own or self
        for above, longer in own.longer:
            if input_tokens > above:
                found = longer
        return found

    @property
    def of_cached(self) -> float:
        """The price of a million tokens that a cache serves."""
        return self.input_mtok if self.cached_input_mtok is None else self.cached_input_mtok

    @property
    def of_written(self) -> float:
        """The price of a million tokens that are written to a cache."""
        return self.input_mtok if self.cache_write_mtok is None else self.cache_write_mtok

    @property
    def is_free(self) -> bool:
        """Whether no call costs anything."""
        own = (self.input_mtok, self.output_mtok, self.of_cached, self.of_written)
        others = (*(one for _, one in self.longer), self.flex, self.batch)
        return not any(own) and all(one is None or one.is_free for one in others)

    def cost(self, usage: Usage, lane: Lane = "realtime") -> float | None:
        """Return the US dollars of one call; None if its tokens are unknown.

        A provider that bills cached tokens apart says how many there were: else there were none.
        """
        prompt, answer = usage.input_tokens, usage.output_tokens
        if prompt is None or answer is None:
            return 0.0 if self.is_free else None
        rates = self.of(lane, prompt)
        return _prompt_usd(usage, prompt, rates) + answer * rates.output_mtok / _MTOK

    def least_usd(self, usage: Usage, lane: Lane = "realtime") -> float:
        """Return what the known tokens of one call cost."""
        prompt, answer = usage.input_tokens, usage.output_tokens or 0
        rates = self.of(lane, prompt or 0)
        prompt_usd = 0.0 if prompt is None else _prompt_usd(usage, prompt, rates)
        return prompt_usd + answer * rates.output_mtok / _MTOK


def _prompt_usd(usage: Usage, tokens: int, rates: Price) -> float:
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    if not cached and not written:
        return tokens * rates.input_mtok / _MTOK
    plain = max(0, tokens - cached - written)
    usd = plain * rates.input_mtok + cached * rates.of_cached + written * rates.of_written
    return usd / _MTOK


# The price of a model that runs on the own machines.
FREE = Price(input_mtok=0.0, output_mtok=0.0)


def most_usd(
    price: Price, input_tokens: int, max_output_tokens: int, lane: Lane = "realtime"
) -> float:
    """Return the most US dollars that a call can cost with at most this many tokens.

    Its whole prompt may be written to a cache, and it may be cheaper if it is longer.
    """
    own = price.of(lane)
    usd = _most_at(own, input_tokens, max_output_tokens)
    for above, longer in own.longer:
        if input_tokens > above:
            usd = max(usd, _most_at(longer, input_tokens, max_output_tokens))
    return usd / _MTOK


def _most_at(price: Price, input_tokens: int, max_output_tokens: int) -> float:
    """Return the most that a call can cost at one price, in millionths of a US dollar."""
    rate = price.input_mtok
    for own in (price.cached_input_mtok, price.cache_write_mtok):
        if own is not None and own > rate:
            rate = own
    return input_tokens * rate + max_output_tokens * price.output_mtok


def priced(usage: Usage, price: Price | None, lane: Lane = "realtime") -> Usage:
    """Return the usage of one call with its cost.

    A cost that the provider reports stays, unless the user gave the price. Where the cost is
    unknown, that of the known tokens becomes the known part.
    """
    if price is None or (usage.cost_usd is not None and not price.is_given):
        return usage
    cost_usd = price.cost(usage, lane)
    if cost_usd is not None:
        return structs.replace(usage, cost_usd=cost_usd)
    least_usd = price.least_usd(usage, lane)
    if not least_usd:
        return usage if usage.cost_usd is None else structs.replace(usage, cost_usd=None)
    at_least = {**usage.at_least, "cost_usd": least_usd}
    return structs.replace(usage, cost_usd=None, at_least=at_least)
