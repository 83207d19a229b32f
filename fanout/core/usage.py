"""What calls have used: tokens, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["NO_CALL", "QUANTITIES", "Usage", "rounded_usd", "share_of", "total_saved", "total_usage",
           "usage_by_model"]  # fmt: skip


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The usage of calls. An unknown value is None, never 0; a sum with an unknown is unknown.

    Attributes:
        calls: Calls made, retries included.
        input_tokens: Tokens of the prompts, those read from a provider's cache or written to it too.
        cached_input_tokens: The part of them that a provider's cache served.
        cache_write_tokens: The part of them that was written to a provider's cache.
        output_tokens: Tokens of the answers, reasoning included.
        reasoning_tokens: The part of them that was reasoning.
        cost_usd: US dollars.
        at_least: Of each sum that is unknown, the part that is known, by the name of its field; one
            without a known part is missing.
    """

    calls: int = 0
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    at_least: dict[str, float] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, dollars without the noise of sums of floats; unknown values are None."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["cost_usd"] = rounded_usd(self.cost_usd)
        if "cost_usd" in self.at_least:
            fields["at_least"] = {
                **self.at_least,
                "cost_usd": rounded_usd(self.at_least["cost_usd"]),
            }
        return fields

    def known(self, name: str) -> float:
        """Return a quantity, or the known part of an unknown one; 0 if nothing of it is known."""
        value = getattr(self, name)
        return self.at_least.get(name, 0) if value is None else value


def rounded_usd(usd: float | None) -> float | None:
    """Return dollars to a millionth of a millionth, or None."""
    return None if usd is None else round(usd, 12)


# What a call consumes, by the names of fields of Usage: all but the number of calls.
QUANTITIES = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
)


# No call at all.
NO_CALL = Usage(
    input_tokens=0,
    cached_input_tokens=0,
    cache_write_tokens=0,
    output_tokens=0,
    reasoning_tokens=0,
    cost_usd=0.0,
)


def share_of(votes: Mapping[str, int]) -> float | None:
    """Return the share of the first answer among the votes of a branch; None if it has none."""
    return next(iter(votes.values())) / sum(votes.values()) if votes else None


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Add up usages; a sum with an unknown value is unknown.

    What made no call has consumed nothing: it makes no sum unknown, and no calls have a sum of 0.
    """
    if len(usages) == 1 and usages[0].calls:
        return usages[0]
    usages = [usage for usage in usages if usage.calls or usage.cost_usd is not None]
    if not usages:
        return NO_CALL

    sums: dict[str, Any] = {}
    at_least: dict[str, float] = {}
    for name in QUANTITIES:
        known = sum(usage.known(name) for usage in usages)
        if all(getattr(usage, name) is not None for usage in usages):
            sums[name] = known
        elif known:
            at_least[name] = known
    return Usage(calls=sum(usage.calls for usage in usages), at_least=at_least, **sums)


def total_saved(parts: Iterable[Usage]) -> Usage:
    """Add up what kept answers had cost; nothing is saved where there are none."""
    return total_usage([part for part in parts if part.calls])


def usage_by_model(usages: Iterable[Mapping[str, Usage]]) -> dict[str, Usage]:
    """Add up usages by model."""
    found: dict[str, list[Usage]] = {}
    for one in usages:
        for model, usage in one.items():
            found.setdefault(model, []).append(usage)
    return {model: total_usage(some) for model, some in found.items()}
