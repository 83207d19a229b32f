"""The flex lane: what is sent, how refusals for capacity are borne, and what the answer cost."""

from __future__ import annotations

import asyncio

import pytest

from fanout.core.errors import LLMError
from fanout.core.lanes import lane_of
from fanout.core.records import ErrorKind
from fanout.core.settings import load_settings
from fanout.core.spec_fields import RetrySpec
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.llm.calls import complete_with_retries
from fanout.llm.registry import make_llm
from fanout.policy.flex import FLEX_PATIENCE_S, NextCall, after_shed
from tests.scripted_provider import gemini_reply, openai_reply

POLICY = RetrySpec(max_attempts=3, max_elapsed_s=3_600, base_wait_s=1, max_wait_s=60)
FLEX = LLMRequest(prompt="p", lane="flex")
SHED = LLMError(ErrorKind.RATE_LIMITED, "full", is_shed=True)

pytestmark = pytest.mark.usefixtures("at_provider")


def complete(model, request=FLEX):
    async def once():
        llm = make_llm(model, settings=load_settings())
        try:
            return await llm.complete(request)
        finally:
            await llm.aclose()

    return asyncio.run(once())


# Tiers as providers name them, and what they are to us.
TIERS = {"flex": "flex", "default": "realtime", "priority": "realtime", "auto": None, None: None,
         7: None, "": None}  # fmt: skip


@pytest.mark.parametrize("tier", TIERS)
def test_openai_is_asked_for_flex_and_says_what_it_gave(provider, tier):
    provider.body = {**openai_reply(), "service_tier": tier}
    assert complete("openai/m").lane == TIERS[tier] == lane_of(tier)
    assert provider.requests[-1][2]["service_tier"] == "flex"
    complete("openai/m", LLMRequest(prompt="p"))
    assert "service_tier" not in provider.requests[-1][2]


@pytest.mark.parametrize("tier", ["flex", "standard", "priority", None])
def test_gemini_is_asked_for_flex_and_says_what_it_gave(provider, tier):
    provider.body = gemini_reply()
    provider.headers = {} if tier is None else {"x-gemini-service-tier": tier}
    lane = {"flex": "flex", None: None}.get(tier, "realtime")
    assert complete("gemini/m").lane == lane
    assert provider.requests[-1][2]["serviceTier"] == "flex"
    complete("gemini/m", LLMRequest(prompt="p"))
    assert "serviceTier" not in provider.requests[-1][2]


REFUSALS = [
    # OpenAI, Azure, Groq, Gemini.
    (429, {"message": "Resource unavailable", "code": "resource_unavailable"}, True),
    (429, {"message": "There is no capacity for flex now", "type": "server_error"}, True),
    (498, {"message": "x", "code": "capacity_exceeded"}, True),
    (503, {"message": "The model is overloaded", "status": "UNAVAILABLE"}, True),
    # Limits of the account, and outages.
    (429, {"message": "Rate limit reached: 3 per min", "code": "rate_limit_exceeded"}, False),
    (429, {"message": "slow down"}, False),
    (500, {"message": "no capacity"}, False),
    (502, {"message": "bad gateway"}, False),
    (400, {"message": "no capacity", "param": "service_tier"}, False),
]


@pytest.mark.parametrize(("status", "error", "is_shed"), REFUSALS)
@pytest.mark.parametrize("model", ["openai/m", "gemini/m"])
def test_a_refusal_for_capacity_is_told_from_a_rate_limit(provider, model, status, error, is_shed):
    provider.status, provider.body = status, {"error": error}
    with pytest.raises(LLMError) as caught:
        complete(model)
    assert caught.value.is_shed is is_shed
    # Of the same words without flex, the model itself is short.
    with pytest.raises(LLMError) as caught:
        complete(model, LLMRequest(prompt="p"))
    assert not caught.value.is_shed


