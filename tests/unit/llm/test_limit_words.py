"""Rate limits that only the words or the details of a refusal name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.rate_limits import SeenLimit, SeenLimits
from fanout.core.records import ErrorKind
from fanout.llm.http_errors import http_error
from fanout.llm.limit_words import joined, limits_in
from fanout.llm.reply_bodies import error_details_in

OPENAI = (
    "Rate limit reached for gpt-x in organization org-1 on {}. Visit https://platform.openai.com/x"
)
GROQ = (
    "Rate limit reached for model `llama-x` in organization `org_1` service tier `on_demand` on {}"
)
ANTHROPIC = (
    "This request would exceed {} per minute. For details, refer to: https://docs.claude.com/x."
)
CALLS = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
PROMPTS = "GenerateContentInputTokensPerModelPerMinute-FreeTier"


def named(limit, used=None):
    if used is None:
        return SeenLimit(limit=limit, period_s=60.0)
    reset_s = 60.0 * used / limit
    return SeenLimit(limit=limit, remaining=limit - used, reset_s=reset_s, period_s=60.0)


@pytest.mark.parametrize(
    ("message", "limits"),
    [
        (
            OPENAI.format("tokens per min (TPM): Limit 500000, Used 499000, Requested 3082"),
            {"tokens": named(500_000, 499_000)},
        ),
        (
            OPENAI.format(
                "requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s"
            ),
            {"requests": named(3, 3)},
        ),
        (
            OPENAI.format("tokens per min. Limit: 10000 / min. Please try again in 6ms"),
            {"tokens": named(10_000)},
        ),
        (
            OPENAI.format(
                "requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s"
            ),
            None,
        ),
        (
            GROQ.format(
                "tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443. Please try again in 4.77s"
            ),
            {"tokens": named(6_000, 5_034)},
        ),
        (GROQ.format("tokens per day (TPD): Limit 100000, Used 99334, Requested 1443"), None),
        (
            ANTHROPIC.format("the rate limit for your organization (0d-e6) of 20,000 input tokens"),
            {"input_tokens": named(20_000)},
        ),
        (
            ANTHROPIC.format("the rate limit for your organization of 8,000 output tokens"),
            {"output_tokens": named(8_000)},
        ),
        (
            ANTHROPIC.format("your organization's rate limit of 30,000 input tokens"),
            {"input_tokens": named(30_000)},
        ),
        (
            ANTHROPIC.format("your organization's rate limit of 50 requests"),
            {"requests": named(50)},
        ),
        ("Number of request tokens has exceeded your per-minute rate limit", None),
        (
            "Requests have exceeded token rate limit of your pricing tier. Please retry after 9 seconds.",
            None,
        ),
        ("Limit 5, Used 4, Requested 3", None),
        (OPENAI.format("tokens per min (TPM): Limit 0, Used 0, Requested 1"), None),
    ],
)
def test_limits_of_a_minute_are_read_from_the_words_of_refusals(message, limits):
    expected = None if limits is None else SeenLimits(**limits)
    assert limits_in(message) == expected
    error = http_error(429, error_details_in({"error": {"message": message}}), headers={})
    assert error.limits == expected
    assert (
        http_error(400, error_details_in({"error": {"message": message}}), headers={}).limits
        is None
    )


def gemini(*quotas, delay="28s"):
    violations = [
        {
            "quotaMetric": "m",
            "quotaId": name,
            "quotaDimensions": {"model": "g"},
            "quotaValue": value,
        }
        for name, value in quotas
    ]
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    return {
        "error": {
            "code": 429,
            "status": "RESOURCE_EXHAUSTED",
            "message": "quota",
            "details": details,
        }
    }


@pytest.mark.parametrize(
    ("quotas", "limits"),
    [
        ([(CALLS, "15")], {"requests": named(15)}),
        (
            [(PROMPTS, "16000"), (CALLS, "10")],
            {"input_tokens": named(16_000), "requests": named(10)},
        ),
        ([("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "200")], None),
        ([(CALLS, "0")], None),
        ([(CALLS, "many")], None),
        ([(CALLS, 15)], None),
    ],
)
def test_the_quotas_of_gemini_are_read_from_the_details_of_its_refusals(quotas, limits):
    reply = gemini(*quotas)
    error = http_error(429, error_details_in(reply), headers={})
    assert (error.kind, error.retry_after_s) == (ErrorKind.RATE_LIMITED, 28.0)
    assert error.limits == (None if limits is None else SeenLimits(**limits))
    if all(isinstance(value, str) for _, value in quotas):
        # litellm has the reply in its message.
        assert limits_in(f"geminiException - {json.dumps(reply)}") == error.limits


def test_what_headers_tell_goes_before_words():
    told = SeenLimits(tokens=named(9))
    words = SeenLimits(tokens=named(8), requests=named(7))
    assert joined(told, words) == SeenLimits(tokens=named(9), requests=named(7))
    assert (joined(None, words), joined(told, None), joined(None, None)) == (words, told, None)


@given(st.text(max_size=80), st.integers(0, 10**30))
def test_any_words_are_read(text, number):
    found = limits_in(
        f"{text} rate limit {text} of {number} tokens per minute: limit {number}, used {text}"
    )
    assert found is None or isinstance(found, SeenLimits)
