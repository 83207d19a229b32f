"""Answers with a shape: what is sent, what a server that honours, ignores or refuses it costs."""

from __future__ import annotations

import asyncio
import json

import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.core.spec import RetrySpec
from fanout.llm import FakeLLM, LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import complete_with_retries
from fanout.llm.openai import OpenAILLM
from tests.scripted_provider import anthropic_reply, openai_reply

SCHEMA = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "stars": {"type": "integer", "maximum": 5}},
    "required": ["why"],
}
SHAPES = {"schema": shape_of(SCHEMA), "choices": shape_of(None, ("good", "bad"))}
VALID = {"schema": '{"why":"it is","stars":4}', "choices": "good"}
WRONG = {"schema": '{"why":"it is","stars":9}', "choices": "so so"}
ONCE = RetrySpec(max_attempts=1)


@pytest.fixture(autouse=True)
def environment(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdef")


class Server:
    """A provider's server that honours, ignores or refuses schemas, or always violates them."""

    def __init__(self, provider, name, how, shape):
        self.name, self.how, self.shape = name, how, shape
        self.provider = provider
        provider.respond = self.respond

    def respond(self, _headers, body):
        is_native = "response_format" in body or "output_config" in body
        if self.how == "refuses" and is_native:
            field = "response_format" if self.name == "openai" else "output_config.format"
            error = {"type": "invalid_request_error", "message": f"{field}: not supported here"}
            return 400, {"type": "error", "error": error}
        texts = [one["content"] for one in body["messages"]] + [str(body.get("system"))]
        is_told = any("nothing else" in text for text in texts)
        if self.how == "violates":
            return 200, self.reply(WRONG[self.shape])
        knows = is_told if self.how != "honours" else is_told or is_native
        return 200, self.reply(VALID[self.shape] if knows else "Well, it depends.")

    def reply(self, text):
        return openai_reply(text) if self.name == "openai" else anthropic_reply(text)

    @property
    def calls(self):
        return len(self.provider.requests)


MODELS = {
    "openai": OpenAILLM,
    # Its longest answer is known.
    "anthropic": lambda _: AnthropicLLM("claude-opus-4-1"),
}


def results(make, shape, *, count=1, max_reasks=2):
    async def run():
        llm = make("m")
        try:
            return [
                await complete_with_retries(
                    llm,
                    LLMRequest(prompt="p", system="s", shape=SHAPES[shape]),
                    policy=ONCE,
                    timeout_s=10,
                    max_reasks=max_reasks,
                )
                for _ in range(count)
            ]
        finally:
            await llm.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "how", "calls"),
    [
        # A compatible server is told in words as well, so one that ignores schemas costs nothing.
        ("openai", "honours", [1, 1]),
        ("openai", "ignores", [1, 1]),
        ("openai", "refuses", [2, 1]),
        ("anthropic", "honours", [1, 1]),
        ("anthropic", "ignores", [2, 2]),
        ("anthropic", "refuses", [2, 1]),
    ],
)
def test_every_server_gives_a_valid_answer_with_the_fewest_calls(provider, shape, name, how, calls):
    server = Server(provider, name, how, shape)
    first, second = results(MODELS[name], shape, count=2)
    assert (first.output, second.output) == (VALID[shape], VALID[shape])
    assert server.calls == sum(calls)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_reasks", [0, 2])
def test_a_server_that_violates_ends_in_what_is_wrong(provider, shape, name, max_reasks):
    server = Server(provider, name, "violates", shape)
    [result] = results(MODELS[name], shape, max_reasks=max_reasks)
    assert (result.kind, result.attempts) == (ErrorKind.INVALID_OUTPUT, 1 + max_reasks)
    words = {
        "schema": "/stars: 9 is greater than the maximum of 5",
        "choices": "'so so' is none of",
    }
    assert words[shape] in result.message
    assert result.usage.output_tokens == 2 * (1 + max_reasks), "all that was paid is counted"
    assert server.calls == 1 + max_reasks


