"""After which failures another model is asked, in which order, and what is said if none answers."""

from __future__ import annotations

import pytest

from fanout.core.records import ErrorKind
from fanout.policy.fallback import asked_in_turn, falls_back, without_answer

OTHERS_MAY = {"content_filter", "context_length", "truncated", "invalid_output", "server_error"}


@pytest.mark.parametrize("kind", [None, *ErrorKind])
def test_another_model_is_asked_only_where_it_may_answer(kind):
    assert falls_back(kind) is (kind is not None and kind.value in OTHERS_MAY)


@pytest.mark.parametrize(
    ("model", "fallback", "asked"),
    [("a", (), ("a",)), ("a", ("b", "c"), ("a", "b", "c")), ("b", ("b", "c"), ("b", "c"))],
)
def test_a_model_is_asked_once(model, fallback, asked):
    assert asked_in_turn(model, fallback) == asked


def test_the_message_names_the_models_that_were_asked():
    assert without_answer("no", [], "a") == "no"
    before = [("a", ErrorKind.CONTENT_FILTER), ("b", ErrorKind.TRUNCATED)]
    assert without_answer("HTTP 500", before, "c") == (
        "c: HTTP 500 (asked before it: a: content_filter; b: truncated)"
    )
