"""The lanes: how calls are bought."""

from __future__ import annotations

from typing import Literal

__all__ = ["FLEX_TIMEOUT_S", "Lane", "LaneChoice", "first_lane", "lane_of", "takes_lane"]

# ``flex`` is cheaper and slower, and ``batch`` is answered within a day, at about half the price.
Lane = Literal["realtime", "flex", "batch"]
# ``auto`` is batch, until a branch would be late for the deadline of its run.
LaneChoice = Literal["realtime", "flex", "batch", "auto"]

# Source: OpenAI's guide of flex processing, which advises 15 minutes.
FLEX_TIMEOUT_S = 900.0

_ANY: tuple[LaneChoice, ...] = ("realtime", "flex", "batch", "auto")
# Anthropic has no flex. An OpenAI-compatible server says itself what it lacks.
_LANES: dict[str, tuple[LaneChoice, ...]] = {
    "openai": _ANY,
    "gemini": _ANY,
    "anthropic": ("realtime", "batch", "auto"),
}


def takes_lane(model: str, lane: LaneChoice) -> bool:
    """Say whether the calls of a model can be bought so."""
    if lane == "realtime":
        return True
    provider, slash, _ = model.partition("/")
    return bool(slash) and lane in _LANES.get(provider, ())


def lane_of(tier: object) -> Lane | None:
    """Return the lane of a provider's service tier; None if it names none."""
    if not isinstance(tier, str) or not tier or tier == "auto":
        return None
    return "flex" if tier.lower() == "flex" else "realtime"


def first_lane(lane: LaneChoice) -> Lane:
    """Return the lane in which the calls of a run begin."""
    return "batch" if lane == "auto" else lane
