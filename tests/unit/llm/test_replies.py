"""For any answer of a server or function, an adapter returns text or raises LLMError."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import types
from encodings import aliases
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm import LLMReply, LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import _call
from fanout.llm.gemini import GeminiLLM
from fanout.llm.http_client import HttpReply
from fanout.llm.litellm import LiteLLM
from fanout.llm.openai import OpenAILLM
from fanout.llm.reply_bodies import json_of
from fanout.llm.usage import NO_USAGE, UNKNOWN_USAGE, billed
from tests.scripted_provider import anthropic_reply, openai_reply

REQUEST = LLMRequest(prompt="p", max_tokens=9)


def openai_like(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    return OpenAILLM("m")


def anthropic_like(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    return AnthropicLLM("m")


def gemini_like(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    monkeypatch.setenv("GEMINI_BASE_URL", "http://127.0.0.1:9")
    return GeminiLLM("m")


@pytest.fixture
def provider_of(monkeypatch):
    made = {"openai": openai_like, "anthropic": anthropic_like, "gemini": gemini_like}
    return lambda name: made[name](monkeypatch)


def billed_of(outcome):
    """Return what counts for a call whose reply is not an answer of several words."""
    return outcome.usage if isinstance(outcome, LLMReply) else billed(outcome.kind, outcome.usage)


ADAPTERS = {"openai": openai_like, "anthropic": anthropic_like}
REPLIES = {"openai": openai_reply, "anthropic": anthropic_reply}


@pytest.fixture(params=ADAPTERS)
def adapter(request, monkeypatch):
    """One adapter and a valid reply for it; `answers` sets the reply that the server sends."""
    return ADAPTERS[request.param](monkeypatch), REPLIES[request.param]


def answers(llm, body, status=200, content_type="application/json"):
    """Return the adapter's reply for a body, or the LLMError that it raises: nothing else."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = CIMultiDict({"content-type": content_type})

    async def post(_url, _body, **_more):
        return HttpReply(status, headers, data)

    llm._http.post = post
    try:
        return asyncio.run(llm.complete(REQUEST))
    except LLMError as error:
        return error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "message", "content", "error", "code", "type", "text", "usage", "detail",
             "prompt_tokens", "input_tokens", "refusal", "finish_reason", "stop_reason", "id",
             "model", "metadata", "raw", "details", "retryDelay", "loc", "msg", "param", "data"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
BODIES = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())
FEWER = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


STATUSES = (200, 201, 302, 400, 401, 403, 404, 422, 429, 500, 503)
TYPES = ("application/json", "text/html; charset=x-no-such", "")


@given(body=BODIES, status=st.sampled_from(STATUSES), content_type=st.sampled_from(TYPES))
@FEWER
def test_no_body_raises_anything_but_llm_error(adapter, body, status, content_type):
    llm, _ = adapter
    assert isinstance(answers(llm, body, status, content_type), LLMReply | LLMError)


def within(key, depth):
    return b'{"%b": ' % key * depth + b"1" + b"}" * depth


@pytest.mark.parametrize("key", [b"message", b"error", b"detail", b"innererror", b"metadata"])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_depth_of_an_error_raises_anything_but_llm_error(adapter, key, status):
    llm, _ = adapter
    for depth in range(50, 1_100, 50):
        assert isinstance(answers(llm, within(key, depth), status), LLMError), depth


@pytest.mark.parametrize("charset", sorted({*aliases.aliases.values(), "punycode", "idna"}))
def test_no_charset_makes_a_reply_slow_or_raises(charset):
    began = time.process_time()
    with contextlib.suppress(ValueError):
        json_of(b"a-" + b"z" * 1_000_000, f"application/json; charset={charset}")
    # In quadratic time, this would take more than a minute.
    assert time.process_time() - began < 20


def test_absurd_counts_cost_no_answer(adapter):
    llm, good = adapter
    reply = json.dumps({**good(), "usage": {}}).encode()
    names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
    counts = b", ".join(b'"%b": %b' % (name.encode(), b"9" * 6_000) for name in names)
    answer = answers(llm, reply.replace(b'"usage": {}', b'"usage": {%b}' % counts))
    assert isinstance(answer, LLMReply), answer
    assert answer.usage.input_tokens is answer.usage.output_tokens is None


@given(
    value=JSON, place=st.sampled_from(["message", "content", "usage", "finish", "choices", "id"])
)
@FEWER
def test_no_part_of_a_reply_raises_anything_but_llm_error(adapter, value, place):
    llm, good = adapter
    reply = good()
    if good is openai_reply:
        choice = reply["choices"][0]
        targets = {"message": (choice, "message"), "content": (choice["message"], "content"),
                   "finish": (choice, "finish_reason"), "choices": (reply, "choices")}  # fmt: skip
    else:
        targets = {"content": (reply, "content"), "message": (reply["content"][0], "text"),
                   "finish": (reply, "stop_reason")}  # fmt: skip
    holder, key = targets.get(place, (reply, place))
    holder[key] = value
    assert isinstance(answers(llm, reply), LLMReply | LLMError)


