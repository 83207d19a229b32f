"""Rate limits in the headers of replies, in the forms of all providers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from fanout.core.errors import LLMError
from fanout.core.rate_limits import SeenLimit, SeenLimits
from fanout.core.records import ErrorKind
from fanout.core.settings import load_settings
from fanout.llm import LLMReply, LLMRequest, make_llm
from fanout.llm.limit_headers import LimitHeaders, duration_s
from fanout.llm.sound_replies import sound_error, sound_reply
from tests.scripted_provider import anthropic_reply, gemini_reply, openai_reply

OPENAI = {
    "x-ratelimit-limit-requests": "1200",
    "x-ratelimit-remaining-requests": "1199",
    "x-ratelimit-reset-requests": "50ms",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6m0s",
}
MINUTE, DAY = 60.0, 86_400.0
SOON = 30.0


def stamp(**later):
    return (datetime.now(UTC) + timedelta(**later)).isoformat().replace("+00:00", "Z")


def limit(limit=None, remaining=None, reset_s=None, period_s=None):
    return SeenLimit(limit=limit, remaining=remaining, reset_s=reset_s, period_s=period_s)


def seen_limits(headers):
    return LimitHeaders().read(headers)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1s", 1),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3_723),
        ("1d", DAY),
        ("12", 12),
        ("0.5", 0.5),
        (" 7 ", 7),
        ("-3", 0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e300", None),
        ("99999d", None),
        ("5x", None),
        ("2026-01-01", None),
        ("9999-12-31T23:59:59Z", None),
        ("2020-01-01T00:00:00Z", 0),
    ],
)
def test_a_duration_is_read_in_each_form(text, seconds):
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("form", ["RFC 3339", "seconds", "milliseconds"])
def test_a_time_is_read_as_the_seconds_until_then(form):
    text = {
        "RFC 3339": stamp(seconds=SOON),
        "seconds": f"{time.time() + SOON:.0f}",
        "milliseconds": f"{(time.time() + SOON) * 1_000:.0f}",
    }[form]
    assert duration_s(text) == pytest.approx(SOON, abs=5)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(
            OPENAI,
            SeenLimits(requests=limit(1200, 1199, 0.05), tokens=limit(150_000, 149_984, 360)),
            id="OpenAI and Groq",
        ),
        pytest.param(
            {"x-ratelimit-remaining-requests": "5", "x-ratelimit-remaining-tokens": "900"},
            SeenLimits(requests=limit(None, 5), tokens=limit(None, 900)),
            id="Azure, of before",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-req-minute": "60",
                "x-ratelimit-remaining-req-minute": "59",
                "x-ratelimit-limit-tokens-minute": "500000",
                "x-ratelimit-limit-tokens-month": "1000000000",
            },
            SeenLimits(
                requests=limit(60, 59, None, MINUTE), tokens=limit(500_000, None, None, MINUTE)
            ),
            id="Mistral",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests-day": "14400",
                "x-ratelimit-remaining-requests-day": "14000",
                "x-ratelimit-limit-tokens-minute": "60000",
                "x-ratelimit-reset-tokens-minute": "11.38",
            },
            SeenLimits(
                requests=limit(14_400, 14_000, None, DAY),
                tokens=limit(60_000, None, 11.38, MINUTE),
            ),
            id="Cerebras",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-limit-tokens-prompt": "60000",
                "x-ratelimit-limit-tokens-generated": "6000",
            },
            SeenLimits(requests=limit(600), input_tokens=limit(60_000), output_tokens=limit(6_000)),
            id="Fireworks",
        ),
        pytest.param(
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2020-01-01T00:00:00Z",
                "anthropic-ratelimit-tokens-limit": "60000",
                "anthropic-ratelimit-input-tokens-limit": "50000",
                "anthropic-ratelimit-input-tokens-remaining": "49000",
                "anthropic-ratelimit-output-tokens-limit": "10000",
            },
            SeenLimits(
                requests=limit(50, 49, 0, MINUTE),
                tokens=limit(60_000, None, None, MINUTE),
                input_tokens=limit(50_000, 49_000, None, MINUTE),
                output_tokens=limit(10_000, None, None, MINUTE),
            ),
            id="Anthropic",
        ),
        pytest.param(
            {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "40"},
            SeenLimits(requests=limit(20, 0, 40, MINUTE)),
            id="OpenRouter",
        ),
        # Without the end of a window it may be a limit of a second or of a day.
        pytest.param({"x-ratelimit-limit": "20", "x-ratelimit-remaining": "3"}, None, id="bare"),
        pytest.param({"x-ratelimit-limit": "10", "x-ratelimit-reset": "1"}, None, id="a second's"),
        pytest.param({"x-ratelimit-limit": "50", "x-ratelimit-reset": "7h"}, None, id="a day's"),
        pytest.param(
            {"llm_provider-x-ratelimit-limit-requests": "9"},
            SeenLimits(requests=limit(9)),
            id="as litellm keeps them",
        ),
        pytest.param({"content-type": "x", "retry-after": "3"}, None, id="none"),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "\u0661\u0660\u0660",
                "x-ratelimit-remaining-requests": "\u00b2",
                "x-ratelimit-reset-requests": "\u0665m",
            },
            None,
            id="digits of other scripts",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "0",
                "x-ratelimit-remaining-requests": "-4",
                "x-ratelimit-limit-tokens": "nan",
                "x-ratelimit-remaining-tokens": "1e99",
                "x-ratelimit-reset-tokens": "9" * 50,
                "x-ratelimit-limit-pages": "7",
                "anthropic-ratelimit-unified-limit": "7",
                "x-ratelimit-limit-req-year": "7",
            },
            SeenLimits(requests=limit(None, 0)),
            id="hostile",
        ),
    ],
)
def test_limits_are_read_in_the_form_of_each_provider(headers, expected):
    assert seen_limits(headers) == expected
    assert seen_limits(CIMultiDict({name.title(): text for name, text in headers.items()})) == (
        expected
    )


@given(
    st.dictionaries(
        st.sampled_from([*OPENAI, "anthropic-ratelimit-tokens-reset", "x-ratelimit-reset"]),
        st.text(max_size=60),
    )
)
def test_no_header_breaks_a_reply(headers):
    seen = seen_limits(headers)
    reply = LLMReply(text="", limits=seen)
    assert sound_reply(reply) is reply


def test_replies_without_limits_are_searched_rarely():
    class Headers(dict[str, str]):
        looks = 0

        def __iter__(self):
            Headers.looks += 1
            return super().__iter__()

    reader, none = LimitHeaders(), Headers(a="b")
    assert [reader.read(none) for _ in range(50)] == [None] * 50
    assert Headers.looks == 1
    assert reader.read(none, is_error=True) is None
    assert Headers.looks == 2, "a refusal may be the first reply with them"
    assert reader.read(Headers(OPENAI), is_error=True) is not None
    assert reader.read(OPENAI) is not None


MODELS = {
    "openai/m": ("OPENAI", "/v1", openai_reply),
    "anthropic/m": ("ANTHROPIC", "", anthropic_reply),
    "gemini/m": ("GEMINI", "", gemini_reply),
}


@pytest.mark.parametrize("model", MODELS)
def test_answers_and_refusals_have_the_limits(model, provider, monkeypatch):
    name, path, reply = MODELS[model]
    monkeypatch.setenv(f"{name}_BASE_URL", provider.url + path)
    monkeypatch.setenv(f"{name}_API_KEY", "k")
    provider.headers, provider.body = dict(OPENAI), reply()

    async def both():
        llm = make_llm(model, settings=load_settings())
        try:
            answer = await llm.complete(LLMRequest(prompt="p"))
            provider.status, provider.body = 429, {"error": {"message": "slow down"}}
            with pytest.raises(LLMError) as refusal:
                await llm.complete(LLMRequest(prompt="p"))
        finally:
            await llm.aclose()
        return answer.limits, refusal.value.limits

    assert asyncio.run(both()) == (seen_limits(OPENAI), seen_limits(OPENAI))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("60 a minute", None),
        (SeenLimits(requests="60"), SeenLimits()),
        (SeenLimits(requests=limit(60), tokens=limit(-1)), SeenLimits(requests=limit(60))),
        (SeenLimits(requests=limit(float("nan"))), SeenLimits()),
        (SeenLimits(requests=limit(60, reset_s="1s")), SeenLimits()),
        (SeenLimits(requests=limit(True)), SeenLimits()),
    ],
)
def test_a_function_may_return_any_limits(given, kept):
    assert sound_reply(LLMReply(text="", limits=given)).limits == kept
    error = LLMError(ErrorKind.RATE_LIMITED, "no", limits=given)
    sound_error(error)
    assert error.limits == kept
