"""Answers with a shape: what is sent, what a server that honours, ignores or refuses it costs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.core.spec import RetrySpec, make_spec, stored_spec
from fanout.core.strict_schema import object_properties
from fanout.llm import FakeLLM, LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import complete_with_retries
from fanout.llm.gemini import GeminiLLM
from fanout.llm.local import _LlamaCpp
from fanout.llm.openai import OpenAILLM
from tests.fake_litellm import litellm_of
from tests.scripted_provider import anthropic_reply, gemini_reply, openai_reply

pytestmark = pytest.mark.usefixtures("at_provider")

SCHEMA = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "stars": {"type": "integer", "maximum": 5}},
    "required": ["why"],
    "additionalProperties": False,
}
SHAPES = {
    "schema": shape_of(SCHEMA),
    "list": shape_of({"type": "array", "items": {"type": "integer"}}),
    "number": shape_of({"type": "number", "maximum": 5}),
    "label": shape_of({"enum": ["good", "bad"]}),
    "choices": shape_of(None, ("good", "bad")),
}
VALID = {
    "schema": '{"why":"it is","stars":4}',
    "list": "[1,2]",
    "number": "4.5",
    "label": '"good"',
    "choices": "good",
}
# What a model may say instead, and what is wrong with it.
WRONG = {
    "schema": {
        '{"why":"it is","stars":9}': "/stars: 9 is greater than the maximum of 5",
        '{"why":"it is","stars":"4"}': '/stars: "4" is not of type',
        '{"why":"it is","more":1}': "'more' was unexpected",
        '{"why":"it is","st': "is not JSON",
    },
    "list": {'[1,"2"]': '/1: "2" is not of type "integer"', "[1,": "the answer '[1,' is not JSON"},
    "number": {'"4"': 'the answer: "4" is not of type', "9": "9 is greater than the maximum of 5"},
    "label": {'"so so"': 'the answer: "so so" is not one of "good" or "bad"'},
    "choices": {"so so": "'so so' is none of the choices good, bad", '{"answer":"go': "is none of"},
}
ONCE = RetrySpec(max_attempts=1)


def first_wrong(shape):
    return next(iter(WRONG[shape]))


MODELS: dict[str, Any] = {
    "openai": OpenAILLM,
    # Its longest answer is known.
    "anthropic": lambda _: AnthropicLLM("claude-opus-4-1"),
    "gemini": GeminiLLM,
}
ALL = [*MODELS, "litellm", "local"]
REPLIES = {
    "litellm": openai_reply,
    "local": openai_reply,
    "openai": openai_reply,
    "anthropic": anthropic_reply,
    "gemini": gemini_reply,
}
FIELDS = {
    "litellm": "response_format",
    "local": "response_format",
    "openai": "response_format",
    "anthropic": "output_config.format",
    "gemini": "generation_config.response_schema",
}


def sent_schema(body):
    """The schema of a request's body, whichever provider it is for; None if it has none."""
    if "response_format" in body:
        return body["response_format"]["json_schema"]["schema"]
    if "output_config" in body:
        return body["output_config"]["format"]["schema"]
    return body.get("generationConfig", {}).get("responseSchema")


class Server:
    """A provider's server.

    It honours, ignores or refuses schemas, or gives the ``answers`` in turn, the last one from then on.
    """

    def __init__(self, provider, name, how, shape, answers=(), message="not supported here"):
        self.name, self.how, self.shape = name, how, shape
        self.provider, self.message = provider, message
        self.answers = list(answers)
        provider.requests.clear()
        provider.respond = self.respond

    def respond(self, _headers, body):
        is_native = sent_schema(body) is not None
        if self.how == "refuses" and is_native:
            message = f"{FIELDS[self.name]}: {self.message}"
            error = {"type": "invalid_request_error", "message": message, "code": 400}
            return 400, {"type": "error", "error": error}
        if self.answers:
            return 200, self.reply(
                self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            )
        is_told = "nothing else" in json.dumps(body)
        if self.how == "honours" and is_native:
            valid = VALID[self.shape]
            value = valid if self.shape == "choices" else json.loads(valid)
            is_wrapped = "answer" in sent_schema(body)["properties"]
            return 200, self.reply(json.dumps({"answer": value} if is_wrapped else value))
        return 200, self.reply(VALID[self.shape] if is_told else "Well, it depends.")

    def reply(self, text):
        return REPLIES[self.name](text)

    @property
    def calls(self):
        return len(self.provider.requests)


