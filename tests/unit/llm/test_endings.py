"""How an answer ends: finish reasons of every provider, answers that are cut off, and their limits."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, Usage
from fanout.core.spec import RetrySpec
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.llm.answers import validate_json
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import complete_with_retries
from fanout.llm.gemini import GeminiLLM
from fanout.llm.limit_headers import LimitHeaders
from fanout.llm.litellm import LiteLLM
from fanout.llm.openai import OpenAILLM
from fanout.llm.refusals import Refusals
from tests.scripted_provider import anthropic_reply, openai_reply

pytestmark = pytest.mark.usefixtures("at_provider")

ONCE = RetrySpec(max_attempts=1)
TWICE = RetrySpec(max_attempts=2, base_wait_s=0)
CUT, FILTERED, FAILED = ErrorKind.TRUNCATED, ErrorKind.CONTENT_FILTER, ErrorKind.SERVER_ERROR
CLAUDE = "claude-opus-4-1"


def gemini_reply(text, finish):
    candidate = {"content": {"parts": [{"text": text}]}, "finishReason": finish}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1}
    return {"candidates": [candidate], "usageMetadata": usage}


def usage():
    return Usage(calls=1, input_tokens=5, output_tokens=2)


class Told:
    """A model of any provider that ends its answers as it is told; counts calls and their limits."""

    def __init__(self, name, provider):
        self.name = name
        self.limits = []
        self.text, self.finish = "an answer", "stop"
        self._provider = provider
        provider.respond = lambda _headers, body: (200, self._body(body))

    def _body(self, body):
        if self.name == "gemini":
            self.limits.append(body.get("generationConfig", {}).get("maxOutputTokens"))
            return gemini_reply(self.text, self.finish)
        self.limits.append(body.get("max_tokens"))
        if self.name == "anthropic":
            return anthropic_reply(self.text, self.finish)
        return openai_reply(self.text, self.finish)

    def _reply(self, request):
        self.limits.append(request.max_tokens if isinstance(request, LLMRequest) else None)
        return LLMReply(text=self.text, usage=usage(), finish_reason=self.finish)

    async def _litellm(self, **options):
        self.limits.append(options.get("max_tokens"))
        message = type("Message", (), {"content": self.text})
        choice = type("Choice", (), {"message": message, "finish_reason": self.finish})
        return type("Response", (), {"choices": [choice], "usage": None})

    def made(self):
        if self.name == "litellm":
            llm = LiteLLM.__new__(LiteLLM)
            llm._limit_headers = LimitHeaders()
            llm._name, llm._refusals = "x/m", Refusals("x/m")
            llm._litellm = type("Module", (), {"acompletion": staticmethod(self._litellm)})
            return llm
        kinds = {
            "openai": partial(OpenAILLM, "m"),
            "anthropic": partial(AnthropicLLM, CLAUDE),
            "gemini": partial(GeminiLLM, "m"),
            "function": partial(CallableLLM, self._reply),
            "fake": partial(FakeLLM, script=self._reply),
        }
        return kinds[self.name]()

    def result(self, *, max_tokens=None, policy=ONCE, **options):
        async def run():
            llm = self.made()
            shape = options.pop("shape", None)
            request = LLMRequest(prompt="p", max_tokens=max_tokens, shape=shape)
            try:
                return await complete_with_retries(
                    llm, request, policy=policy, timeout_s=10, **options
                )
            finally:
                await llm.aclose()

        return asyncio.run(run())


PROVIDERS = ["openai", "anthropic", "gemini", "litellm", "function", "fake"]


@pytest.fixture(params=PROVIDERS)
def told(request, provider):
    return Told(request.param, provider)


WORDS = {
    None: ["stop", "STOP", "end_turn", "stop_sequence", "eos_token", "FINISH_REASON_UNSPECIFIED"],
    CUT: ["length", "max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"],
    FILTERED: ["content_filter", "refusal", "SAFETY", "RECITATION", "PROHIBITED_CONTENT",
               "guardrail_intervened", "sensitive"],
    FAILED: ["error", "abort", "OTHER", "MALFORMED_FUNCTION_CALL", "pause_turn", "cancelled",
             "insufficient_system_resource", "UNEXPECTED_TOOL_CALL", "a word of tomorrow"],
}  # fmt: skip


def test_each_finish_reason_has_its_kind_and_is_kept_as_it_came(told):
    for kind, words in WORDS.items():
        for word in words:
            told.finish = word
            result = told.result()
            assert (result.kind, result.finish_reason) == (kind, word), word
            assert (result.output is None) == (kind is not None)
            assert result.usage.calls == 1


def test_a_complete_answer_without_a_reason_is_one_and_an_empty_one_is_a_failure(told):
    told.finish = None
    assert (told.result().output, told.result().finish_reason) == ("an answer", None)
    told.text = ""
    # A function is no server: what it returns is its answer.
    kind = ErrorKind.INVALID_OUTPUT if told.name in {"function", "fake"} else FAILED
    assert told.result().kind is kind
    told.finish = "stop"
    assert told.result().kind is ErrorKind.INVALID_OUTPUT


# A function takes no limit.
@pytest.mark.parametrize("told", [name for name in PROVIDERS if name != "function"], indirect=True)
def test_twice_the_room_is_asked_for_once_where_a_limit_was_set_and_fits(told):
    told.finish = "max_tokens"
    for max_tokens, window, asked in (
        (50, None, [50, 100]),
        (50, 1_000, [50, 100]),
        (50, 100, [50]) if told.name != "litellm" else (50, 99, [50]),
        (50, 99, [50]),
        (None, None, [32_000] if told.name == "anthropic" else [None]),
    ):
        told.limits.clear()
        result = told.result(max_tokens=max_tokens, window_tokens=window, policy=TWICE)
        assert (result.kind, told.limits) == (CUT, asked)
        assert result.attempts == len(asked)
        assert "cut off (finish reason max_tokens)" in result.message


class Rambler(FakeLLM):
    """A model that samples its answers: each ends with the next of these reasons."""

    def __init__(self, *reasons):
        self.reasons = list(reasons)
        self.asked = []
        super().__init__(script=self._next)

    def _next(self, request):
        self.asked.append(request.max_tokens)
        return LLMReply(text="an answer", usage=usage(), finish_reason=self.reasons.pop(0))

    def ends_by_chance(self, request):
        return request.seed is None


def rambled(*reasons, policy=TWICE, seed=None, max_tokens=None, **options):
    llm = Rambler(*reasons)
    request = LLMRequest(prompt="p", seed=seed, max_tokens=max_tokens)
    result = asyncio.run(
        complete_with_retries(llm, request, policy=policy, timeout_s=10, **options)
    )
    return result, llm.asked


def test_an_answer_that_rambled_on_by_chance_is_asked_for_once_more_as_it_was():
    result, asked = rambled("length", "stop")
    assert (result.output, result.attempts, result.usage.calls) == ("an answer", 2, 2)
    assert asked == [None, None]
    # What one sample has found does not hold for the next.
    assert result.lesson is None
    result, asked = rambled("length", "length", policy=RetrySpec(base_wait_s=0))
    assert (result.kind, result.attempts, result.lesson) == (CUT, 2, None)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"seed": 1}, [None]),
        ({"policy": ONCE}, [None]),
        ({"keeps_cut": True}, [None]),
        # A limit of the job is raised instead, where it can be.
        ({"max_tokens": 50}, [50, 100]),
        ({"max_tokens": 50, "window_tokens": 99}, [50]),
    ],
)
def test_an_answer_that_would_end_alike_is_not_asked_for_as_it_was(options, asked):
    assert rambled("length", "length", **options)[1] == asked


def test_that_it_was_asked_for_anew_is_known_after_another_delivery():
    kept = []

    async def keep(so_far):
        kept.append(so_far)

    rambled("length", "stop", keep=keep)
    result, asked = rambled("length", policy=RetrySpec(base_wait_s=0), so_far=kept[0])
    assert (result.kind, result.attempts, asked) == (CUT, 2, [None])


def test_a_cut_answer_is_kept_on_request_with_one_call(told):
    told.finish = "MAX_TOKENS"
    result = told.result(max_tokens=50, policy=TWICE, keeps_cut=True)
    assert (result.output, result.kind, result.attempts) == ("an answer", None, 1)
    assert (result.is_cut, result.finish_reason) == (True, "MAX_TOKENS")
    told.finish = "stop"
    assert not told.result(keeps_cut=True).is_cut


LABELS = shape_of(None, ("good", "good enough", "A", "A*", "bad"))
NUMBER = shape_of({"type": "integer"})
OBJECT = shape_of({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
KEPT = {
    "text": ("half an ans", None, None, "half an ans"),
    "nothing": ("", None, None, None),
    "blank": (" \n", None, None, None),
    "only reasoning": ("<think> Well,", None, None, None),
    "an answer after reasoning": ("<think>x</think>half", None, None, "half"),
    "open JSON": ('{"a": 1', None, validate_json, None),
    "open JSON after an object": ('[{"a": 1}, {"a"', None, validate_json, None),
    "whole JSON": ('{"a": 1}\n\n', None, validate_json, '{"a": 1}'),
    "a number": ("12", None, validate_json, None),
    "a string": ('"so"', None, validate_json, '"so"'),
    "open object": ('{"a": 1', OBJECT, None, None),
    "whole object": ('{"a": 1}', OBJECT, None, '{"a":1}'),
    "object without its shape": ('{"b": 1}', OBJECT, None, None),
    "part of a number": ("12", NUMBER, None, None),
    "whole label": ("bad", LABELS, None, "bad"),
    "half a label": ("ba", LABELS, None, None),
    "beginning of another label": ("good", LABELS, None, None),
    "beginning of another label by a sign": ("A", LABELS, None, None),
    "label in JSON": ('{"answer": "good"}', LABELS, None, "good"),
    "text by a schema": ("goo", shape_of({"type": "string"}), None, None),
    "text in JSON by a schema": ('"goo"', shape_of({"type": "string"}), None, '"goo"'),
    "label in open JSON": ('{"answer": "good', LABELS, None, None),
}


@pytest.mark.parametrize("name", KEPT)
def test_only_what_is_an_answer_as_it_is_is_kept(provider, name):
    text, shape, validate, output = KEPT[name]
    told = Told("fake", provider)
    told.text, told.finish = text, "length"
    options = {"shape": shape, "validate": validate, "policy": TWICE, "max_tokens": 50}
    result = told.result(keeps_cut=True, **options)
    assert (result.output, result.kind) == (output, None if output is not None else CUT)
    # What is not kept is asked for once more, and not sent back as a wrong answer.
    assert told.limits == ([50] if output is not None else [50, 100])
    failed = told.result(**options)
    assert (failed.output, failed.kind) == (None, CUT)


UNCLEAR = {
    "text": ("half an ans", None, None, None),
    "object": ('{"a": 1}', OBJECT, None, '{"a":1}'),
    "open object": ('{"a": 1', OBJECT, None, None),
    "object without its shape": ('{"b": 1}', OBJECT, None, None),
    "part of a number": ("12", NUMBER, None, None),
    "label": ("bad", LABELS, None, "bad"),
    "beginning of another label": ("good", LABELS, None, None),
    "no label": ("fine", LABELS, None, None),
    "JSON": ('{"a": 1}', None, validate_json, '{"a": 1}'),
    "no JSON": ('{"a": 1', None, validate_json, None),
    "nothing": (" ", LABELS, None, None),
}


@pytest.mark.parametrize("finish", ["wibble", "OTHER", "error"])
@pytest.mark.parametrize("name", UNCLEAR)
def test_a_whole_answer_with_an_unknown_reason_is_one(provider, name, finish):
    text, shape, validate, output = UNCLEAR[name]
    output = None if finish == "error" else output
    told, gate = Told("fake", provider), OpenGate()
    told.text, told.finish = text, finish
    policy = RetrySpec(max_attempts=3, base_wait_s=0)
    result = told.result(gate=gate, shape=shape, validate=validate, policy=policy)
    assert (result.output, result.finish_reason) == (output, finish)
    # Another one is no outage, and nothing to be corrected.
    assert (result.kind, result.attempts) == ((None, 1) if output is not None else (FAILED, 3))
    assert {error.is_own for error in gate.errors} <= {finish != "error"}


def test_every_provider_leaves_an_unknown_reason_to_the_shape(told):
    told.finish = "wibble"
    for told.text, shape, output in (
        ("bad", LABELS, "bad"),
        ("fine", LABELS, None),
        ("bad", None, None),
    ):
        gate = OpenGate()
        result = told.result(gate=gate, shape=shape)
        assert (result.output, [error.is_own for error in gate.errors]) == (
            output,
            [True] * (output is None),
        )


class OpenGate:
    """A gate that keeps the errors of calls."""

    def __init__(self):
        self.errors = []

    async def enter(self, _request, **_):
        return 0.0

    async def leave(self, _request, _reply, error):
        self.errors += [error] if error else []


ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], ErrorKind | None]] = {
    "beside an answer": ({"error": {"code": 502, "message": "upstream"}}, {}, FAILED),
    "in the choice": ({}, {"error": {"code": 502, "message": "upstream"}}, FAILED),
    "in the choice, of its money": (
        {}, {"error": {"code": 402, "message": "insufficient credits"}}, ErrorKind.BUDGET,
    ),
    "none": ({"error": None}, {"error": {}}, None),
    "a code for none": ({"error": {"code": 0, "message": ""}}, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("finish", ["stop", None])
def test_an_error_in_a_reply_with_an_answer_is_one(provider, name, finish):
    fields, of_choice, kind = ERRORS[name]
    reply = {**openai_reply("half an ans", finish), **fields}
    reply["choices"][0] |= of_choice
    provider.body = reply
    told = Told("openai", provider)
    provider.respond = None
    result = told.result()
    assert (result.kind, result.output is None) == (kind, kind is not None)


def test_a_reason_that_is_no_text_or_too_long_harms_nothing(provider):
    class Reason:
        value = "stop"

    told = Told("fake", provider)
    for finish, kind, shown in (
        (Reason(), None, "stop"),
        (3, FAILED, "3"),
        ("x" * 5_000, FAILED, "x" * 40),
        ("\ud800", FAILED, "\ufffd"),
    ):
        told.finish = finish
        result = told.result()
        assert (result.kind, result.finish_reason) == (kind, shown)


def test_an_error_of_a_users_model_keeps_its_reason():
    def script(_request):
        return LLMError(FAILED, "no", finish_reason="abort")

    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=script), LLMRequest(prompt="p"), policy=ONCE, timeout_s=9
        )
    )
    assert result.finish_reason == "abort"


class Claude:
    """Anthropic's API: a model of a limit and a window, which may say the limit."""

    def __init__(self, provider, *, most=8_192, window=200_000, prompt=10, says=None, words=None):
        self.most, self.window, self.prompt = most, window, prompt
        self.says, self.words = says, words
        self.limits, self.looks = [], 0
        provider.respond = self.respond

    def respond(self, _headers, body):
        if body is None:
            self.looks += 1
            found = {"type": "model", "id": "m", "max_tokens": self.says}
            return (200, found) if self.says is not None else (404, {"type": "error"})
        limit = body["max_tokens"]
        self.limits.append(limit)
        words = None
        if limit > self.most:
            words = self.words or (
                f"max_tokens: {limit} > {self.most}, which is the maximum allowed number of "
                "output tokens for claude-x"
            )
        elif self.prompt + limit > self.window:
            words = (
                f"input length and `max_tokens` exceed context limit: {self.prompt} + {limit} > "
                f"{self.window}, decrease input length or `max_tokens` and try again"
            )
        if words is None:
            return 200, anthropic_reply("yes")
        return 400, {"type": "error", "error": {"type": "invalid_request_error", "message": words}}


