"""What is said before a run of the shapes that providers do not enforce."""

from __future__ import annotations

import pytest

from fanout.client.client import Client
from fanout.core.errors import ModelError
from fanout.core.spec import make_spec
from fanout.llm.enforcement import unenforced

STARS = {"type": "object", "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}}}
NODE = {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#"}}}
LONG = {"type": "object", "properties": {
    f"p{n}": {"type": "string", "minLength": 1} for n in range(9)}}  # fmt: skip
ANY = {"type": "object", "additionalProperties": {"type": "integer"}}
FIRST = ", ".join(f"/p{n}: minLength" for n in range(5))
CHECKS = "fanout checks it"
WORDS = "it is asked in words, and fanout checks the answers"


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"model": "openai/m", "schema": STARS}, []),
        ({"model": "anthropic/m", "schema": STARS},
         [f"anthropic does not enforce of schema: /stars: minimum, /stars: maximum; {CHECKS}"]),
        ({"model": "openai/m", "schema": LONG},
         [f"openai does not enforce of schema: {FIRST} and 4 more; {CHECKS}"]),
        ({"model": "openai/m", "schema": NODE}, []),
        ({"model": "gemini/m", "schema": NODE}, [f"gemini cannot enforce schema: {WORDS}"]),
        ({"model": ["openai/m", "openai/n", "anthropic/m"], "schema": ANY},
         [f"openai cannot enforce schema: {WORDS}", f"anthropic cannot enforce schema: {WORDS}"]),
        ({"model": "openai/m", "fallback": "anthropic/m", "schema": NODE},
         [f"anthropic cannot enforce schema: {WORDS}"]),
        ({"model": "litellm/mistral/m", "schema": ANY}, [f"litellm cannot enforce schema: {WORDS}"]),
        ({"model": "anthropic/m", "aggregate_prompt": "{input}", "aggregate_schema": STARS},
         [f"anthropic does not enforce of aggregate_schema: /stars: minimum, /stars: maximum; {CHECKS}"]),
        ({"model": "anthropic/m", "choices": "a,b"}, []),
        ({"model": "anthropic/m"}, []),
        ({"model": "fake", "schema": ANY}, []),
        ({"model": "package.module:function", "schema": ANY}, []),
    ],
)  # fmt: skip
def test_a_line_for_each_provider_and_schema(fields, lines):
    assert list(unenforced(make_spec(prompt="{input}", **fields))) == lines


def test_it_is_said_once_for_all_runs_of_a_client():
    spec = make_spec(model="anthropic/m", prompt="{input}", schema=STARS)
    with Client() as client:
        told: list[str] = []
        for _ in range(3):
            client._tell(unenforced(spec), lambda notice: told.append(notice.text))
    assert len(told) == 1


def test_an_estimate_says_it_too():
    told: list[str] = []
    with Client() as client:
        client.estimate(
            {"model": "anthropic/m", "prompt": "{input}", "schema": STARS},
            ["a"],
            on_notice=lambda notice: told.append(notice.text),
        )
    assert [line for line in told if "does not enforce of schema" in line]


def test_an_estimate_of_a_model_that_there_is_not_is_none():
    with Client() as client, pytest.raises(ModelError, match=r"did you mean openai/m\?"):
        client.estimate({"model": "oepnai/m", "prompt": "{input}"}, ["a"])
