"""What adapters tell providers of their prompt caches, and servers that refuse to be told."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fanout.core.answer_shape import shape_of
from fanout.llm import LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.base import Turn
from fanout.llm.gemini import GeminiLLM
from fanout.llm.openai import OpenAILLM
from fanout.policy.prefixes import PromptCache
from tests.scripted_provider import anthropic_reply, gemini_reply, openai_reply

pytestmark = pytest.mark.usefixtures("at_provider")

MARK = {"cache_control": {"type": "ephemeral"}}
CACHE = PromptCache(marks=(0, 4), key="k1")
REQUEST = LLMRequest(prompt="textWhy?", system="Be kind", max_tokens=9, cache=CACHE)
ADAPTERS = {
    "openai": (OpenAILLM, openai_reply("hi"), "prompt_cache_key"),
    "anthropic": (AnthropicLLM, anthropic_reply("hi"), "cache_control"),
}


def block(text, *, is_marked=False):
    return {"type": "text", "text": text, **(MARK if is_marked else {})}


def ask(make, *requests):
    async def whole():
        llm = make("m")
        try:
            return [(await llm.complete(request)).text for request in requests]
        finally:
            await llm.aclose()

    return asyncio.run(whole())


def sent(provider):
    return [body for _, _, body in provider.requests]


@pytest.mark.parametrize(
    ("fields", "system", "content"),
    [
        ({"cache": None}, "Be kind", "textWhy?"),
        ({}, [block("Be kind", is_marked=True)], [block("text", is_marked=True), block("Why?")]),
        ({"cache": PromptCache(marks=(0,))}, [block("Be kind", is_marked=True)], [block("textWhy?")]),
        ({"cache": PromptCache(marks=(4,))}, "Be kind", [block("text", is_marked=True), block("Why?")]),
        ({"cache": PromptCache(marks=(8,))}, "Be kind", [block("textWhy?", is_marked=True)]),
        ({"cache": PromptCache(marks=(2, 4), key="k")}, "Be kind",
         [block("te", is_marked=True), block("xt", is_marked=True), block("Why?")]),
        # The API refuses blank blocks: what is before one, or after one, is not marked.
        ({"prompt": "text  ", "cache": PromptCache(marks=(4,))}, "Be kind", [block("text  ")]),
        ({"prompt": "    text", "cache": PromptCache(marks=(4,))}, "Be kind", [block("    text")]),
    ],
)  # fmt: skip
def test_anthropic_gets_marks_at_the_ends_of_prefixes(provider, fields, system, content):
    provider.body = anthropic_reply("hi")
    given = {"prompt": "textWhy?", "system": "Be kind", "max_tokens": 9, "cache": CACHE, **fields}
    assert ask(AnthropicLLM, LLMRequest(**given)) == ["hi"]
    (body,) = sent(provider)
    assert body["system"] == system
    assert body["messages"] == [{"role": "user", "content": content}]
    assert "".join(part["text"] for part in content if isinstance(part, dict)) in {
        "",
        given["prompt"],
    }


def test_an_answer_that_is_asked_for_again_reads_the_same_prefix(provider):
    provider.body = anthropic_reply("hi")
    turns = (Turn("a", "wrong"),)
    ask(AnthropicLLM, LLMRequest(prompt="textWhy?", max_tokens=9, cache=CACHE, turns=turns))
    first, answer, reply = sent(provider)[0]["messages"]
    assert first["content"] == [block("text", is_marked=True), block("Why?")]
    assert (answer["content"], reply["content"].partition("\n")[0]) == ("a", "wrong")


def test_openai_gets_the_key_of_a_prefix(provider):
    provider.body = openai_reply("hi")
    ask(
        OpenAILLM,
        REQUEST,
        LLMRequest(prompt="x", cache=PromptCache(marks=(1,))),
        LLMRequest(prompt="x"),
    )
    first, second, third = sent(provider)
    assert first["prompt_cache_key"] == "k1"
    assert first["messages"][1]["content"] == "textWhy?"
    assert "prompt_cache_key" not in {**second, **third}


def test_other_adapters_send_the_prompt_as_it_is(provider):
    provider.body = gemini_reply("hi")
    assert ask(GeminiLLM, REQUEST) == ["hi"]
    assert sent(provider)[0]["contents"] == [{"role": "user", "parts": [{"text": "textWhy?"}]}]


@pytest.mark.parametrize("shape", [None, shape_of({"type": "string"})])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_server_that_refuses_is_told_no_more(provider, caplog, name, shape):
    make, reply, field = ADAPTERS[name]
    refusal = {"error": {"message": f"{field}: Extra inputs are not permitted"}}

    def respond(_headers, body):
        return (400, refusal) if field in str(body) else (200, reply)

    provider.respond = respond
    request = LLMRequest(prompt="textWhy?", max_tokens=9, cache=CACHE, shape=shape)
    with caplog.at_level(logging.WARNING):
        assert ask(make, request, request) == ["hi", "hi"]
    assert [field in str(body) for body in sent(provider)] == [True, False, False]
    assert caplog.text.count("refuses words about its prompt cache") == 1
    # The rest of the request stays.
    assert ("schema" in str(sent(provider)[2])) is (shape is not None)


@pytest.mark.parametrize("name", ADAPTERS)
def test_another_error_is_not_taken_for_a_refusal(provider, name):
    make, reply, field = ADAPTERS[name]
    failures = iter([(400, {"error": {"message": "temperature is too high"}}), (200, reply)])
    provider.respond = lambda _headers, _body: next(failures)
    with pytest.raises(Exception, match="temperature"):
        ask(make, REQUEST)
    ask(make, REQUEST)
    assert [field in str(body) for body in sent(provider)] == [True, True]
