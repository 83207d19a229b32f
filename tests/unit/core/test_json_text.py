"""What counts as the JSON of an answer, and what as its text."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.json_text import bare_json, parse_json
from fanout.core.reasoning import without_reasoning
from fanout.core.spec_fields import RetrySpec
from fanout.llm import FakeLLM, LLMRequest
from fanout.llm.answers import validate_json
from fanout.llm.calls import complete_with_retries

A = '{"a": 1}'
FENCED = f"```json\n{A}\n```"

# The answer is the same object, with any text around it.
WRAPPED = {
    "bare": A,
    "spaces": f"\n  {A}\n",
    "fence": FENCED,
    "fence without a name": f"```\n{A}\n```",
    "fence of tildes": f"~~~\n{A}\n~~~",
    "fence without an end": f"```json\n{A}",
    "fence in one line": f"```json {A} ```",
    "fence in prose": f"Sure! Here it is:\n\n{FENCED}\n\nLet me know.",
    "indented fence in prose": f"1. This:\n   ```json\n   {A}\n   ```\n",
    "fence with what is no JSON beside it": f"{FENCED}\n```python\nprint(1)\n```",
    "the same twice": f"{FENCED}\nAgain: {FENCED}",
    "in prose": f"Sure! {A} is the answer.",
    "in prose with braces": f"Of {{this}}, {{that}} and {{x: 1}}: {A}",
    "behind a bracket without an end": f"(see [1: the table {{ of it) {A}",
    "with a reference": f"As in [1] and [2, 3]: {A}",
    "think": f"<think>maybe {{}} or {{}}</think>{A}",
    "think in capitals": f"<THINK>\nno\n</THINK>\n{A}",
    "think without a beginning": f"It may be 2.\n</think>\n\n{A}",
    "think without an end": f"<think>So it must be this: {A}",
    "thinking": f"<thinking>\n```json\n[2]\n```\n</thinking>\n{FENCED}",
    "reasoning": f'<reasoning>{{"a": 2}}</reasoning>\nSo {A}.',
    "two thoughts": f"<think>a</think>\n<think>b</think>{A}",
}


@pytest.mark.parametrize("name", WRAPPED)
def test_json_is_found_in_what_is_around_it(name):
    assert parse_json(WRAPPED[name]) == {"a": 1}
    assert bare_json(WRAPPED[name]) == validate_json(WRAPPED[name]) == A


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("7", 7),
        ('"</think>"', "</think>"),
        ('{"t": "<think>x</think>"}', {"t": "<think>x</think>"}),
        ('{"t": "a } b { \\" ] c"}.', {"t": 'a } b { " ] c'}),
        ('The list:\n["a", "b"]\n', ["a", "b"]),
        ('Rows:\n[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("```\n[1]\n```", [1]),
        ("<think>x</think> 7", 7),
    ],
)
def test_json_need_not_be_an_object(answer, value):
    assert parse_json(answer) == value


@pytest.mark.parametrize(
    "answer",
    [
        "", "no", "{", "{not: json}", "as in [1] and [2]", "see [1]", "NaN", "<think>no</think>",
        "the number is 7", "```\nno\n```", "{" * 5_000, "[" * 200 + "]" * 200,
        'It is {"a": {"b": 1}, "c": 2,}', 'It is {"a": {"b": 1}, "c', 'All: [{"a": 1}, {"a": 2',
    ],
)  # fmt: skip
def test_there_is_no_json(answer):
    with pytest.raises(ValueError, match=r"."):
        parse_json(answer)


@pytest.mark.parametrize("answer", [f'{A} or {{"a": 2}}', f"{FENCED}\nor\n```\n[1]\n```"])
def test_several_values_are_no_answer(answer):
    with pytest.raises(ValueError, match="2 different JSON values"):
        parse_json(answer)


@given(st.text(alphabet='{}[]"\\ \n`~<>/think1:,a'))
def test_every_text_has_json_or_raises_value_error(answer):
    try:
        found = bare_json(answer)
    except ValueError:
        return
    assert found in answer or "```" in answer or "~~~" in answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("yes", "yes"),
        ("<think>\nit is\n</think>\n\nyes", "yes"),
        ("it is\n</think>\nyes", "yes"),
        ("<think>a</think> <think>b</think> yes", "yes"),
        ("<think>all of it", "<think>all of it"),
        ("<thinking>asked for</thinking> yes", "<thinking>asked for</thinking> yes"),
        ("use <think>x</think> tags", "use <think>x</think> tags"),
        ("a </b> c", "a </b> c"),
    ],
)
def test_an_answer_of_text_is_without_the_reasoning_of_its_model(answer, text):
    assert without_reasoning(answer) == text

    async def call():
        return await complete_with_retries(
            FakeLLM(script=lambda _request: answer),
            LLMRequest(prompt="p"),
            policy=RetrySpec(max_attempts=1),
            timeout_s=9,
        )

    assert asyncio.run(call()).output == text


def test_an_answer_that_is_nothing_but_reasoning_is_none():
    async def call():
        return await complete_with_retries(
            FakeLLM(script=lambda _request: "<think>hm</think>\n"),
            LLMRequest(prompt="p"),
            policy=RetrySpec(max_attempts=1),
            timeout_s=9,
        )

    assert asyncio.run(call()).kind.value == "invalid_output"


HOSTILE = ["{", "[ x{ ", '{"', "```\n", "{x}", "[[x]]\n", "</think>", "<think>", '{"\\"', "<", "\\"]


@pytest.mark.parametrize("part", HOSTILE)
def test_looking_for_json_takes_time_in_proportion(part):
    # A quadratic search would take minutes; the limit of the test's time is the measure.
    with pytest.raises(ValueError, match=r"."):
        parse_json(part * 100_000)