DEEP = b"[" * 100_000
BOM = b"\xef\xbb\xbf"
# A body that is no reply means a failing server: fanout retries, and no document is to blame.
NO_REPLIES = {
    "nothing": b"", "spaces": b" \n", "null": b"null", "a list": b"[]", "a string": b'"hi"',
    "a number": b"7", "cut": b'{"id": "1", "choices": [{"mess', "deep": DEEP,
    "deep within": b'{"id": ' + DEEP, "a page": b"<html>starting</html>",
    "bytes": b"\xff\xfe\x00", "an error": {"error": {"message": "starting"}},
    "an error in a list": [{"error": {"code": 503, "message": "busy"}}],
    "an error in words": {"error": "model is loading"}, "a detail": {"detail": "starting"},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_REPLIES)
def test_what_is_no_reply_is_a_server_error(adapter, name):
    llm, _ = adapter
    error = answers(llm, NO_REPLIES[name])
    assert error.kind is ErrorKind.SERVER_ERROR, error


COUNTS = {
    "openai": {"usage": {"prompt_tokens": 7, "completion_tokens": 3}},
    "anthropic": {"usage": {"input_tokens": 7, "output_tokens": 3}},
    "gemini": {"usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3}},
}
# What of a success reply is no answer, beside a sound usage.
UNREADABLE: list[dict[str, Any]] = [
    {}, {"choices": None}, {"choices": 7}, {"choices": [3]}, {"choices": [{"message": "text"}]},
    {"choices": [{"message": {"content": []}}], "id": 1}, {"content": 7}, {"content": None},
    {"candidates": 7}, {"candidates": "x"}, {"candidates": [{"content": {"parts": "x"}}]},
    {"error": {"message": "it broke"}}, {"error": {"code": 503, "message": "busy"}},
]  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_success_that_is_no_answer_has_its_usage_or_an_unknown_one(provider_of, name):
    llm = provider_of(name)
    for part in UNREADABLE:
        body = json.dumps({**part, **COUNTS[name]}).encode()
        used = billed_of(answers(llm, body))
        assert (used.input_tokens, used.output_tokens) == (7, 3), part
        if body.endswith(b"}}"):
            assert billed_of(answers(llm, body[:-2])) == UNKNOWN_USAGE
    for page in (b"<html>hi</html>", b"", b"[]", b"7", b'{"detail": "starting"}'):
        assert billed_of(answers(llm, page)) == UNKNOWN_USAGE, page


@pytest.mark.parametrize(
    ("status", "body", "may_be_billed"),
    [
        (504, b"<html>late</html>", True), (524, b"", True), (504, b'{"error": "late"}', True),
        (200, b'{"error": {"message": "it broke"}}', True),
        (200, b'{"error": {"code": 504, "message": "late"}}', True),
        (200, b'{"error": {"code": 503, "message": "busy"}}', False),
        (200, b'{"error": {"code": "rate_limit_exceeded", "message": "slow"}}', False),
        (500, b"", False), (503, b"", False), (401, b"", False), (429, b"", False),
    ],
)  # fmt: skip
def test_only_a_refusal_is_certain_to_cost_nothing(provider_of, status, body, may_be_billed):
    for name in COUNTS:
        error = answers(provider_of(name), body, status)
        assert billed_of(error) == (UNKNOWN_USAGE if may_be_billed else NO_USAGE), name


@pytest.mark.parametrize(
    ("name", "cause", "usage"),
    [
        ("APIConnectionError", ValueError("Unable to get json response"), UNKNOWN_USAGE),
        ("APIConnectionError", ConnectionRefusedError("no"), NO_USAGE),
        ("APIResponseValidationError", None, UNKNOWN_USAGE),
        ("Timeout", None, UNKNOWN_USAGE),
        ("RateLimitError", None, NO_USAGE),
        ("GatewayTimeout", None, UNKNOWN_USAGE),
    ],
)
def test_a_reply_that_litellm_cannot_read_may_be_billed(lite, name, cause, usage):
    error: Any = type(name, (Exception,), {})("x")
    error.status_code = 429 if name == "RateLimitError" else 504
    error.__cause__ = cause
    assert billed_of(lite._error(error)) == usage


PART = {"type": "text", "text": "hi"}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
CONTENTS = {
    "parts": [PART],
    "two parts": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}],
    "strings": ["h", "i"],
    "thoughts": [THOUGHT, PART],
    "an object": PART,
    "deeper": [{"type": "text", "text": {"value": "hi"}}],
    "others": [{"type": "image_url", "image_url": {"url": "x"}}, PART],
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content_may_be_in_parts(adapter, name):
    llm, good = adapter
    reply = good()
    (reply["choices"][0]["message"] if good is openai_reply else reply)["content"] = CONTENTS[name]
    assert answers(llm, reply).text == "hi"