def test_a_wrong_answer_is_sent_back_in_the_same_conversation(provider):
    Server(provider, "openai", "violates", "schema")
    results(OpenAILLM, "schema", max_reasks=1)
    first, second = (body["messages"] for _, _, body in provider.requests)
    assert second[: len(first)] == first
    answer, reply = second[len(first) :]
    assert answer == {"role": "assistant", "content": WRONG["schema"]}
    assert reply["role"] == "user"
    assert "9 is greater than the maximum of 5" in reply["content"]


def test_a_schema_is_sent_as_each_provider_takes_it(provider):
    Server(provider, "openai", "honours", "schema")
    results(OpenAILLM, "schema")
    sent = provider.requests[-1][2]["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    assert list(sent["json_schema"]["schema"]["properties"]) == ["why", "stars"]
    Server(provider, "anthropic", "honours", "schema")
    results(AnthropicLLM, "schema")
    body = provider.requests[-1][2]
    assert body["output_config"]["format"]["type"] == "json_schema"
    assert body["system"] == "s", "it enforces the schema: no words are paid"


def test_a_refusal_of_another_thing_is_no_refusal_of_schemas(provider):
    provider.status, provider.body = 400, {"error": {"message": "temperature is too high"}}
    [result] = results(OpenAILLM, "schema")
    assert (result.kind, len(provider.requests)) == (ErrorKind.BAD_REQUEST, 1)


def test_a_refusal_is_logged_once_without_the_schema(provider, caplog):
    Server(provider, "openai", "refuses", "schema")
    results(OpenAILLM, "schema", count=3)
    [record] = caplog.records
    assert "refuses schemas: it is asked in words" in record.getMessage()
    assert "stars" not in caplog.text


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fake_has_an_answer_of_each_shape(shape):
    [result] = results(lambda _: FakeLLM(), shape)
    assert (result.kind, result.attempts) == (None, 1)
    assert SHAPES[shape].checked(result.output) == result.output


def test_a_fake_that_answers_with_broken_json_is_asked_again():
    [result] = results(lambda _: FakeLLM(malformed_rate=1), "schema")
    assert (result.kind, result.attempts) == (ErrorKind.INVALID_OUTPUT, 3)


def test_a_function_gets_its_wrong_answer_and_what_is_wrong_in_its_prompt():
    prompts = []

    def model(prompt):
        prompts.append(prompt)
        return VALID["choices"] if "none of the choices" in prompt else "well"

    async def run():
        llm = CallableLLM(model)
        try:
            return await complete_with_retries(
                llm,
                LLMRequest(prompt="p", shape=SHAPES["choices"]),
                policy=ONCE,
                timeout_s=10,
                max_reasks=1,
            )
        finally:
            await llm.aclose()

    result = asyncio.run(run())
    assert (result.output, result.attempts) == ("good", 2)
    assert prompts[0] == "p"
    assert "You answered:\nwell" in prompts[1]


def test_a_failed_call_within_a_conversation_is_made_again_with_it():
    told = iter([WRONG["schema"], LLMError(ErrorKind.SERVER_ERROR, "down"), VALID["schema"]])
    seen = []

    def script(request):
        seen.append(len(request.turns))
        return next(told)

    async def run():
        return await complete_with_retries(
            FakeLLM(script=script),
            LLMRequest(prompt="p", shape=SHAPES["schema"]),
            policy=RetrySpec(max_attempts=2, base_wait_s=0),
            timeout_s=10,
            max_reasks=1,
        )

    result = asyncio.run(run())
    assert (result.output, result.attempts, seen) == (VALID["schema"], 3, [0, 1, 1])


def test_a_long_answer_is_sent_back_in_part():
    answer = json.dumps({"why": "x" * 50_000, "stars": 9})
    seen = []

    def script(request):
        seen.append(request)
        return answer

    async def run():
        return await complete_with_retries(
            FakeLLM(script=script),
            LLMRequest(prompt="p", shape=SHAPES["schema"]),
            policy=ONCE,
            timeout_s=10,
            max_reasks=1,
        )

    assert asyncio.run(run()).kind is ErrorKind.INVALID_OUTPUT
    assert len(seen[1].turns[0].answer) < 5_000
