"""The adapter of chat completions behaves like the provider's SDK: one table for both."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm import LLMRequest
from fanout.llm.calls import _call
from fanout.llm.openai import OpenAILLM
from tests.raw_server import RawServer, read_request
from tests.scripted_provider import openai_reply
from tests.sdk_openai import SdkOpenAILLM

KEY = "sk-test-0123456789abcdef"
REQUEST = LLMRequest(prompt="hello")
FULL = LLMRequest(
    prompt='Grüße 🎈 "q"\n\x07',
    system="s",
    temperature=0.0,
    max_tokens=9,
    seed=7,
    stop=("END", "X"),
)
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def environment(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def outcome(kind_of_client, request=REQUEST):
    llm = kind_of_client("m")
    try:
        return await _call(llm, request, 30)
    except LLMError as error:
        # The message of an unexpected error comes from the library that raised it.
        told = None if error.kind is ErrorKind.INTERNAL else str(error)
        return error.kind, told, error.retry_after_s, error.status
    finally:
        await llm.aclose()


async def check():
    llm = OpenAILLM("m")
    try:
        await llm.check()
    finally:
        await llm.aclose()


def outcomes(request=REQUEST):
    async def both():
        return await outcome(OpenAILLM, request), await outcome(SdkOpenAILLM, request)

    return asyncio.run(both())


def without(name):
    return {key: value for key, value in openai_reply().items() if key != name}


def choices(*given):
    return {**openai_reply(), "choices": list(given)}


BODY = json.dumps(openai_reply("packed")).encode()
ANSWERS = {
    "plain": (openai_reply(), {}),
    "cut": (openai_reply(finish="length"), {}),
    "no type": (openai_reply(), {"content-type": "text/plain; charset=utf-8"}),
    "gzip": (gzip.compress(BODY), {"content-encoding": "gzip"}),
    "deflate": (zlib.compress(BODY), {"content-encoding": "deflate"}),
    "unknown fields": ({**openai_reply(x=[{}]), "service": {"a": [1]}, "usage": None}, {}),
    "no usage": (without("usage"), {}),
    "empty usage": ({**openai_reply(), "usage": {}}, {}),
    "no id": (without("id"), {}),
    "no model": (without("model"), {}),
    "refusal": (openai_reply(None, refusal="no"), {}),
    "filtered": (openai_reply("x", finish="content_filter"), {}),
    "filtered without a message": (choices({"index": 0, "finish_reason": "content_filter"}), {}),
    "null content": (openai_reply(None), {}),
    "blank content": (openai_reply(" \n"), {}),
    "no content": (choices({"index": 0, "finish_reason": "stop", "message": {}}), {}),
    "no choices": (without("choices"), {}),
    "null choices": ({**openai_reply(), "choices": None}, {}),
    "empty choices": (choices(), {}),
    "half a character": (b'{"choices": [{"message": {"content": "hi \\ud83d"}}]}', {}),
    "not a number": (b'{"created": NaN, "choices": [{"message": {"content": "hi"}}]}', {}),
    "with a mark": (b"\xef\xbb\xbf" + BODY, {}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_the_sdk_reads_it(provider, name):
    provider.body, provider.headers = ANSWERS[name]
    ours, reference = outcomes()
    assert ours == reference


def error(**fields):
    return {"error": fields}


ERRORS = {
    "plain": (400, error(message="wrong", type="invalid_request_error", param="x", code=None), {}),
    "context": (400, error(message="x", code="context_length_exceeded"), {}),
    "filter": (400, error(message="x", code="content_filter"), {}),
    "by type": (400, error(message="x", type="exceed_context_size_error"), {}),
    "number as a code": (404, error(message="none", code=404), {}),
    "key": (401, error(message=f"Incorrect API key provided: {KEY}"), {}),
    "denied": (403, error(message="no"), {}),
    "rate": (429, error(message="slow\ndown"), {"retry-after": "3"}),
    "rate in ms": (429, error(message="slow"), {"retry-after-ms": "250", "retry-after": "9"}),
    "quota": (429, error(message="x", code="insufficient_quota"), {}),
    "overloaded": (503, error(message="busy"), {"Retry-After": "1.5"}),
    "flat": (422, {"message": "flat", "code": "billing"}, {}),
    "null message": (400, error(message=None), {}),
    "no words": (500, error(), {}),
    "list": (500, [1], {}),
    "empty": (504, b"", {}),
    "long": (400, error(message="x" * 2000), {}),
    "packed": (400, gzip.compress(b'{"error": {"message": "p"}}'), {"content-encoding": "gzip"}),
    "no redirect": (302, b"", {}),
    "choices": (300, b"", {}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_read_as_the_sdk_reads_it(provider, name):
    provider.status, provider.body, provider.headers = ERRORS[name]
    ours, reference = outcomes()
    assert ours == reference
    assert KEY not in str(ours)


# Each SDK has its own user agent; HTTP/1.1 keeps connections alive without a header.
OWN = ("x-stainless", "user-agent", "connection")


def sent(provider):
    seen = [
        (path, {k: v for k, v in headers.items() if not k.startswith(OWN)}, body)
        for path, headers, body in provider.requests
    ]
    provider.requests.clear()
    return seen


ENVIRONMENTS = {
    "plain": {},
    "slash": {"OPENAI_BASE_URL": "{url}/v1/"},
    "no path": {"OPENAI_BASE_URL": "{url}"},
    "escaped": {"OPENAI_BASE_URL": "{url}/a%20b/v1"},
    "names": {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj_2"},
    "custom": {"OPENAI_CUSTOM_HEADERS": "X-Team: a: b\nno header\nAuthorization: Basic eA=="},
    "no key": {"OPENAI_API_KEY": ""},
}


@pytest.mark.parametrize("request_", [REQUEST, FULL], ids=["least", "full"])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_sent_is_what_the_sdk_sends(provider, monkeypatch, name, request_):
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value.format(url=provider.url))
    provider.body = openai_reply()
    ours, reference = outcomes(request_)
    assert ours == reference
    first, second = sent(provider)
    assert first == second
    assert (first[2]["messages"][-1], first[2]["model"]) == (
        {"role": "user", "content": request_.prompt},
        "m",
    )


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_within_its_origin_is_followed_as_the_sdk_follows_it(provider, status):
    provider.bodies = {"/v1/moved": openai_reply("moved")}
    provider.headers = {"location": "/v1/moved"}
    provider.respond = lambda headers, body: (
        (status, b"") if len(provider.requests) % 2 else (200, openai_reply("moved"))
    )
    ours, reference = outcomes()
    assert ours == reference
    seen = sent(provider)
    assert seen[:2] == seen[2:]


def test_a_redirect_without_an_end_is_a_connection_error(provider):
    provider.status, provider.headers = 307, {"location": COMPLETIONS}
    ours, reference = outcomes()
    assert ours[0] is reference[0] is ErrorKind.CONNECTION
    assert len(provider.requests) == 2 * 21


def saying(data):
    def talk(connection):
        read_request(connection)
        connection.sendall(data)

    return talk


BROKEN = {
    "closes at once": b"",
    "closes in its head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "closes in its body": b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{",
    "closes between chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    "says what is not packed": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n"
    b"content-length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_connection_is_the_same_kind_of_error(monkeypatch, name):
    with RawServer(saying(BROKEN[name])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ours, reference = outcomes()
        assert ours[0] is reference[0]
        # One call, with any outcome: a second call might be billed.
        assert server.connections == 2


def test_nobody_there_is_told_in_the_same_words(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    ours, reference = outcomes()
    assert ours == reference
    assert ours[0] is ErrorKind.CONNECTION
    assert "127.0.0.1:9" in ours[1]


def test_openai_s_own_limit_of_tokens_has_its_own_name(provider, monkeypatch):
    # Both clients are configured for OpenAI itself, then redirected to the mock.
    monkeypatch.setattr("fanout.llm.openai._BASE_URL", f"{provider.url}/v1")
    monkeypatch.delenv("OPENAI_BASE_URL")
    provider.body = openai_reply()
    assert asyncio.run(outcome(OpenAILLM, FULL)).text == "hi"
    assert provider.requests[-1][2]["max_completion_tokens"] == FULL.max_tokens
    assert "max_tokens" not in provider.requests[-1][2]


def test_the_query_of_a_base_url_is_sent_with_each_request(provider, monkeypatch):
    # Azure requires the query; the SDK appends the path before it.
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1/?api-version=2026-01%2B1")
    provider.body = openai_reply()
    assert asyncio.run(outcome(OpenAILLM)).text == "hi"
    assert provider.requests[-1][0] == f"{COMPLETIONS}?api-version=2026-01%2B1"


def test_a_password_in_the_base_url_takes_the_place_of_the_key(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url.replace("//", "//me:pass%40word@") + "/v1")
    provider.body = openai_reply()
    assert asyncio.run(outcome(OpenAILLM)).text == "hi"
    assert provider.requests[-1][1]["authorization"] == "Basic bWU6cGFzc0B3b3Jk"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:password@127.0.0.1:9/v1?key=secret-1")
    with pytest.raises(ModelError, match="no server answers at http://127") as caught:
        asyncio.run(check())
    assert "password" not in str(caught.value)
    assert "secret-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OPENAI_BASE_URL", "localhost:8000/v1", "OPENAI_BASE_URL must be a URL that begins with"),
        ("OPENAI_BASE_URL", "ftp://me:secret@host/v1", r"\(got 'host/v1'\)"),
        ("OPENAI_BASE_URL", "http://host:port/v1", "OPENAI_BASE_URL must be a URL"),
        ("OPENAI_API_KEY", "sk-secret\nvalue", "^OPENAI_API_KEY holds a character"),
        ("OPENAI_ORG_ID", "örg", "^OPENAI_ORG_ID holds a character"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", r"a proxy must be http:// or https:// \(got socks5"),
    ],
)
def test_a_variable_that_cannot_be_used_names_itself(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ModelError, match=message) as caught:
        OpenAILLM("m")
    assert "secret" not in str(caught.value)
