"""What servers refuse of requests: which words say so, which do not, and how long it is remembered."""

# ruff: noqa: E501 - messages are as servers send them

from __future__ import annotations

import asyncio

import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError
from fanout.llm import LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.gemini import GeminiLLM
from fanout.llm.limit_headers import LimitHeaders
from fanout.llm.litellm import LiteLLM
from fanout.llm.openai import OpenAILLM
from fanout.llm.refusals import Refusals, Refused, refused_parts
from fanout.llm.reply_bodies import error_details_in
from tests.scripted_provider import anthropic_reply, gemini_reply, openai_reply

OBJECT = shape_of({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
LIST = shape_of({"type": "array", "items": {"type": "integer"}})
TOO_LONG = (
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 201901 "
    "tokens (including 92 in the response_format schemas.). Please reduce the length of the messages "
    "or schemas."
)


def said(message, code=None, param=None):
    return {"error": {"message": message, "code": code, "param": param}}


ALL, ONE = "all", "this one"
CASES = {
    # Refusals.
    "a compatible server": (said("response_format: not supported here"), ALL),
    "openai, an old model": (said("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."), ALL),
    "openai, one schema": (said("Invalid schema for response_format 'answer': In context=(), 'required' is required.", "invalid_json_schema", "response_format"), ONE),
    "by its code alone": (said("It is wrong.", "invalid_json_schema"), ONE),
    "by its field alone": (said("not allowed", param="response_format.type"), ALL),
    "fastapi": ({"detail": [{"loc": ["body", "response_format", "type"], "msg": "Input should be 'text'"}]}, ALL),
    "vllm": (said("guided decoding is not enabled"), ALL),
    "xgrammar": (said("The provided JSON schema contains features not supported by xgrammar."), ONE),
    "llama.cpp": (said("failed to parse grammar"), ALL),
    "anthropic": (said("output_config.format.schema: Schema is too complex"), ONE),
    "anthropic, compiled": (said("The compiled grammar is too large"), ONE),
    "gemini": (said("Unknown name \"responseSchema\" at 'generation_config': Cannot find field."), ALL),
    "gemini, one schema": (said("The specified schema produces a constraint that has too many states for serving."), ONE),
    "apostrophes": (said("It doesn't support json_schema, and won't."), ALL),
    # Another part of the request is at fault.
    "too long": (said(TOO_LONG, "context_length_exceeded", "messages"), None),
    "too long, in words": (said(TOO_LONG), None),
    "too long, otherwise": (said("Reduce the length of the prompt or of the json schema"), None),
    "filtered": (said("Invalid prompt: 'json_schema' was flagged as potentially violating our usage policy"), None),
    "filtered, by its code": (said("no response_format for this", "content_filter"), None),
    "a field of the prompt": (said("messages[0]: response_format json_object needs the word", param="messages[0].content"), None),
    "the temperature": (said("no grammar is too hot", param="temperature"), None),
    "a name": (said("cannot read: my misguided friend"), None),
    "a prompt": (said("cannot read: check the grammar of this"), None),
    "a quoted prompt": (said("cannot read 'what is response_format in an API?' at all"), None),
    "another thing": (said("temperature is too high"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_which_words_refuse_a_schema(name):
    body, expected = CASES[name]
    details = error_details_in(body)
    for status, refusal in ((400, expected), (422, expected), (401, None), (500, None)):
        found = refused_parts(status, details, has_schema=True, has_logprobs=False)
        assert found == Refused(refusal), status
    assert refused_parts(400, details, has_schema=False, has_logprobs=False) == Refused()


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        (said("You are not allowed to request logprobs from this model", param="logprobs"), True),
        (said("Logprobs is not enabled for this model"), True),
        (said("responseLogprobs: unknown"), True),
        (said("log-probabilities are not available"), True),
        (said("cannot read 'the logprobs of it'"), False),
        (said("cannot read catalogprobes"), False),
        (said("too long, with top_logprobs", "context_length_exceeded"), False),
        (said("logprobs", param="messages"), False),
    ],
)
def test_which_words_refuse_log_probabilities(body, is_refused):
    found = refused_parts(400, error_details_in(body), has_schema=True, has_logprobs=True)
    assert found == Refused(None, is_refused)


def test_a_refusal_is_remembered_for_an_hour_and_logged_once(caplog):
    now = [0.0]
    refusals = Refusals("x", clock=lambda: now[0])
    for _ in range(2):
        assert refusals.takes_schema(OBJECT)
        assert refusals.takes_logprobs()
        refusals.learn(Refused("this one", True), OBJECT)
        assert not refusals.takes_schema(OBJECT)
        assert not refusals.takes_logprobs()
        assert refusals.takes_schema(LIST)
        now[0] += 3_601
    assert len(caplog.records) == 2
    refusals.learn(Refused("all", False), OBJECT)
    assert not refusals.takes_schema(LIST)


class Litellm:
    """litellm over a scripted provider's answers."""

    def __init__(self, respond):
        self.respond = respond

    async def acompletion(self, **options):
        status, body = self.respond(None, options)
        if status != 200:
            error = type("BadRequestError", (Exception,), {"status_code": status, "body": body})
            raise error(body["error"]["message"])
        choice = body["choices"][0]
        message = type("Message", (), choice["message"])
        made = type("Choice", (), {"message": message, "finish_reason": "stop"})
        return type("Response", (), {"choices": [made], "usage": None})


REPLIES = {
    "openai": openai_reply, "anthropic": anthropic_reply, "gemini": gemini_reply,
    "litellm": openai_reply,
}  # fmt: skip


def is_native(body):
    config = body.get("generationConfig", {})
    return "response_format" in body or "output_config" in body or "responseSchema" in config


def asked(provider, monkeypatch, name, respond, shapes):
    """Ask for answers of shapes; return whether each request had a schema."""
    seen = []

    def noted(headers, body):
        seen.append(is_native(body))
        return respond(headers, body)

    for variable, path in (("OPENAI", "/v1"), ("ANTHROPIC", ""), ("GEMINI", "")):
        monkeypatch.setenv(f"{variable}_BASE_URL", f"{provider.url}{path}")
        monkeypatch.setenv(f"{variable}_API_KEY", "sk-test-0123456789abcdef")
    provider.respond = noted

    def made():
        if name == "litellm":
            llm = LiteLLM.__new__(LiteLLM)
            llm._limit_headers = LimitHeaders()
            llm._name, llm._refusals, llm._litellm = "x/m", Refusals("x/m"), Litellm(noted)
            return llm
        return {"openai": OpenAILLM, "anthropic": AnthropicLLM, "gemini": GeminiLLM}[name]("m")

    async def run():
        llm = made()
        for prompt, shape in shapes:
            try:
                await llm.complete(LLMRequest(prompt=prompt, shape=shape, max_tokens=9))
            except LLMError:
                seen.append("failed")
        await llm.aclose()

    asyncio.run(run())
    return seen


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize(
    ("error", "calls"),
    [
        # Judged by its code or words: not asked again.
        (said(TOO_LONG, "context_length_exceeded", "messages"), [True, "failed"]),
        # Judged by a second call, which is refused in the same way.
        (said("cannot read: the json schema of a tax form"), [True, False, "failed"]),
    ],
)
def test_a_document_that_is_refused_leaves_the_others_their_schemas(
    provider, monkeypatch, name, error, calls
):
    def respond(_headers, body):
        return (400, error) if "LONG" in str(body) else (200, REPLIES[name]('{"a":"x"}'))

    shapes = [("one", OBJECT), ("LONG", OBJECT), ("two", OBJECT)]
    assert asked(provider, monkeypatch, name, respond, shapes) == [True, *calls, True]


@pytest.mark.parametrize("name", REPLIES)
def test_a_refusal_of_one_schema_leaves_the_others(provider, monkeypatch, name):
    def respond(_headers, body):
        if is_native(body) and "integer" not in str(body).lower():
            return 400, said("Invalid schema for response_format: too many properties")
        return 200, REPLIES[name]('{"a":"x"}')

    shapes = [("one", OBJECT), ("two", OBJECT), ("three", LIST)]
    assert asked(provider, monkeypatch, name, respond, shapes) == [True, False, False, True]
