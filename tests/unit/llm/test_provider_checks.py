"""Adapters check the provider, adapt to it during a run, and never follow it elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.core.settings import load_settings
from fanout.llm import LLMRequest, make_llm
from fanout.llm.error_kinds import FEW
from tests.scripted_provider import ScriptedProvider, anthropic_reply, gemini_reply, openai_reply

KEY = "sk-test-0123456789abcdef"
HIDDEN = "team-header-0123456789"
REQUEST = LLMRequest(prompt="hello", max_tokens=9)
REPLIES = {"openai/m": openai_reply(), "anthropic/m": anthropic_reply(), "gemini/m": gemini_reply()}
MODELS = sorted(REPLIES)


@pytest.fixture(autouse=True)
def environment(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    monkeypatch.setenv("GEMINI_BASE_URL", provider.url)
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
        monkeypatch.setenv(f"{name}_CUSTOM_HEADERS", f"X-Team-Key: {HIDDEN}")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def using(model, use):
    async def main():
        llm = make_llm(model, settings=load_settings())
        try:
            return await use(llm)
        finally:
            await llm.aclose()

    return asyncio.run(main())


def check(model):
    using(model, lambda llm: llm.check())


def refusal(model):
    with pytest.raises(ModelError) as caught:
        check(model)
    assert KEY not in str(caught.value)
    return caught.value


def in_turn(*answers):
    left = list(answers)
    return lambda _headers, _body: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("status", [403, 404, 405, 501, 400])
def test_a_list_of_models_that_is_refused_proves_nothing(provider, model, status):
    provider.status, provider.body = status, {"error": {"message": "Missing scopes: model.read"}}
    check(model)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("status", [429, 503])
def test_a_check_waits_for_what_passes(provider, model, status):
    provider.headers = {"retry-after-ms": "20"}
    busy = (status, {"error": {"message": "slow down"}})
    provider.respond = in_turn(busy, busy, (200, {"data": [{"id": "m"}]}))
    check(model)
    assert len(provider.requests) == 3


@pytest.mark.parametrize("model", MODELS)
def test_a_limit_that_lasts_is_left_to_the_calls_and_a_failure_is_told(provider, model):
    provider.headers = {"retry-after": "600"}
    provider.status = 429
    check(model)
    assert len(provider.requests) == 1
    provider.status = 503
    assert refusal(model).kind is ErrorKind.SERVER_ERROR


@pytest.mark.parametrize("model", MODELS)
def test_a_key_that_is_refused_is_found_out_and_one_that_may_not_list_is_not(provider, model):
    provider.status, provider.body = 401, {"error": {"message": f"bad key {KEY}"}}
    assert refusal(model).kind is ErrorKind.AUTH
    provider.body = {"error": {"message": "Missing scopes: api.model.read"}}
    check(model)


def test_an_unknown_model_is_found_out_where_the_server_says_so(provider):
    lost = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
    listed = {"data": [{"id": "other"}]}
    provider.respond = lambda _headers, _body: (
        (404, lost) if provider.requests[-1][0] == "/v1/models/m" else (200, listed)
    )
    assert "does not exist" in str(refusal("openai/m"))
    # Some servers accept any name and lack this endpoint.
    lost["error"] = {"message": "Not Found"}
    check("openai/m")


def test_an_unknown_model_of_anthropic_is_found_out(provider):
    provider.status = 404
    provider.body = {"type": "error", "error": {"type": "not_found_error", "message": "model: m"}}
    assert "model: m" in str(refusal("anthropic/m"))
    provider.body["error"]["message"] = "Not Found"
    check("anthropic/m")


def test_a_base_url_without_its_path_is_found_out(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    provider.respond = lambda _headers, _body: (
        (200, {"data": []}) if provider.requests[-1][0] == "/v1/models" else (404, b"not found")
    )
    assert "OPENAI_BASE_URL lacks its path" in str(refusal("openai/m"))
    provider.respond = lambda _headers, _body: (404, b"not found")
    check("openai/m")


LIMITS = ["max_tokens", "max_completion_tokens"]


def knowing_only(provider, *known, words="Unsupported parameter: '{}' is not supported"):
    def respond(_headers, body):
        wrong = [name for name in LIMITS if name in body and name not in known]
        if not wrong:
            return 200, openai_reply()
        message = words.format(wrong[0])
        return 400, {"error": {"message": message, "code": "unsupported_parameter"}}

    provider.respond = respond


@pytest.mark.parametrize("known", LIMITS)
@pytest.mark.parametrize("at_once", [1, 5])
def test_the_name_of_the_limit_is_learned_once(provider, known, at_once):
    knowing_only(provider, known)

    async def use(llm):
        await asyncio.gather(*(llm.complete(REQUEST) for _ in range(at_once)))
        provider.requests.clear()
        for _ in range(3):
            assert (await llm.complete(REQUEST)).text == "hi"

    using("openai/m", use)
    assert [body.get(known) for _, _, body in provider.requests] == [9] * 3


def test_a_server_that_knows_neither_name_is_asked_no_more_than_twice(provider):
    knowing_only(provider)

    async def use(llm):
        for _ in range(3):
            with pytest.raises(LLMError, match="Unsupported parameter") as caught:
                await llm.complete(REQUEST)
            assert (caught.value.kind, caught.value.stop_after) == (ErrorKind.BAD_REQUEST, FEW)

    using("openai/m", use)
    assert len(provider.requests) == 4


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("status", REDIRECTS)
def test_nothing_goes_to_another_origin(provider, model, status):
    other = ScriptedProvider()
    try:
        other.body = REPLIES[model]
        secret = f"{other.url.replace('//', '//me:pass-word-1@')}/v1/x?key=secret-of-query"
        provider.status, provider.headers = status, {"location": secret}
        with pytest.raises(LLMError) as caught:
            using(model, lambda llm: llm.complete(REQUEST))
        with pytest.raises(ModelError, match="redirects to another one"):
            check(model)
        assert other.requests == []
    finally:
        other.close()
    assert f"redirects to another one, {other.url}/v1/x," in str(caught.value)
    assert "secret-of-query" not in str(caught.value)
    assert "pass-word-1" not in str(caught.value)
    # If all branches fail so, the first ones stop the run, which does not wait for an outage to end.
    assert (caught.value.kind, caught.value.stop_after) == (ErrorKind.BAD_REQUEST, FEW)


@pytest.mark.parametrize(
    "location", ["https://127.0.0.1/x", "//localhost/x", "ftp://127.0.0.1/x", "http://[", "x://"]
)
@pytest.mark.parametrize("model", MODELS)
def test_an_origin_is_scheme_host_and_port(provider, model, location):
    provider.status, provider.headers = 307, {"location": location}
    with pytest.raises(LLMError, match="redirects to another one") as caught:
        using(model, lambda llm: llm.complete(REQUEST))
    assert len(provider.requests) == 1
    # If all branches fail so, the first ones stop the run, which does not wait for an outage to end.
    assert (caught.value.kind, caught.value.stop_after) == (ErrorKind.BAD_REQUEST, FEW)


@pytest.mark.parametrize("model", MODELS)
def test_a_redirect_within_the_origin_is_followed(provider, model):
    provider.headers = {"location": "/moved"}
    provider.respond = lambda _headers, _body: (
        (200, REPLIES[model]) if provider.requests[-1][0] == "/moved" else (307, b"")
    )
    assert using(model, lambda llm: llm.complete(REQUEST)).text == "hi"
    assert provider.requests[-1][1]["x-team-key"] == HIDDEN
