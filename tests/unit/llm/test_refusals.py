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
from fanout.llm.openai import OpenAILLM
from fanout.llm.refusals import Refusals, Refused, refused_parts
from fanout.llm.reply_bodies import error_details_in
from tests.fake_litellm import litellm_of
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
    "gemma at gemini": (said("JSON mode is not enabled for models/gemma-3-27b-it"), ALL),
    "vertex": (said("Unable to submit request because it has a mimeType parameter with value application/json, which is not supported."), ALL),
    "vertex, in other words": (said("Controlled generation is not supported for this model"), ALL),
    "anthropic, an old model": (said("'claude-3-5-haiku-20241022' does not support output format."), ALL),
    "together": (said("Model does not support JSON mode"), ALL),
    "sglang": (said("Failed to compile json grammar: unexpected keyword"), ALL),
    "openrouter": ({"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error":{"message":"This model does not support JSON schema"}}'}}}, ALL),
    "a proxy": (said("litellm.BadRequestError: Error code: 400 - {'error': {'message': \"Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.\"}}"), ALL),
    "cloudflare": ({"success": False, "errors": [{"message": "AiError: JSON Schema mode is not supported with this model.", "code": 5025}]}, ALL),
    "watsonx": ({"errors": [{"code": "json_type_error", "message": "Json field type error: response_format"}], "trace": "x"}, ALL),
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


NO_SYSTEM = [
    said("Developer instruction is not enabled for models/gemma-3-27b-it"),
    said("Unsupported value: 'messages[0].role' does not support 'system' with this model.", "unsupported_value", "messages[0].role"),
    said("System role not supported"),
    said("Jinja Exception: System role not supported"),
    said("Conversation roles must alternate user/assistant/user/assistant/..."),
    said("Only user and assistant roles are supported!"),
    said("litellm.BadRequestError: {'error': {'message': 'System role not supported'}}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        *((body, True) for body in NO_SYSTEM),
        (said("cannot read 'the system prompt is not supported' at all"), False),
        (said("the system is not available"), False),
        (said("temperature is not supported"), False),
    ],
)
def test_which_words_refuse_a_system_prompt(body, is_refused):
    details = error_details_in(body)
    for status, refuses in ((400, is_refused), (422, is_refused), (500, is_refused), (401, False)):
        found = refused_parts(
            status, details, has_schema=False, has_logprobs=False, has_system=True
        )
        assert found == Refused(system=refuses), status
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
            return litellm_of(noted)
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


def system_of(body):
    """The system prompt of a request that is a message of its own; None if there is none."""
    if "systemInstruction" in body:
        return body["systemInstruction"]["parts"][0]["text"]
    first = body.get("messages", [{}])[0]
    return first["content"] if first.get("role") == "system" else None


def prompt_of(body):
    if "contents" in body:
        return body["contents"][0]["parts"][0]["text"]
    return body["messages"][-1]["content"]


@pytest.mark.parametrize("name", ["openai", "gemini", "litellm"])
def test_a_model_without_system_prompts_is_told_in_its_prompts(provider, monkeypatch, name, caplog):
    """Gemma at Gemini's API takes neither schemas nor system prompts, where a schema in words stands."""
    seen = []

    def respond(_headers, body):
        seen.append(body)
        if is_native(body):
            return 400, said("JSON mode is not enabled for models/gemma-3-27b-it")
        if system_of(body) is not None:
            return 400, said("Developer instruction is not enabled for models/gemma-3-27b-it")
        return 200, REPLIES[name]('{"a":"x"}')

    asked(provider, monkeypatch, name, respond, [("one", OBJECT), ("two", OBJECT)])
    assert [(is_native(body), system_of(body) is not None) for body in seen] == [
        (True, True), (False, True), (False, False), (False, False),
    ]  # fmt: skip
    for body, prompt in zip(seen[2:], ("one", "two"), strict=True):
        assert prompt_of(body).startswith("Answer with one JSON value")
        assert prompt_of(body).endswith(f"\n\n{prompt}")
    assert len(caplog.records) == 2
    assert "refuses system prompts: they begin its prompts" in caplog.text


@pytest.mark.parametrize("name", ["openai", "gemini", "litellm"])
def test_a_failure_that_may_be_of_a_system_prompt_is_learnt_from_an_answer_only(
    provider, monkeypatch, name
):
    """A document may have such words in it, and its error quotes them."""
    seen = []

    def respond(_headers, body):
        seen.append(system_of(body) is not None)
        if "LONG" in str(body):
            return 400, said("cannot read: system prompts are not supported in LONG")
        return 200, REPLIES[name]('{"a":"x"}')

    asked(provider, monkeypatch, name, respond, [("LONG", OBJECT), ("two", OBJECT)])
    assert seen == [True, False, True]
