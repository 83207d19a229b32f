from __future__ import annotations

from types import SimpleNamespace

import pytest

from fanout.core.records import Usage
from fanout.llm.provider_usage import anthropic_usage, gemini_usage, openai_usage

# (prompt, of these cached, of these written to a cache, answer, of these reasoning).
OPENAI = [
    # OpenAI, Groq, Mistral, vLLM.
    ({"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16,
      "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
      "completion_tokens_details": {"reasoning_tokens": 5}}, (9, 4, None, 7, 5)),
    ({"prompt_tokens": 9, "completion_tokens": 7,
      "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3}}, (9, 4, 3, 7, None)),
    # A server that says no more.
    ({"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}, (9, None, None, 7, None)),
    ({"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": None,
      "completion_tokens_details": None}, (9, None, None, 7, None)),
    # DeepSeek, and Moonshot.
    ({"prompt_tokens": 9, "completion_tokens": 7, "prompt_cache_hit_tokens": 4,
      "prompt_cache_miss_tokens": 5}, (9, 4, None, 7, None)),
    ({"prompt_tokens": 9, "completion_tokens": 7, "cached_tokens": 4}, (9, 4, None, 7, None)),
    # Proxies in front of Anthropic: with the cached tokens in the prompt, and beside it.
    ({"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16, "cache_read_input_tokens": 4,
      "cache_creation_input_tokens": 3}, (9, 4, 3, 7, None)),
    ({"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 16, "cache_read_input_tokens": 4,
      "cache_creation_input_tokens": 3}, (9, 4, 3, 7, None)),
    ({"prompt_tokens": 9, "completion_tokens": 7,
      "prompt_tokens_details": {"cached_tokens": 4, "cache_creation_tokens": 3}}, (9, 4, 3, 7, None)),
    # xAI counts reasoning beside the answer; so does Gemini, which does not name it.
    ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 16,
      "completion_tokens_details": {"reasoning_tokens": 5}}, (9, None, None, 7, 5)),
    ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 16}, (9, None, None, 7, 5)),
    # What makes no sense is unknown.
    ({"prompt_tokens": "9", "completion_tokens": -7, "total_tokens": True,
      "prompt_tokens_details": [4]}, (None, None, None, None, None)),
    (None, (None, None, None, None, None)),
    ([1], (None, None, None, None, None)),
]  # fmt: skip
ANTHROPIC = [
    ({"input_tokens": 2, "output_tokens": 7, "cache_read_input_tokens": 4,
      "cache_creation_input_tokens": 3}, (9, 4, 3, 7, None)),
    ({"input_tokens": 2, "output_tokens": 7, "cache_read_input_tokens": 4,
      "cache_creation_input_tokens": 3, "service_tier": "batch",
      "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0},
      "output_tokens_details": {"thinking_tokens": 5}}, (9, 4, 3, 7, 5)),
    ({"input_tokens": 2, "output_tokens": 7, "cache_read_input_tokens": 4,
      "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2}},
     (9, 4, 3, 7, None)),
    ({"input_tokens": 9, "output_tokens": 7, "cache_read_input_tokens": None,
      "cache_creation_input_tokens": None, "cache_creation": None}, (9, 0, 0, 7, None)),
    ({"input_tokens": 9, "output_tokens": 7}, (9, 0, 0, 7, None)),
    ({"input_tokens": 9, "output_tokens": 7, "cache_read_input_tokens": "4"}, (None, None, 0, 7, None)),
    ({}, (None, None, None, None, None)),
    (None, (None, None, None, None, None)),
]  # fmt: skip
GEMINI = [
    ({"promptTokenCount": 9, "candidatesTokenCount": 2, "cachedContentTokenCount": 4,
      "thoughtsTokenCount": 5, "totalTokenCount": 16}, (9, 4, 0, 7, 5)),
    ({"promptTokenCount": 6, "toolUsePromptTokenCount": 3, "candidatesTokenCount": 7}, (9, 0, 0, 7, 0)),
    # A count of 0 is left out.
    ({"promptTokenCount": 9}, (9, 0, 0, 0, 0)),
    ({"promptTokenCount": "9", "thoughtsTokenCount": -1}, (None, 0, 0, None, None)),
    ({}, (None, None, None, None, None)),
    (None, (None, None, None, None, None)),
]  # fmt: skip
CASES = [
    *((openai_usage, *case) for case in OPENAI),
    *((anthropic_usage, *case) for case in ANTHROPIC),
    *((gemini_usage, *case) for case in GEMINI),
]


def of(tokens, **more):
    names = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens",
             "reasoning_tokens")  # fmt: skip
    return Usage(calls=1, **dict(zip(names, tokens, strict=True)), **more)


@pytest.mark.parametrize(("read", "counts", "tokens"), CASES)
def test_every_form_of_usage_is_read(read, counts, tokens):
    assert read(counts) == of(tokens)


def test_the_objects_of_a_package_are_read_as_mappings_are():
    details = SimpleNamespace(cached_tokens=4, cache_creation_tokens=3)
    counts = SimpleNamespace(prompt_tokens=9, completion_tokens=7, prompt_tokens_details=details)
    assert openai_usage(counts) == of((9, 4, 3, 7, None))


@pytest.mark.parametrize(
    ("more", "usd"),
    [
        ({"cost": 0.25, "cost_details": {"upstream_inference_cost": None}}, 0.25),
        ({"cost": 0}, 0.0),
        # With the user's own key, OpenRouter bills its fee alone.
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}}, 0.51),
        ({"cost": 0.01, "is_byok": True}, None),
        ({"cost": {"total_cost": 0.5, "request_cost": 0.1}}, 0.5),
        ({"cost": "0.25"}, None),
        ({"cost": -1}, None),
    ],
)
def test_a_cost_that_a_server_reports_is_taken(more, usd):
    usage = openai_usage({"prompt_tokens": 9, "completion_tokens": 7, **more})
    assert usage.cost_usd == (None if usd is None else pytest.approx(usd))
