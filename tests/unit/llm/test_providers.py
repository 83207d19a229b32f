"""The provider adapters against a server on loopback with the providers' formats."""

from __future__ import annotations

import asyncio
import sys
import types
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind, Usage
from fanout.core.settings import load_settings
from fanout.llm import LLM, FakeLLM, LLMRequest, make_llm
from fanout.llm.callables import CallableLLM
from fanout.llm.http_errors import http_error, redacted_line, retry_after
from fanout.llm.litellm import LiteLLM
from fanout.llm.reply_bodies import ErrorDetails
from tests.scripted_provider import anthropic_reply, openai_reply

KEY = "sk-test-0123456789abcdef"
REQUEST = LLMRequest(prompt="hello")


@pytest.fixture
def environment(provider, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def using(model, use):
    """Create a model on a loop, use it there, and close it."""

    async def main():
        llm = model() if callable(model) else make_llm(model, settings=load_settings())
        try:
            return await use(llm)
        finally:
            await llm.aclose()

    return asyncio.run(main())


def complete(model, request=REQUEST):
    return using(model, lambda llm: llm.complete(request))


def failure(model, request=REQUEST):
    with pytest.raises(LLMError) as caught:
        complete(model, request)
    return caught.value


@pytest.fixture(params=["openai", "anthropic", "fake", "sync", "async"])
def any_model(request, provider, environment):
    if request.param == "openai":
        provider.body = openai_reply()
        return "openai/m"
    if request.param == "anthropic":
        provider.body = anthropic_reply()
        return "anthropic/m"
    if request.param == "fake":
        return lambda: FakeLLM(answer="hi")
    if request.param == "sync":
        return lambda: CallableLLM(lambda prompt: "hi")

    async def answer(prompt):
        return "hi"

    return lambda: CallableLLM(answer)


def test_every_model_answers_checks_and_closes(any_model):
    async def use(llm):
        assert isinstance(llm, LLM)
        await llm.check()
        replies = await asyncio.gather(*(llm.complete(REQUEST) for _ in range(5)))
        assert {reply.text for reply in replies} == {"hi"}
        assert all(reply.usage.calls == 1 for reply in replies)
        await llm.aclose()

    using(any_model, use)


def test_openai_sends_what_was_asked_and_nothing_else(provider, environment):
    provider.body = openai_reply("hello back")
    request = LLMRequest(
        prompt="p", system="s", temperature=0.0, max_tokens=9, seed=7, stop=("END",)
    )
    reply = complete("openai/meta/llama-3", request)
    path, headers, body = provider.requests[-1]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "meta/llama-3",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 7,
        "stop": ["END"],
    }
    assert reply.text == "hello back"
    assert reply.usage == Usage(calls=1, input_tokens=5, output_tokens=2)
    assert (reply.model, reply.response_id, reply.finish_reason) == ("m", "1", "stop")
    complete("openai/m")
    assert provider.requests[-1][2].keys() == {"model", "messages"}


def test_anthropic_sends_what_was_asked(provider, environment):
    provider.body = anthropic_reply("hello back")
    request = LLMRequest(prompt="p", system="s", temperature=0.5, max_tokens=9, stop=("END",))
    reply = complete("anthropic/claude-x", request)
    path, headers, body = provider.requests[-1]
    assert path == "/v1/messages"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "claude-x",
        "messages": [{"role": "user", "content": "p"}],
        "system": "s",
        "temperature": 0.5,
        "max_tokens": 9,
        "stop_sequences": ["END"],
    }
    cached = {"cached_input_tokens": 2, "cache_write_tokens": 0}
    assert reply.usage == Usage(calls=1, input_tokens=5, output_tokens=2, **cached)
    assert (reply.model, reply.response_id, reply.finish_reason) == ("m", "1", "end_turn")


@pytest.mark.parametrize(
    ("temperature", "given", "version"),
    [
        (None, "", "2026-10-21"),
        # The newest version of the API would refuse the temperature.
        (0.0, "", "2023-06-01"),
        (0.0, "anthropic-version: 2027-01-01", "2027-01-01"),
    ],
)
def test_anthropic_is_asked_in_a_version_that_takes_the_request(
    provider, environment, monkeypatch, temperature, given, version
):
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", given)
    provider.body = anthropic_reply()
    complete("anthropic/m", LLMRequest(prompt="p", temperature=temperature))
    assert provider.requests[-1][1]["anthropic-version"] == version


