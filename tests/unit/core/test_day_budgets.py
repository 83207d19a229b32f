"""The budgets of a day, as the settings of workers give them."""

from __future__ import annotations

import pytest

from fanout.core.budgets import BudgetLimits
from fanout.core.day_budgets import matching
from fanout.core.errors import SettingsError
from fanout.core.settings import load_settings


def test_a_limit_is_of_all_models_together_or_of_those_that_a_name_fits(monkeypatch):
    monkeypatch.setenv("FANOUT_BUDGET_USD_PER_DAY", "100, openai/*=20.5,anthropic/m=3")
    monkeypatch.setenv("FANOUT_BUDGET_CALLS_PER_DAY", "openai/*=1000")
    monkeypatch.setenv("FANOUT_BUDGET_TOKENS_PER_DAY", "fake?seed=1=7")
    days = load_settings().day_budgets
    assert days == {
        "*": BudgetLimits.of(usd=100.0),
        "openai/*": BudgetLimits.of(usd=20.5, calls=1000),
        "anthropic/m": BudgetLimits.of(usd=3.0),
        "fake?seed=1": BudgetLimits(tokens=7),
    }
    assert matching("openai/x", days) == ["*", "openai/*"]
    assert matching("anthropic/m2", days) == ["*"]
    assert matching("fake?seed=1", days) == ["*", "fake?seed=1"]
    assert matching("openai/x", {}) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("USD", "much"),
        ("USD", "0"),
        ("USD", "-1"),
        ("USD", "inf"),
        ("USD", "a=1e-10"),
        ("USD", "a=1,a=2"),
        ("USD", "o*x=1"),
        ("CALLS", "1.5"),
        ("TOKENS", "m="),
    ],
)
def test_another_text_is_refused_with_the_name_of_its_variable(monkeypatch, name, text):
    variable = f"FANOUT_BUDGET_{name}_PER_DAY"
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError, match=rf"^{variable}: .* \(got '"):
        load_settings()