def model_at(provider, name):
    """What makes the model of an adapter whose calls a provider answers and counts."""

    def respond(headers, options):
        provider.requests.append(("", headers, options))
        return provider.respond(headers, options)

    if name == "litellm":
        return lambda _: litellm_of(respond)
    if name == "local":
        return lambda model: _LlamaCpp(model, base_url=f"{provider.url}/v1")
    return MODELS[name]


def results(make, shape, *, count=1, max_reasks=2, at_once=False):
    async def one(llm):
        request = LLMRequest(prompt="p", system="s", shape=SHAPES[shape])
        return await complete_with_retries(
            llm, request, policy=ONCE, timeout_s=10, max_reasks=max_reasks
        )

    async def run():
        llm = make("m")
        try:
            if at_once:
                return list(await asyncio.gather(*(one(llm) for _ in range(count))))
            return [await one(llm) for _ in range(count)]
        finally:
            await llm.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "how", "calls"),
    [
        # A server at a base URL is told in words as well, so one that ignores schemas costs nothing.
        ("openai", "honours", [1, 1]),
        ("openai", "ignores", [1, 1]),
        ("openai", "refuses", [2, 1]),
        ("anthropic", "honours", [1, 1]),
        ("anthropic", "ignores", [1, 1]),
        ("anthropic", "refuses", [2, 1]),
        ("gemini", "honours", [1, 1]),
        ("gemini", "ignores", [1, 1]),
        ("gemini", "refuses", [2, 1]),
        ("litellm", "honours", [1, 1]),
        ("litellm", "ignores", [1, 1]),
        ("litellm", "refuses", [2, 1]),
        ("local", "honours", [1, 1]),
        ("local", "ignores", [1, 1]),
        ("local", "refuses", [2, 1]),
    ],
)
def test_every_server_gives_a_valid_answer_with_the_fewest_calls(provider, shape, name, how, calls):
    server = Server(provider, name, how, shape)
    first, second = results(model_at(provider, name), shape, count=2)
    assert (first.output, second.output) == (VALID[shape], VALID[shape])
    # The local model gets labels as a grammar of their own, which its server always has.
    is_grammar = name == "local" and shape == "choices"
    assert server.calls == (2 if is_grammar else sum(calls))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALL)
def test_a_server_that_refuses_and_then_violates_costs_one_more_call_in_all(provider, shape, name):
    for answers, kind, calls in (
        ([first_wrong(shape), VALID[shape], VALID[shape]], None, 3),
        ([first_wrong(shape)], ErrorKind.INVALID_OUTPUT, 6),
    ):
        server = Server(provider, name, "refuses", shape, answers)
        first, second = results(model_at(provider, name), shape, count=2)
        assert (first.kind, second.kind) == (kind, kind)
        assert first.attempts + second.attempts == calls, "the refusal is none"
        assert server.calls == calls + (name != "local" or shape != "choices")


FORMS = {
    "bare": "{}",
    "spaces": "\n  {}\n",
    "a fence": "```json\n{}\n```",
    "a fence in prose": "Here it is:\n```json\n{}\n```\nAnything else?",
    "reasoning": '<think>Is it {{"why": 1}}? No.</think>\n{}',
    "requested reasoning": "<reasoning>hm</reasoning>{}",
    "in an object": '{{"answer": {}}}',
}
PROSE = "Sure! The answer is {}. Good luck!"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_what_surrounds_an_answer_is_no_reason_to_pay_again(provider, shape, name):
    forms = FORMS | ({"prose": PROSE} if shape == "schema" else {})
    for form in forms.values():
        valid = VALID[shape]
        shown = json.dumps(valid) if shape == "choices" and form == FORMS["in an object"] else valid
        server = Server(provider, name, "violates", shape, [form.format(shown)])
        [result] = results(MODELS[name], shape)
        assert (result.output, result.attempts, server.calls) == (valid, 1, 1), form


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_server_that_violates_is_asked_again_and_ends_in_what_is_wrong(provider, shape, name):
    for wrong, words in WRONG[shape].items():
        server = Server(provider, name, "violates", shape, [wrong, VALID[shape]])
        [result] = results(MODELS[name], shape)
        assert (result.output, result.attempts, server.calls) == (VALID[shape], 2, 2), wrong
        server = Server(provider, name, "violates", shape, [wrong])
        [result] = results(MODELS[name], shape)
        assert (result.kind, result.attempts) == (ErrorKind.INVALID_OUTPUT, 3), wrong
        assert words in result.message
        assert result.usage.output_tokens == 2 * 3, "all that was paid is counted"
        assert server.calls == 3