def test_anthropic_refuses_a_seed_instead_of_ignoring_it(environment):
    error = failure("anthropic/m", LLMRequest(prompt="p", seed=1))
    assert error.kind is ErrorKind.BAD_REQUEST
    assert "takes no seed" in str(error)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (openai_reply(""), ErrorKind.INVALID_OUTPUT),
        (openai_reply(None), ErrorKind.INVALID_OUTPUT),
        (openai_reply("x", finish="content_filter"), ErrorKind.CONTENT_FILTER),
        (openai_reply(None, refusal="no"), ErrorKind.CONTENT_FILTER),
        ({**openai_reply(), "choices": []}, ErrorKind.INVALID_OUTPUT),
    ],
)
def test_an_openai_reply_without_an_answer_is_an_error(provider, environment, reply, kind):
    provider.body = reply
    assert failure("openai/m").kind is kind


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (anthropic_reply(" "), ErrorKind.INVALID_OUTPUT),
        (anthropic_reply("x", stop="refusal"), ErrorKind.CONTENT_FILTER),
    ],
)
def test_an_anthropic_reply_without_an_answer_is_an_error(provider, environment, reply, kind):
    provider.body = reply
    assert failure("anthropic/m").kind is kind


@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_an_http_error_has_its_kind_its_wait_and_no_key(provider, environment, model):
    provider.status = 429
    provider.headers = {"retry-after": "3"}
    provider.body = {"error": {"message": f"slow down, {KEY}", "type": "rate_limit_error"}}
    error = failure(model)
    assert (error.kind, error.retry_after_s, error.status) == (ErrorKind.RATE_LIMITED, 3.0, 429)
    assert str(error) == "HTTP 429: slow down, [key]"


@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_a_server_that_is_not_there_is_a_connection_error(monkeypatch, model):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert failure(model).kind is ErrorKind.CONNECTION
    with pytest.raises(ModelError, match=r"no server answers at http://127\.0\.0\.1:9") as caught:
        using(model, lambda llm: llm.check())
    assert caught.value.kind is ErrorKind.CONNECTION


@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_a_refused_key_is_found_out_by_the_check(provider, environment, model):
    provider.status = 401
    provider.body = {"error": {"message": f"bad key {KEY}"}}
    name = model.partition("/")[0].upper()
    with pytest.raises(ModelError, match=f"refuses the key in {name}_API_KEY") as caught:
        using(model, lambda llm: llm.check())
    assert caught.value.kind is ErrorKind.AUTH
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_a_missing_key_is_found_out_by_the_check(monkeypatch, model):
    monkeypatch.delenv("OPENAI_BASE_URL")
    name = model.partition("/")[0].upper()
    with pytest.raises(ModelError, match=f"{name}_API_KEY is not set; set it where the workers"):
        using(model, lambda llm: llm.check())


def test_a_compatible_server_needs_no_key_and_no_list_of_models(provider, environment, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    provider.status = 404
    using("openai/m", lambda llm: llm.check())
    provider.status, provider.body = 200, openai_reply()
    assert complete("openai/m").text == "hi"


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (429, "rate_limit_exceeded", "slow", "rate_limited"),
        (429, "insufficient_quota", "you exceeded your quota", "budget"),
        (402, None, "pay", "budget"),
        (400, None, "Your credit balance is too low", "budget"),
        (401, None, "no", "auth"),
        (403, None, "no", "auth"),
        (400, "context_length_exceeded", "too long", "context_length"),
        (400, "exceed_context_size_error", "x", "context_length"),
        (400, None, "This model's maximum context length is 8192 tokens", "context_length"),
        (413, None, "prompt is too long: 300000 tokens", "context_length"),
        (400, "content_filter", "x", "content_filter"),
        (400, None, "wrong field", "bad_request"),
        (404, None, "no such model", "bad_request"),
        (422, None, "x", "bad_request"),
        (408, None, "x", "timeout"),
        (409, None, "x", "server_error"),
        (500, None, "context length", "server_error"),
        (529, "overloaded_error", "x", "server_error"),
    ],
)
def test_what_an_http_status_means(status, code, message, kind):
    details = ErrorDetails(message=message, codes=tuple((code or "").split()))
    assert http_error(status, details, headers={}).kind.value == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        # Not a time, or an invalid date.
        ({"retry-after": "NaN"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "9" * 5_000}, None),
        ({"retry-after": "1 Jan 2020 00:00 +99999999999999"}, None),
        ({"retry-after": "1 jan 99999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 -0000"}, 0),
    ],
)
def test_what_retry_after_means(headers, seconds):
    assert retry_after(headers) == seconds


@given(
    st.lists(
        st.sampled_from(
            [*"0,:.-+ ", "Wed", "21", "Oct", "2015", "9" * 11, "GMT", "-0000", "07:28"]
        ),
        max_size=9,
    )
)
def test_no_retry_after_raises(words):
    asked_s = retry_after({"retry-after": " ".join(words)})
    assert asked_s is None or asked_s >= 0


