"""The forms of settings of workers that are lists of numbers by model."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from fanout.core.day_budgets import parse_amounts

__all__ = ["CountByModel", "UsdByModel"]


def _checked_usd(text: str) -> str:
    parse_amounts(text, is_whole=False)
    return text


def _checked_count(text: str) -> str:
    parse_amounts(text, is_whole=True)
    return text


UsdByModel = Annotated[str, AfterValidator(_checked_usd)] | None
CountByModel = Annotated[str, AfterValidator(_checked_count)] | None