@pytest.mark.parametrize("name", MODELS)
def test_without_reasks_a_wrong_answer_is_final(provider, name):
    server = Server(provider, name, "violates", "schema", [first_wrong("schema")])
    [result] = results(MODELS[name], "schema", max_reasks=0)
    assert (result.kind, result.attempts, server.calls) == (ErrorKind.INVALID_OUTPUT, 1, 1)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_answer_is_invalid(provider, name):
    Server(provider, name, "violates", "schema", [""])
    [result] = results(MODELS[name], "schema", max_reasks=0)
    assert result.kind is ErrorKind.INVALID_OUTPUT
    assert "empty" in result.message


@pytest.mark.parametrize("name", MODELS)
def test_calls_in_flight_at_the_first_refusal_are_asked_again_and_no_later_one(
    provider, name, caplog
):
    """Each of them has sent its schema; a refusal costs no tokens."""
    server = Server(provider, name, "refuses", "schema")
    provider.delay_s = 0.05
    many = results(MODELS[name], "schema", count=8, at_once=True)
    assert [one.output for one in many] == [VALID["schema"]] * 8
    assert [one.attempts for one in many] == [1] * 8
    assert server.calls <= 16
    assert len([one for one in caplog.records if "refuses schemas" in one.getMessage()]) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_that_a_server_refuses_leaves_it_the_others(provider, name, caplog):
    async def run():
        llm = MODELS[name]("m")
        try:
            for shape in ("schema", "schema", "list"):
                request = LLMRequest(prompt="p", shape=SHAPES[shape])
                await llm.complete(request)
        finally:
            await llm.aclose()

    Server(provider, name, "refuses", "schema", message="Invalid schema: too many properties")
    asyncio.run(run())
    sent = [sent_schema(body) is not None for _, _, body in provider.requests]
    # The last is refused as well, by this server.
    assert sent == [True, False, False, True, False]
    assert "refuses this schema" in caplog.text


def invalid_at_groq(answer, message="Failed to validate JSON. Please adjust your prompt."):
    error = {
        "message": f"{message} See 'failed_generation' for more details.",
        "type": "invalid_request_error",
        "code": "json_validate_failed",
        "failed_generation": answer,
    }
    return 400, {"error": error}


@pytest.mark.parametrize(
    ("first", "output", "calls"),
    [
        # The server took a fence for wrong JSON.
        (f"```json\n{VALID['schema']}\n```", VALID["schema"], 1),
        (first_wrong("schema"), VALID["schema"], 2),
        ('{"why":"it is","st', VALID["schema"], 2),
    ],
)
def test_an_answer_in_an_error_of_the_server_is_checked_as_any_other(
    provider, first, output, calls
):
    """Groq refuses an answer of its own that does not have the schema, with status 400."""
    replies = iter([invalid_at_groq(first), (200, openai_reply(VALID["schema"]))])
    provider.respond = lambda _headers, _body: next(replies)
    [result] = results(OpenAILLM, "schema")
    assert (result.output, result.attempts, len(provider.requests)) == (output, calls, calls)
    assert result.usage.output_tokens is None, "the error does not say what the call cost"
    if calls == 2:
        sent_back = provider.requests[-1][2]["messages"][-2:]
        assert sent_back[0] == {"role": "assistant", "content": first}
        assert "That is not valid" in sent_back[1]["content"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Failed to generate JSON. Please adjust your prompt.", ErrorKind.INVALID_OUTPUT),
        ("max completion tokens reached before generating a valid document", ErrorKind.TRUNCATED),
    ],
)
def test_an_error_of_the_server_without_its_answer_is_that_of_one_branch(provider, message, kind):
    provider.respond = lambda _headers, _body: invalid_at_groq("", message)
    [result] = results(OpenAILLM, "schema")
    assert (result.kind, result.attempts, result.stop_after) == (kind, 1, 0)


