"""The budgets of a fleet for a day, by models, as the settings of workers give them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fanout.core.budgets import LEAST_BUDGET, BudgetLimits, is_counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ALL_MODELS", "day_limits", "matching", "parse_amounts"]

# All models together.
ALL_MODELS = "*"
_FORM = "a number for all models together, or MODEL=NUMBER, where a * at the end fits any rest"


def parse_amounts(text: str, *, is_whole: bool) -> dict[str, float]:
    """Return the numbers by model of a setting such as ``100,openai/*=20``. Raises ValueError."""
    amounts: dict[str, float] = {}
    for entry in text.split(","):
        model, _, number = entry.strip().rpartition("=")
        name = model.strip() or ALL_MODELS
        try:
            amount = float(number)
        except ValueError:
            amount = math.nan
        if not 0 < amount < math.inf or (is_whole and amount % 1):
            kind = "a whole number above 0" if is_whole else "a number above 0"
            msg = f"{entry.strip()!r} must be {kind}, as {_FORM}; separate several with commas"
            raise ValueError(msg)
        if not is_whole and not is_counted(amount):
            msg = f"{entry.strip()!r} {LEAST_BUDGET}"
            raise ValueError(msg)
        if "*" in name[:-1]:
            msg = f"{name!r} has a * before its end; it must be {_FORM}"
            raise ValueError(msg)
        if name in amounts:
            msg = f"has {name!r} twice"
            raise ValueError(msg)
        amounts[name] = amount
    return amounts


def day_limits(usd: str | None, calls: str | None, tokens: str | None) -> dict[str, BudgetLimits]:
    """Return the limits of a day by model from three settings. Raises ValueError."""
    of_usd = parse_amounts(usd, is_whole=False) if usd else {}
    of_calls = parse_amounts(calls, is_whole=True) if calls else {}
    of_tokens = parse_amounts(tokens, is_whole=True) if tokens else {}
    return {
        name: BudgetLimits.of(
            usd=of_usd.get(name), calls=_whole(of_calls, name), tokens=_whole(of_tokens, name)
        )
        for name in dict.fromkeys((*of_usd, *of_calls, *of_tokens))
    }


def _whole(amounts: Mapping[str, float], name: str) -> int | None:
    return int(amounts[name]) if name in amounts else None


def matching(model: str, names: Iterable[str]) -> list[str]:
    """Return the names that a model fits: its own, or one with a * at its end."""
    return [
        name
        for name in names
        if name == model or (name.endswith("*") and model.startswith(name[:-1]))
    ]
