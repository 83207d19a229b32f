"""What answers from the response cache have saved, in records and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.units import cost_of
from fanout.core.usage import rounded_usd

if TYPE_CHECKING:
    from fanout.core.records import Usage

__all__ = ["Savings", "saved_parts", "saved_row"]


class Savings:
    """A record with ``saved``: what its answers from the cache had cost; ``calls`` is their number."""

    __slots__ = ()

    if TYPE_CHECKING:
        saved: Usage

    @property
    def cached(self) -> int:
        """The number of answers that came from the cache."""
        return self.saved.calls

    @property
    def saved_usd(self) -> float | None:
        """What that saved, in US dollars; 0 without such an answer, None if it is unknown."""
        return self.saved.cost_usd


def saved_row(saved: Usage) -> dict[str, Any]:
    """Return what answers from the cache have saved, as JSON-able values.

    ``cached`` is their number, ``saved_usd`` what they had cost (None if unknown), ``saved`` all of it.
    """
    return {
        "cached": saved.calls,
        "saved_usd": rounded_usd(saved.cost_usd),
        "saved": saved.to_dict(),
    }


def saved_parts(saved: Usage) -> list[str]:
    """Return what to say of answers that came from the cache; nothing if none did."""
    if not saved.calls:
        return []
    parts = [f"{saved.calls:,} cached"]
    if saved.known("cost_usd"):
        parts.append(f"{cost_of(saved)} saved")
    return parts