@pytest.mark.parametrize(
    ("content", "words"), [(5, "no text"), ({"a": 1}, "no text"), ([], "empty")]
)
def test_content_that_is_no_text_is_not_called_empty(adapter, content, words):
    llm, good = adapter
    reply = good()
    (reply["choices"][0]["message"] if good is openai_reply else reply)["content"] = content
    error = answers(llm, reply)
    assert error.kind is ErrorKind.INVALID_OUTPUT
    assert str(error).startswith(f"the answer is {words} (finish reason ")


def test_reasoning_beside_an_answer_is_not_part_of_it(monkeypatch):
    llm = openai_like(monkeypatch)
    assert answers(llm, openai_reply("hi", reasoning_content="hm", reasoning="hm")).text == "hi"
    error = answers(llm, openai_reply(None, reasoning_content="hm"))
    assert error.kind is ErrorKind.INVALID_OUTPUT


def test_a_refusal_among_parts_is_one(monkeypatch):
    refusal = openai_reply([{"type": "refusal", "refusal": "no"}])
    assert answers(openai_like(monkeypatch), refusal).kind is ErrorKind.CONTENT_FILTER


def test_an_error_within_a_choice_is_told(monkeypatch):
    reply = openai_reply("", finish="error")
    reply["choices"][0]["error"] = {"code": 429, "message": "slow down"}
    error = answers(openai_like(monkeypatch), reply)
    assert (error.kind, str(error)) == (ErrorKind.RATE_LIMITED, "HTTP 429: slow down")


@pytest.mark.parametrize(
    ("bytes_", "content_type", "text"),
    [
        ("é".encode("latin-1"), "application/json; charset=iso-8859-1", "é"),
        (b"\xc3", "application/json", "\ufffd"),
        ("é".encode(), "", "é"),
    ],
)
def test_an_answer_in_another_encoding_is_kept(adapter, bytes_, content_type, text):
    llm, good = adapter
    body = json.dumps(good("TEXT")).encode().replace(b"TEXT", bytes_)
    assert answers(llm, body, content_type=content_type).text == text
    assert answers(llm, BOM + json.dumps(good()).encode()).text == "hi"


@pytest.fixture
def lite(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", types.ModuleType("litellm"))
    return LiteLLM("p/m")


def as_object(value):
    if isinstance(value, dict):
        return types.SimpleNamespace(**{key: as_object(each) for key, each in value.items()})
    return [as_object(each) for each in value] if isinstance(value, list) else value


@given(value=JSON)
@FEWER
def test_no_object_of_litellm_raises_anything_but_llm_error(lite, value):
    with contextlib.suppress(LLMError):
        assert isinstance(lite._reply(as_object(value)), LLMReply)


@given(status=st.none() | st.integers(), body=JSON, headers=JSON)
@FEWER
def test_no_exception_of_litellm_raises_anything_else(lite, status, body, headers):
    error: Any = Exception("x")
    error.status_code, error.body = status, body
    error.response = types.SimpleNamespace(headers=headers)
    assert isinstance(lite._error(error), LLMError)


class Strange:
    """A model that a user wrote."""

    def __init__(self, returned):
        self.returned = returned

    async def complete(self, request):
        if isinstance(self.returned, BaseException):
            raise self.returned
        return self.returned


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (None, "invalid_output"),
        ("text", "invalid_output"),
        (LLMReply(text=None), "invalid_output"),
        (LLMReply(text=b"x"), "invalid_output"),
        (LLMError("auth", "by its name"), "auth"),
        (LLMError("no_such_kind", "x"), "internal"),
        (LLMError(["x"], "x"), "internal"),
        (KeyError("x"), "internal"),
    ],
)
def test_a_model_of_somebody_s_own_that_is_none_is_an_error_of_its_kind(returned, kind):
    with pytest.raises(LLMError) as caught:
        asyncio.run(_call(Strange(returned), REQUEST, 9))
    assert caught.value.kind is ErrorKind(kind)


@given(value=JSON)
@FEWER
def test_no_value_of_a_function_raises_anything_but_llm_error(value):
    llm = CallableLLM(lambda _prompt: value, concurrency=1)
    try:
        with contextlib.suppress(LLMError):
            assert isinstance(asyncio.run(_call(llm, REQUEST, 9)).text, str)
    finally:
        asyncio.run(llm.aclose())
