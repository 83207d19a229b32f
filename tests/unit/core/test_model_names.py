"""What the names of models say about them."""

from __future__ import annotations

import pytest

from fanout.core.model_names import has_fences, keeps_answers


@pytest.mark.parametrize(
    ("model", "is_kept", "is_fenced"),
    [
        ("openai/gpt-5-mini", True, True),
        ("litellm/mistral/small", True, True),
        ("local", True, True),
        ("fake", False, False),
        ("fake?cache=1", True, False),
        ("fake?latency_s=1&cache=1&fence=1", True, True),
        ("fake?cache=10", False, False),
        ("package.module:function", False, False),
    ],
)
def test_whose_answers_are_kept_and_whose_prompts_have_fences(model, is_kept, is_fenced):
    assert (keeps_answers(model), has_fences(model)) == (is_kept, is_fenced)