NO_FLEX = [
    {"message": "Unknown parameter: 'NAME'", "param": "NAME", "code": "unknown_parameter"},
    {
        "message": "Flex is not available for this model; NAME 'flex'",
        "code": "invalid_service_tier",
    },
    {"message": "no", "code": "invalid_service_tier"},
    {"message": "The model m does not exist for NAME 'flex', which is not supported"},
    {"message": "Invalid value for NAME", "status": "INVALID_ARGUMENT"},
]


@pytest.mark.parametrize("error", NO_FLEX)
@pytest.mark.parametrize(
    ("model", "name"), [("openai/m", "service_tier"), ("gemini/m", "serviceTier")]
)
def test_a_model_without_flex_says_what_to_change(provider, model, name, error):
    provider.status = 400
    provider.body = {"error": {key: value.replace("NAME", name) for key, value in error.items()}}
    with pytest.raises(LLMError, match="leave out lane, or give another") as caught:
        complete(model)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert caught.value.stop_after


def told(*script, policy=POLICY, request=FLEX):
    """Call with a scripted outcome for each call; return the result, the lanes and the waits."""
    given = iter(script)
    lanes, waits, now = [], [], [0.0]

    def reply(asked):
        lanes.append(asked.lane)
        return next(given)

    async def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=reply), request, policy=policy, timeout_s=9, clock=lambda: now[0],
            sleep=sleep, rand=lambda: 1.0,
        )
    )  # fmt: skip
    return result, lanes, waits


def test_flex_that_is_full_is_waited_for_and_then_bought_dearer():
    # More refusals than attempts, none of which one of them is.
    result, lanes, waits = told(*[SHED] * 15, "yes")
    assert (result.output, result.lane, result.attempts) == ("yes", "realtime", 16)
    assert lanes == ["flex"] * 15 + ["realtime"]
    assert waits[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert waits[-1] == 0
    assert FLEX_PATIENCE_S - 60 <= sum(waits) <= FLEX_PATIENCE_S
    # Nobody was billed for them.
    assert result.usage.at_least == {} or result.usage.cost_usd == 0


def test_flex_that_has_room_again_is_bought_as_flex():
    result, lanes, _ = told(SHED, SHED, "yes")
    assert (result.lane, lanes) == ("flex", ["flex"] * 3)


@pytest.mark.parametrize(
    ("said", "lane"), [("realtime", "realtime"), ("flex", "flex"), (None, "flex")]
)
def test_an_answer_says_how_it_was_bought(said, lane):
    assert told(LLMReply(text="yes", lane=said))[0].lane == lane


def test_an_answer_in_realtime_that_nobody_asked_otherwise_says_nothing():
    request = LLMRequest(prompt="p")
    assert told(LLMReply(text="yes", lane="realtime"), request=request)[0].lane is None
    assert told("yes", request=request)[0].lane is None


def test_one_attempt_is_one_call_also_where_flex_is_full():
    result, lanes, _ = told(SHED, policy=RetrySpec(max_attempts=1))
    assert (result.kind, lanes) == (ErrorKind.RATE_LIMITED, ["flex"])


@pytest.mark.parametrize(
    ("refusals", "elapsed_s", "asked_s", "expected"),
    [
        (1, 0, None, NextCall("flex", 1)),
        (3, 0, None, NextCall("flex", 4)),
        (9, 0, None, NextCall("flex", 60)),
        (1, 0, 30, NextCall("flex", 30)),
        (1, 599.5, None, NextCall("realtime", 0)),
        (1, 0, 700, NextCall("realtime", 0)),
        (10_000, 0, None, NextCall("flex", 60)),
        (1, 3_600, None, None),
    ],
)
def test_the_next_call_after_a_refusal(refusals, elapsed_s, asked_s, expected):
    found = after_shed(
        refusals=refusals, elapsed_s=elapsed_s, policy=POLICY, jitter=1.0, retry_after_s=asked_s
    )
    assert found == expected


def test_a_branch_with_little_time_waits_for_half_of_it():
    short = POLICY.model_copy(update={"max_elapsed_s": 20.0})
    assert after_shed(refusals=1, elapsed_s=9.5, policy=short, jitter=1.0) == NextCall(
        "realtime", 0
    )
