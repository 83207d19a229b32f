"""Counts of tokens that no such call has are not believed, unless many of a model's calls have them."""

from __future__ import annotations

import pytest

from fanout.core.answer_shape import AnswerShape
from fanout.core.records import Usage
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.usage_doubts import UsageDoubts

PROMPT = "p" * 100
WIDE = AnswerShape({"type": "string", "description": "d" * 2_000})


def reply(prompt=None, answer=None, reasoning=None, text="t" * 10):
    usage = Usage(calls=1, input_tokens=prompt, output_tokens=answer, reasoning_tokens=reasoning)
    return LLMReply(text=text, usage=usage)


@pytest.mark.parametrize(
    ("request_fields", "usage", "believed"),
    [
        ({}, {}, (None, None)),
        ({}, {"prompt": 100, "answer": 10}, (100, 10)),
        ({}, {"prompt": 300, "answer": 70}, (300, 70)),
        ({}, {"prompt": 400, "answer": 75}, (None, None)),
        ({}, {"prompt": 400, "answer": 10}, (None, 10)),
        ({}, {"prompt": 100, "answer": 75}, (100, None)),
        ({"system": "s" * 100}, {"prompt": 400}, (400, None)),
        ({"shape": WIDE}, {"prompt": 3_000}, (3_000, None)),
        ({}, {"answer": 5_000, "reasoning": 4_990}, (None, 5_000)),
        ({}, {"answer": 10**9, "reasoning": 10**9}, (None, None)),
        ({}, {"answer": 10_000, "text": "t" * 10_000}, (None, 10_000)),
        # Servers that ignore the limit.
        ({"max_tokens": 5}, {"answer": 70}, (None, 70)),
    ],
)
def test_one_reply(request_fields, usage, believed):
    doubts = UsageDoubts("m")
    request = LLMRequest(prompt=PROMPT, **request_fields)
    doubts.saw(request, reply(**usage))
    found = doubts.believed(request, reply(**usage))
    assert (found.input_tokens, found.output_tokens) == believed


@pytest.mark.parametrize(
    ("model", "fields", "usage", "is_believed"),
    [
        ("m", {}, {"prompt": 100_000}, True),
        ("m", {}, {"prompt": 200_000}, False),
        ("openai/gpt-4.1", {}, {"prompt": 200_000}, True),
        ("openai/gpt-4.1", {}, {"prompt": 2_000_000}, False),
        ("m", {}, {"answer": 100_000}, True),
        ("m", {}, {"answer": 200_000}, False),
        ("openai/gpt-4.1", {}, {"answer": 30_000}, True),
        ("openai/gpt-4.1", {}, {"answer": 100_000}, False),
        ("m", {"max_tokens": 100}, {"answer": 100}, True),
        ("m", {"max_tokens": 100}, {"answer": 1_000}, False),
        # Of these, some is reasoning beside the limit.
        ("m", {"max_tokens": 100}, {"answer": 1_000, "reasoning": 500}, True),
    ],
)
def test_of_many_alike(model, fields, usage, is_believed):
    doubts = UsageDoubts(model)
    request = LLMRequest(prompt=PROMPT, **fields)
    for _ in range(4):
        doubts.saw(request, reply(**usage))
    found = doubts.believed(request, reply(**usage))
    expected = reply(**usage).usage if is_believed else Usage(calls=1)
    assert (found.input_tokens, found.output_tokens) == (
        expected.input_tokens,
        expected.output_tokens,
    )


def test_one_in_twenty_is_no_habit_and_one_in_five_is():
    """A model may reason for some of its prompts only."""
    request, odd, plain = LLMRequest(prompt=PROMPT), reply(answer=900), reply(answer=9)
    for every, expected in ((20, None), (5, 900)):
        doubts = UsageDoubts("m")
        for call in range(200):
            doubts.saw(request, plain if call % every else odd)
        doubts.saw(request, odd)
        assert doubts.believed(request, odd).output_tokens == expected
