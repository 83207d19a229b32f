"""What the mock providers charge, in dollars, by the prices that they publish.

This arithmetic is apart from fanout's own on purpose: a benchmark compares the two.
Sources: https://platform.openai.com/docs/pricing and
https://platform.claude.com/docs/en/about-claude/pricing
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

__all__ = ["PRICES", "Ledger", "Price", "Tokens", "count_tokens"]

_BYTES_PER_TOKEN = 4
_MILLION = 1_000_000
_LANES = {"realtime": Fraction(1), "flex": Fraction(1, 2), "batch": Fraction(1, 2)}


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a call, each counted once."""

    fresh: int
    cached: int = 0
    written: int = 0
    written_1h: int = 0
    output: int


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars for a million tokens, as text, and the shortest prefix that a cache takes.

    Attributes:
        written: Tokens written to a cache for five minutes; those for an hour cost 1.6 times that.
        shortest: Tokens of the shortest prefix that is cached.
        is_halved: Whether flex and batches also halve the price of cached tokens. The price list of
            other models has none for these: the lower of this price and half of the fresh one holds.
    """

    fresh: str
    cached: str
    output: str
    written: str = "0"
    shortest: int = 1_024
    is_halved: bool = True

    def usd(self, tokens: Tokens, lane: str) -> Fraction:
        """Return what a call costs."""
        share, written = _LANES[lane], Fraction(self.written)
        fresh, cached = Fraction(self.fresh) * share, Fraction(self.cached)
        cached = cached * share if self.is_halved else min(cached, fresh)
        parts = (
            tokens.fresh * fresh,
            tokens.cached * cached,
            (tokens.written + tokens.written_1h * Fraction(8, 5)) * written * share,
            tokens.output * Fraction(self.output) * share,
        )
        return sum(parts, Fraction(0)) / _MILLION


PRICES = {
    "gpt-4o-mini": Price(fresh="0.15", cached="0.075", output="0.60", is_halved=False),
    "gpt-4.1-mini": Price(fresh="0.40", cached="0.10", output="1.60", is_halved=False),
    "gpt-5-mini": Price(fresh="0.25", cached="0.025", output="2.00"),
    "gpt-5": Price(fresh="1.25", cached="0.125", output="10.00"),
    "claude-sonnet-4-5": Price(fresh="3", written="3.75", cached="0.30", output="15"),
    "claude-haiku-4-5": Price(fresh="1", written="1.25", cached="0.10", output="5", shortest=4_096),
}


def count_tokens(text: bytes) -> int:
    """Return the tokens of a text: one for each four bytes, begun ones included."""
    return -(-len(text) // _BYTES_PER_TOKEN)


@dataclass
class Ledger:
    """What was charged since the last reset."""

    usd: Fraction = Fraction(0)
    calls: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def charge(self, model: str, tokens: Tokens, lane: str) -> None:
        """Charge a call."""
        self.usd += PRICES[model].usd(tokens, lane)
        self.calls[lane] = self.calls.get(lane, 0) + 1
        for name, count in vars(tokens).items():
            self.tokens[name] = self.tokens.get(name, 0) + count

    def to_dict(self) -> dict[str, Any]:
        """Return dollars, calls by lane, and tokens by what they cost."""
        return {"usd": float(self.usd), "calls": dict(self.calls), "tokens": dict(self.tokens)}