@pytest.mark.parametrize("given_s", [float("nan"), float("inf"), "7", True, [1], 10**400])
def test_what_a_function_gives_for_a_wait_is_a_time_or_none(given_s):
    assert LLMError(ErrorKind.RATE_LIMITED, "later", retry_after_s=given_s).retry_after_s is None


def test_retry_after_may_be_a_date():
    later = datetime.now(UTC) + timedelta(seconds=60)
    assert 50 < retry_after({"retry-after": format_datetime(later, usegmt=True)}) <= 60


def test_messages_are_short_and_without_keys():
    text = redacted_line(f"Incorrect key sk-proj-abcd1234efgh and {'x' * 500}\nline", ("hunter2",))
    assert "sk-" not in text
    assert len(text) <= 300
    assert redacted_line("is hunter2 it?", ("hunter2", "")) == "is [key] it?"


class FakeLitellm(types.ModuleType):
    """The part of litellm that the adapter uses."""

    def __init__(self):
        super().__init__("litellm")
        self.asked = None
        self.error = None
        self.missing = []

    def get_llm_provider(self, model):
        if "/" not in model:
            raise ValueError(f"no provider in {model}")
        return model, model.partition("/")[0], None, None

    def validate_environment(self, model):
        return {"keys_in_environment": not self.missing, "missing_keys": self.missing}

    async def acompletion(self, **asked):
        self.asked = asked
        if self.error:
            raise self.error
        space = types.SimpleNamespace
        message = space(content="hi")
        return space(
            choices=[space(message=message, finish_reason="stop")],
            usage=space(prompt_tokens=4, completion_tokens=1),
        )

    def completion_cost(self, completion_response):
        return 0.25


@pytest.fixture
def litellm(monkeypatch):
    module = FakeLitellm()
    monkeypatch.setitem(sys.modules, "litellm", module)
    return module


def test_litellm_answers_with_its_cost(litellm):
    reply = complete("litellm/mistral/small", LLMRequest(prompt="p", max_tokens=5))
    assert litellm.asked == {
        "model": "mistral/small",
        "messages": [{"role": "user", "content": "p"}],
        "num_retries": 0,
        "max_tokens": 5,
    }
    assert reply.usage == Usage(calls=1, input_tokens=4, output_tokens=1, cost_usd=0.25)


@pytest.mark.parametrize(
    ("name", "variable", "is_of"),
    [
        ("mistral/small", "MISTRAL_API_BASE", True),
        ("azure/gpt", "AZURE_API_VERSION", True),
        ("azure_ai/gpt", "AZURE_AI_API_BASE", True),
        ("vertex_ai/gemini", "VERTEXAI_API_BASE", True),
        ("text-completion-openai/m", "OPENAI_BASE_URL", True),
        ("unnamed", "UNNAMED_API_BASE", True),
        ("mistral/small", "OPENAI_BASE_URL", False),
        ("mistral/small", "CORPORATE_WIKI_BASE_URL", False),
        ("mistral/small", "_BASE_URL", False),
    ],
)
def test_litellm_s_identity_has_the_addresses_of_its_own_provider(
    litellm, monkeypatch, name, variable, is_of
):
    identity = LiteLLM(name).identity
    assert name in identity
    monkeypatch.setenv(variable, "http://elsewhere")
    assert (LiteLLM(name).identity != identity) == is_of
    litellm.get_llm_provider = lambda model: (model, "mistral", None, "http://there")
    assert "http://there" in LiteLLM(name).identity


def test_litellm_names_the_variable_that_is_missing(litellm):
    litellm.missing = ["MISTRAL_API_KEY"]
    with pytest.raises(ModelError, match="MISTRAL_API_KEY is not set"):
        using("litellm/mistral/small", lambda llm: llm.check())


def test_litellm_that_knows_no_such_provider_says_so(litellm):
    with pytest.raises(ModelError, match="litellm does not know nonsense"):
        using("litellm/nonsense", lambda llm: llm.check())


def test_litellm_s_errors_have_kinds(litellm):
    class RateLimitError(Exception):
        status_code = 429

    class Timeout(Exception):  # noqa: N818 - litellm's name
        status_code = 408

    litellm.error = RateLimitError("slow")
    assert failure("litellm/mistral/small").kind is ErrorKind.RATE_LIMITED
    litellm.error = Timeout("late")
    assert failure("litellm/mistral/small").kind is ErrorKind.TIMEOUT
    litellm.error = KeyError("x")
    assert failure("litellm/mistral/small").kind is ErrorKind.INTERNAL


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(ModelError, match=r"pip install 'fanout-llm\[litellm\]'"):
        complete("litellm/mistral/small")
