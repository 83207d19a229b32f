"""The adapter of Anthropic behaves like the provider's SDK: one table for both."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind, Usage
from fanout.llm import LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.calls import _call
from tests.raw_server import RawServer, read_request
from tests.scripted_provider import anthropic_reply
from tests.sdk_anthropic import SdkAnthropicLLM

KEY = "sk-ant-test-0123456789abcdef"
REQUEST = LLMRequest(prompt="hello", max_tokens=32_000)
FULL = LLMRequest(prompt='Grüße 🎈 "q"\n\x07', system="s", max_tokens=9, stop=("END", "X"))


@pytest.fixture(autouse=True)
def environment(provider, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def outcome(kind_of_client, request=REQUEST):
    llm = kind_of_client("m")
    try:
        return await _call(llm, request, 30)
    except LLMError as error:
        return error.kind, str(error), error.retry_after_s, error.status
    finally:
        await llm.aclose()


def outcomes(request=REQUEST):
    async def both():
        return await outcome(AnthropicLLM, request), await outcome(SdkAnthropicLLM, request)

    return asyncio.run(both())


def saying(*content, **fields):
    return {**anthropic_reply(), "content": list(content), **fields}


def usage(**counts):
    return {**anthropic_reply(), "usage": counts}


TEXT = {"type": "text", "text": "hi"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "x"}
BODY = json.dumps(anthropic_reply("packed")).encode()
ANSWERS = {
    "plain": (anthropic_reply(), {}),
    "with a request's id": (anthropic_reply(), {"request-id": "req_1"}),
    "cut": (anthropic_reply(stop="max_tokens"), {}),
    "window exceeded": (anthropic_reply(stop="model_context_window_exceeded"), {}),
    "stopped": (anthropic_reply(stop="stop_sequence"), {}),
    "refused": (saying(stop_reason="refusal", stop_details={"type": "refusal"}), {}),
    "refused in the middle": (anthropic_reply("x", stop="refusal"), {}),
    "paused": (anthropic_reply(stop="pause_turn"), {}),
    "two parts": (saying(TEXT, TEXT), {}),
    "thoughts": (saying(THOUGHT, TEXT), {}),
    "hidden thoughts": (saying({"type": "redacted_thinking", "data": "x"}, TEXT), {}),
    "blank": (anthropic_reply(" \n"), {}),
    "nothing": (saying(), {}),
    "cached": (usage(input_tokens=1, output_tokens=2, cache_read_input_tokens=30,
                     cache_creation_input_tokens=400), {}),
    "not cached": (usage(input_tokens=1, output_tokens=2, cache_read_input_tokens=None,
                         cache_creation_input_tokens=None), {}),
    "unknown fields": (saying(TEXT, service={"a": [1]}, container=None), {}),
    "gzip": (gzip.compress(BODY), {"content-encoding": "gzip"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_the_sdk_reads_it(provider, name):
    provider.body, provider.headers = ANSWERS[name]
    ours, reference = outcomes()
    assert ours == reference


def test_tokens_from_a_cache_and_into_it_are_tokens_of_the_prompt(provider):
    provider.body, _ = ANSWERS["cached"]
    ours, _ = outcomes()
    assert ours.usage == Usage(
        calls=1, input_tokens=431, cached_input_tokens=30, cache_write_tokens=400, output_tokens=2
    )


def error(kind, message="x"):
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


# The errors of https://platform.claude.com/docs/en/api/errors, and those of proxies.
ERRORS = {
    "bad request": (400, error("invalid_request_error", "max_tokens: must be positive"), {}),
    "key": (401, error("authentication_error", f"invalid x-api-key {KEY}"), {}),
    "billing": (402, error("billing_error"), {}),
    "permission": (403, error("permission_error"), {}),
    "model": (404, error("not_found_error", "model: m"), {}),
    "large": (413, error("request_too_large"), {}),
    "long": (400, error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"), {}),
    "rate": (429, error("rate_limit_error", "slow\ndown"), {"retry-after": "3"}),
    "failure": (500, error("api_error", "Internal server error"), {"request-id": "req_1"}),
    "late": (504, error("timeout_error"), {}),
    "overloaded": (529, error("overloaded_error", "Overloaded"), {"retry-after": "1.5"}),
    "no words": (500, {}, {}),
    "list": (500, [1], {}),
    "empty": (502, b"", {}),
    "packed": (400, gzip.compress(json.dumps(error("invalid_request_error")).encode()),
               {"content-encoding": "gzip"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_read_as_the_sdk_reads_it(provider, name):
    provider.status, provider.body, provider.headers = ERRORS[name]
    ours, reference = outcomes()
    assert ours == reference
    assert KEY not in str(ours)


# Each SDK has its own user agent; HTTP/1.1 keeps connections alive without a header.
OWN = ("x-stainless", "user-agent", "connection", "content-length")


def sent(provider):
    return [
        (path, {k: v for k, v in headers.items() if not k.startswith(OWN)}, body)
        for path, headers, body in provider.requests
    ]


CUSTOM = "X-Team: a: b\nno header\nanthropic-beta: one,two"
ENVIRONMENTS = {
    "plain": {},
    "slash": {"ANTHROPIC_BASE_URL": "{url}/"},
    "path": {"ANTHROPIC_BASE_URL": "{url}/a%20b"},
    "token": {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "token-0123456789"},
    "key and token": {"ANTHROPIC_AUTH_TOKEN": "token-0123456789"},
    "custom": {"ANTHROPIC_CUSTOM_HEADERS": CUSTOM},
    "custom version": {"ANTHROPIC_CUSTOM_HEADERS": "anthropic-version: 2023-06-01"},
}


@pytest.mark.parametrize("request_", [REQUEST, FULL], ids=["least", "full"])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_sent_is_what_the_sdk_sends(provider, monkeypatch, name, request_):
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value.format(url=provider.url))
    provider.body = anthropic_reply()
    ours, reference = outcomes(request_)
    assert ours == reference
    first, second = sent(provider)
    assert first == second
    assert first[2]["messages"] == [{"role": "user", "content": request_.prompt}]


BROKEN = {
    "closes at once": b"",
    "closes in its body": b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_connection_is_the_same_kind_of_error(monkeypatch, name):
    def talk(connection):
        read_request(connection)
        connection.sendall(BROKEN[name])

    with RawServer(talk) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        ours, reference = outcomes()
        assert ours[0] is reference[0] is ErrorKind.CONNECTION
        # One call, with any outcome: a second call might be billed.
        assert server.connections == 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ANTHROPIC_BASE_URL", "localhost:8000", "ANTHROPIC_BASE_URL must be a URL that begins"),
        ("ANTHROPIC_API_KEY", "sk-secret\nvalue", "^ANTHROPIC_API_KEY holds a character"),
        ("ANTHROPIC_CUSTOM_HEADERS", "X-A: ö", "^ANTHROPIC_CUSTOM_HEADERS holds a character"),
    ],
)
def test_a_variable_that_cannot_be_used_names_itself(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ModelError, match=message) as caught:
        AnthropicLLM("m")
    assert "secret" not in str(caught.value)