def asked(name, count=1, *, max_tokens=None, at_once=False, checks=False):
    async def run():
        llm = AnthropicLLM(name)

        async def one():
            request = LLMRequest(prompt="p", max_tokens=max_tokens)
            return await complete_with_retries(llm, request, policy=ONCE, timeout_s=10)

        try:
            if checks:
                await llm.check()
            if at_once:
                return await asyncio.gather(*[one() for _ in range(count)])
            return [await one() for _ in range(count)]
        finally:
            await llm.aclose()

    return [result.kind for result in asyncio.run(run())]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("claude-3-opus-20240229", 4_096), ("claude-3-5-haiku-latest", 8_192),
        ("claude-3-7-sonnet-latest", 64_000), ("claude-opus-4-20250514", 32_000),
        ("claude-opus-4-1", 32_000), ("claude-sonnet-4-20250514", 64_000),
        ("claude-sonnet-4-5", 64_000), ("claude-haiku-4-5-20251001", 64_000),
        ("claude-opus-4-5", 64_000), ("claude-opus-4-6", 128_000), ("claude-sonnet-4-6", 128_000),
    ],
)  # fmt: skip
def test_the_limit_of_a_known_model_is_its_own_and_costs_no_question(provider, name, limit):
    server = Claude(provider, most=limit)
    assert asked(name) == [None]
    assert (server.limits, server.looks) == ([limit], 0)


