"""The adapter of Gemini: what is sent, how answers and errors are read, and where the key goes."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm import LLMRequest
from fanout.llm.base import Turn
from fanout.llm.calls import _call
from fanout.llm.gemini import GeminiLLM
from tests.scripted_provider import gemini_reply

KEY = "AIzaTest0123456789abcdefghijk"
REQUEST = LLMRequest(prompt="hello")
FULL = LLMRequest(
    prompt='Gr\u00fc\u00dfe "q"\n', system="s", temperature=0.5, max_tokens=9, seed=3,
    stop=("END", "X"), turns=(Turn(answer="a", reply="r"),),
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(provider, monkeypatch):
    monkeypatch.setenv("GEMINI_BASE_URL", f"{provider.url}/v1beta")
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for name in ("GOOGLE_API_KEY", "GEMINI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def using(use, name="m"):
    async def main():
        llm = GeminiLLM(name)
        try:
            return await use(llm)
        finally:
            await llm.aclose()

    return asyncio.run(main())


def complete(request=REQUEST, name="m"):
    return using(lambda llm: _call(llm, request, 30), name)


def failure(request=REQUEST):
    with pytest.raises(LLMError) as caught:
        complete(request)
    assert KEY not in str(caught.value)
    return caught.value


def test_a_request_has_all_options_where_the_api_has_them(provider):
    provider.body = gemini_reply()
    complete(FULL, "gemini-x/y z")
    [(path, headers, body)] = provider.requests
    assert path == "/v1beta/models/gemini-x%2Fy%20z:generateContent"
    assert headers["x-goog-api-key"] == KEY
    assert "authorization" not in headers
    assert body == {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": 'Gr\u00fc\u00dfe "q"\n'}]},
            {"role": "model", "parts": [{"text": "a"}]},
            {"role": "user", "parts": [{"text": "r"}]},
        ],
        "generationConfig": {
            "temperature": 0.5, "maxOutputTokens": 9, "seed": 3, "stopSequences": ["END", "X"],
        },
    }  # fmt: skip


def test_a_request_without_options_has_none(provider):
    provider.body = gemini_reply()
    complete()
    [(_, _, body)] = provider.requests
    assert body == {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


@pytest.mark.parametrize(
    ("variables", "headers"),
    [
        ({}, {"x-goog-api-key": KEY}),
        ({"GEMINI_API_KEY": "", "GOOGLE_API_KEY": "google-0123456789"},
         {"x-goog-api-key": "google-0123456789"}),
        ({"GOOGLE_API_KEY": "google-0123456789"}, {"x-goog-api-key": KEY}),
        ({"GEMINI_CUSTOM_HEADERS": "X-Team: a\nauthorization: Bearer ya29.0123456789"},
         {"x-team": "a", "authorization": "Bearer ya29.0123456789"}),
    ],
)  # fmt: skip
def test_the_key_goes_into_a_header_of_its_own(provider, monkeypatch, variables, headers):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    provider.body = gemini_reply()
    complete()
    [(path, sent, _)] = provider.requests
    assert headers.items() <= sent.items()
    assert "key" not in path


def test_the_key_is_in_no_log(provider, caplog):
    caplog.set_level(logging.DEBUG)
    provider.status, provider.body = 400, {"error": {"message": f"no {KEY}", "status": "X"}}
    failure()
    assert KEY not in caplog.text


def saying(*parts, **candidate):
    reply = gemini_reply()
    reply["candidates"][0] = {
        "content": {"parts": list(parts)},
        "finishReason": "STOP",
        **candidate,
    }
    return reply


THOUGHT = {"text": "hm", "thought": True}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (gemini_reply(), "hi"),
        (saying({"text": "a"}, {"text": "b"}), "ab"),
        (saying(THOUGHT, {"text": "b"}), "b"),
        (saying({"inlineData": {}}, {"text": "b"}, {"text": 3}), "b"),
    ],
)
def test_an_answer_is_the_text_of_its_parts_without_thoughts(provider, body, text):
    provider.body = body
    reply = complete()
    assert (reply.text, reply.model, reply.response_id) == (text, "m-001", "1")
    assert reply.finish_reason == "STOP"


@pytest.mark.parametrize(
    ("counts", "tokens"),
    [
        ({"promptTokenCount": 3, "candidatesTokenCount": 2}, (3, 2)),
        # Cached tokens are among those of the prompt; thoughts are billed beside the answer.
        ({"promptTokenCount": 9, "cachedContentTokenCount": 4, "candidatesTokenCount": 2,
          "thoughtsTokenCount": 30}, (9, 32)),
        ({"promptTokenCount": 9}, (9, 0)),
        ({"promptTokenCount": "x", "candidatesTokenCount": -1}, (None, None)),
        ({}, (None, None)),
        (None, (None, None)),
    ],
)  # fmt: skip
def test_usage(provider, counts, tokens):
    provider.body = gemini_reply(usageMetadata=counts)
    usage = complete().usage
    assert (usage.calls, usage.input_tokens, usage.output_tokens) == (1, *tokens)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
          "usageMetadata": {"promptTokenCount": 7}}, "content_filter", "PROHIBITED_CONTENT"),
        *((gemini_reply("", reason), "content_filter", "refused")
          for reason in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
                         "LANGUAGE", "IMAGE_SAFETY")),
        (saying(finishReason="SAFETY"), "content_filter", "refused"),
        (gemini_reply("a", "MAX_TOKENS"), "truncated", "MAX_TOKENS"),
        (gemini_reply("", "OTHER"), "server_error", "OTHER"),
        (gemini_reply("", "MALFORMED_FUNCTION_CALL"), "server_error", "MALFORMED"),
        (gemini_reply(" "), "invalid_output", "empty"),
        (saying(), "invalid_output", "empty"),
        (saying(THOUGHT), "invalid_output", "empty"),
        ({"candidates": []}, "server_error", "no candidates"),
        ({"candidates": [3]}, "server_error", "empty"),
        ({"candidates": [{"content": [1], "finishReason": "STOP"}]}, "invalid_output", "empty"),
        ([1], "server_error", "no object"),
        (b"<html>", "server_error", "not an answer"),
        (b"", "server_error", "not an answer"),
        ({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}},
         "server_error", "overloaded"),
    ],
)  # fmt: skip
def test_what_is_no_complete_answer_says_why(provider, body, kind, words):
    """Adapters return what was cut; the caller decides what becomes of it."""
    provider.body = body
    if kind == "truncated":
        assert complete().finish_reason == words
        return
    error = failure()
    assert error.kind.value == kind
    assert words in str(error)


def test_a_refused_prompt_is_billed(provider):
    provider.body = {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 7},
    }
    assert failure().usage.input_tokens == 7


def error(code, status, message="x", *details):
    return code, {
        "error": {"code": code, "message": message, "status": status, "details": list(details)}
    }


BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "13s"}
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."


@pytest.mark.parametrize(
    ("reply", "kind", "retry_after_s"),
    [
        (error(400, "INVALID_ARGUMENT", "bad temperature"), "bad_request", None),
        (error(400, "INVALID_ARGUMENT", "API key not valid.", BAD_KEY), "auth", None),
        (error(400, "INVALID_ARGUMENT", TOO_LONG), "context_length", None),
        (error(401, "UNAUTHENTICATED"), "auth", None),
        (error(403, "PERMISSION_DENIED"), "auth", None),
        (
            error(404, "NOT_FOUND", "models/m is not found for API version v1beta"),
            "bad_request",
            None,
        ),
        (error(429, "RESOURCE_EXHAUSTED", "quota", RETRY), "rate_limited", 13.0),
        (error(500, "INTERNAL"), "server_error", None),
        (error(503, "UNAVAILABLE", "The model is overloaded."), "server_error", None),
        (error(504, "DEADLINE_EXCEEDED"), None, None),
    ],
)
def test_an_error_has_its_kind(provider, reply, kind, retry_after_s):
    provider.status, provider.body = reply
    found = failure()
    assert found.retry_after_s == retry_after_s
    if kind is None:
        assert found.kind in {ErrorKind.TIMEOUT, ErrorKind.SERVER_ERROR}
    else:
        assert found.kind.value == kind
    assert "\n" not in str(found)


def check():
    using(lambda llm: llm.check())


def test_a_check_asks_for_the_model_and_costs_nothing(provider):
    provider.body = {"name": "models/m"}
    check()
    assert [path for path, _, _ in provider.requests] == ["/v1beta/models/m"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(404, "NOT_FOUND", "models/m is not found"), "models/m is not found"),
        (error(401, "UNAUTHENTICATED", "no"), "GEMINI_API_KEY"),
    ],
)
def test_a_check_says_what_is_wrong(provider, reply, words):
    provider.status, provider.body = reply
    with pytest.raises(ModelError, match=words):
        check()


def test_a_check_without_a_key_says_which_to_set(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "")
    with pytest.raises(ModelError, match="GEMINI_API_KEY is not set") as caught:
        check()
    assert caught.value.kind is ErrorKind.AUTH


def test_the_body_is_json_of_any_text(provider):
    provider.body = gemini_reply()
    complete(LLMRequest(prompt="\u2028\x00\U0001f388"))
    assert json.dumps(provider.requests[-1][2]["contents"][0]["parts"][0]["text"])


@pytest.mark.parametrize(
    ("content", "finish", "kind"),
    [
        ({"parts": None}, None, "server_error"),
        ({"parts": None}, "STOP", "invalid_output"),
        ({"parts": 5}, "STOP", "server_error"),
        ({"parts": "text"}, "STOP", "server_error"),
        ({"parts": {"text": "x"}}, "STOP", "server_error"),
        ({"parts": [None, 5, {"text": 7}]}, "STOP", "invalid_output"),
        ({"parts": None}, "SAFETY", "content_filter"),
        (None, None, "server_error"),
        ([], None, "server_error"),
    ],
)
def test_parts_that_are_none_are_no_fault_of_fanout(provider, content, finish, kind):
    provider.body = {"candidates": [{"content": content, "finishReason": finish}]}
    assert failure().kind.value == kind