def test_a_wrong_answer_is_sent_back_in_the_same_conversation(provider):
    Server(provider, "openai", "violates", "schema", [first_wrong("schema")])
    results(OpenAILLM, "schema", max_reasks=1)
    first, second = (body["messages"] for _, _, body in provider.requests)
    assert second[: len(first)] == first
    answer, reply = second[len(first) :]
    assert answer == {"role": "assistant", "content": first_wrong("schema")}
    assert reply["role"] == "user"
    assert "9 is greater than the maximum of 5" in reply["content"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["violates", "refuses"])
def test_a_conversation_says_once_what_the_answer_must_be(provider, name, how):
    Server(provider, name, how, "schema", [first_wrong("schema")])
    results(MODELS[name], "schema", max_reasks=2)
    last = json.dumps(provider.requests[-1][2])
    assert last.count("nothing else") == 1
    assert last.count("That is not valid") == 2


def test_a_schema_is_sent_as_each_provider_takes_it(provider):
    Server(provider, "openai", "honours", "schema")
    results(OpenAILLM, "schema")
    sent = provider.requests[-1][2]["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    Server(provider, "anthropic", "honours", "schema")
    results(MODELS["anthropic"], "schema")
    body = provider.requests[-1][2]
    assert body["output_config"]["format"]["type"] == "json_schema"
    Server(provider, "gemini", "honours", "schema")
    results(GeminiLLM, "schema")
    body = provider.requests[-1][2]
    assert body["generationConfig"]["responseMimeType"] == "application/json"
    assert body["generationConfig"]["responseSchema"]["propertyOrdering"] == ["why", "stars"]


@pytest.mark.parametrize("name", MODELS)
def test_the_provider_itself_enforces_schemas_and_no_words_are_paid(provider, name, monkeypatch):
    url = f"{provider.url}{'/v1' if name == 'openai' else ''}"
    monkeypatch.setattr(f"fanout.llm.{name}._BASE_URL", url)
    monkeypatch.delenv(f"{name.upper()}_BASE_URL")
    server = Server(provider, name, "honours", "schema")
    [result] = results(MODELS[name], "schema")
    assert (result.output, server.calls) == (VALID["schema"], 1)
    assert "nothing else" not in json.dumps(provider.requests[-1][2])
    Server(provider, name, "honours", "schema", [first_wrong("schema")])
    results(MODELS[name], "schema")
    assert json.dumps(provider.requests[-1][2]).count("nothing else") == 1, "as words of a re-ask"


class Zebra(BaseModel):
    zeta: int
    alpha: str
    mid: list[str] = []


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_properties_is_the_user_s_from_the_store_to_the_provider(provider, name):
    for schema in (
        Zebra,
        {"type": "object", "properties": {x: {"type": "integer"} for x in "zam"}},
    ):
        spec = make_spec(model="fake", prompt="{input}", schema=schema)
        stored = stored_spec(spec.model_dump_json())
        order = list(object_properties(spec.schema or {}))
        assert list(object_properties(stored.schema or {})) == order
        shape = shape_of(stored.schema)
        assert [shape.in_words.index(f'"{one}":') for one in order] == sorted(
            shape.in_words.index(f'"{one}":') for one in order
        )

        async def ask(shape=shape):
            llm = MODELS[name]("m")
            try:
                await llm.complete(LLMRequest(prompt="p", shape=shape))
            finally:
                await llm.aclose()

        Server(provider, name, "honours", "schema")
        asyncio.run(ask())
        assert list(sent_schema(provider.requests[-1][2])["properties"]) == order


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
    told = iter([first_wrong("schema"), LLMError(ErrorKind.SERVER_ERROR, "down"), VALID["schema"]])
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