def test_the_api_is_asked_once_for_the_limit_of_another_model(provider):
    server = Claude(provider, most=300_000, window=10**6, says=300_000)
    assert asked("claude-next", 8, at_once=True) == [None] * 8
    assert (set(server.limits), server.looks) == ({300_000}, 1)
    server = Claude(provider, most=300_000, window=10**6, says=300_000)
    assert asked("claude-next", 2, checks=True) == [None] * 2
    assert (set(server.limits), server.looks) == ({300_000}, 1), "the check has it already"


@pytest.mark.parametrize("says", [None, "many", 0, -1, True, 10**12, [1]])
def test_where_the_api_does_not_say_the_limit_its_refusal_does(provider, says, caplog):
    server = Claude(provider, says=says)
    assert asked("claude-next", 3) == [None] * 3
    assert server.limits == [128_000, 8_192, 8_192, 8_192]
    assert len(caplog.records) == 1


def test_calls_in_flight_when_the_first_one_learns_the_limit_fail_no_branch(provider):
    server = Claude(provider, most=4_096)
    provider.delay_s = 0.05
    assert asked(CLAUDE, 16, at_once=True) == [None] * 16
    assert set(server.limits) == {32_000, 4_096}


def test_a_refusal_in_other_words_tries_lower_limits(provider):
    server = Claude(provider, most=9_000, words="max_tokens is too large for this model")
    assert asked(CLAUDE, 2) == [None, None]
    assert server.limits == [32_000, 8_192, 8_192]


def test_a_long_prompt_gets_the_room_that_is_left_and_others_the_whole_limit(provider):
    server = Claude(provider, most=32_000, prompt=190_000)
    assert asked(CLAUDE) == [None]
    assert server.limits == [32_000, 10_000]
    server.prompt, server.limits = 10, []
    assert asked(CLAUDE) == [None]
    assert server.limits == [32_000]


def test_a_prompt_that_leaves_no_room_is_too_long(provider):
    server = Claude(provider, most=32_000, prompt=200_000)
    assert asked(CLAUDE) == [ErrorKind.CONTEXT_LENGTH]
    assert len(server.limits) == 1


def test_a_limit_of_the_user_is_not_changed(provider):
    server = Claude(provider)
    assert asked(CLAUDE, max_tokens=9_000) == [ErrorKind.BAD_REQUEST]
    assert server.limits == [9_000]


def test_a_server_that_does_not_answer_the_question_costs_no_branch(provider):
    server = Claude(provider, most=10**6, window=10**7)
    provider.respond = lambda headers, body: (
        server.respond(headers, body) if body is not None else (200, b"<html>")
    )
    assert asked("claude-next", 2) == [None, None]
    assert server.limits == [128_000, 128_000]
