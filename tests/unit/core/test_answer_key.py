"""The key of a kept answer: another one for all that may change the answer."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from fanout.core.answer_key import KEY_BYTES, answer_key
from fanout.core.answer_shape import shape_of
from fanout.llm.base import LLMRequest

GIVEN = {
    "prompt": "p", "system": "s", "temperature": 0.5, "max_tokens": 10, "seed": 1, "stop": ("x",),
    "shape": None, "turns": (), "sample": 0, "output_format": "text", "on_truncated": "fail",
}  # fmt: skip
OTHERS: dict[str, list[Any]] = {
    "prompt": ["", "P", "p ", "\udcff"],
    "system": [None, "", "t"],
    "temperature": [None, 0.0, 0.6],
    "max_tokens": [None, 11],
    "seed": [None, 0, 2],
    "stop": [(), ("x", "y"), ("y",)],
    "shape": [shape_of({"type": "string"}).text, shape_of({"type": "number"}).text,
              shape_of(None, ("a", "b")).text, shape_of(None, ("b", "a")).text],
    "turns": [(("a", "b"),), (("a", "c"),)],
    "sample": [1, 2],
    "output_format": ["json"],
    "on_truncated": ["keep"],
}  # fmt: skip
# How a call is bought and what a provider is told of its own cache change no answer.
# A review goes by ids that stand in the prompt.
NO_PART = {"lane", "cache", "review"}


def test_every_part_of_a_request_that_changes_the_answer_changes_the_key():
    keys = [answer_key("m", **GIVEN), answer_key("n", **GIVEN)]
    keys += [
        answer_key("m", **{**GIVEN, name: value}) for name, some in OTHERS.items() for value in some
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert answer_key("m", **GIVEN) == keys[0]


def test_each_field_of_a_request_is_a_part_of_the_key_or_is_known_to_be_none():
    assert set(LLMRequest.__struct_fields__) - NO_PART <= set(GIVEN)
    assert set(OTHERS) == set(GIVEN)


def test_the_order_of_the_properties_of_a_schema_counts():
    first = {"type": "object", "properties": {"a": {}, "b": {}}}
    second = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert shape_of(first).text != shape_of(second).text


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
def test_a_prompt_that_cannot_be_encoded_has_a_key(value):
    request = structs.replace(LLMRequest(prompt=value))
    keys = {answer_key("m", **{**GIVEN, "prompt": text}) for text in (request.prompt, "?")}
    assert len(keys) == 2
