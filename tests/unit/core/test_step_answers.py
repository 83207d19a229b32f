from __future__ import annotations

import pytest

from fanout.core.records import StepOutcome
from fanout.core.step_answers import step_text, value_of


def test_prompts_have_answers_and_their_fields():
    answers = {"facts": StepOutcome(name="facts", output='{"a": {"b": [1, "x"]}, "n": null}')}
    assert step_text("facts.a.b.1", answers) == "x"
    assert step_text("facts.a", answers) == '{"b": [1, "x"]}'
    assert step_text("facts.n", answers) == ""
    assert step_text("other.a", answers) == ""
    assert value_of("[1]", "") == [1]
    for path in ("facts.c", "facts.a.b.7", "facts.a.b.x"):
        with pytest.raises(KeyError):
            step_text(path, answers)
