from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, Usage
from fanout.core.spec_fields import RetrySpec
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.llm.answers import validate_json, validated
from fanout.llm.base import Token
from fanout.llm.calls import complete_with_retries

POLICY = RetrySpec(max_attempts=3, max_elapsed_s=100, base_wait_s=1, max_wait_s=10)


ONCE = RetrySpec(max_attempts=1)


def call(*told, timeout_s=10, validate=None, policy=POLICY, observe=None):
    """Call a fake with a scripted outcome for each call; return the result and the waits."""
    script = iter(told)
    waits = []
    now = [0.0]

    async def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=lambda request: next(script)),
            LLMRequest(prompt="p"),
            policy=policy,
            timeout_s=timeout_s,
            validate=validate,
            observe=observe,
            clock=lambda: now[0],
            sleep=sleep,
            rand=lambda: 1.0,
        )
    )
    return result, waits


def error(kind=ErrorKind.SERVER_ERROR, **options):
    return LLMError(kind, f"it is {kind.value}", **options)


def test_an_answer_is_an_outcome():
    result, waits = call("yes")
    assert (result.output, result.kind, result.attempts, waits) == ("yes", None, 1, [])


def test_a_passing_error_is_waited_out():
    result, waits = call(error(), error(ErrorKind.RATE_LIMITED, retry_after_s=7), "yes")
    assert (result.output, result.attempts, result.elapsed_s) == ("yes", 3, 8)
    assert waits == [1, 7]


def test_attempts_end_with_the_last_error():
    result, _ = call(error(), error(), error(ErrorKind.TIMEOUT))
    assert (result.output, result.kind, result.attempts) == (None, ErrorKind.TIMEOUT, 3)
    assert result.message == "it is timeout"


@pytest.mark.parametrize("kind", [ErrorKind.AUTH, ErrorKind.BAD_REQUEST, ErrorKind.CONTENT_FILTER])
def test_an_error_that_stays_is_not_tried_again(kind):
    result, waits = call(error(kind))
    assert (result.kind, result.attempts, waits) == (kind, 1, [])


def test_a_call_that_takes_too_long_times_out():
    result = asyncio.run(
        complete_with_retries(
            FakeLLM(latency_s=30),
            LLMRequest(prompt="p"),
            policy=RetrySpec(max_attempts=1),
            timeout_s=0.01,
        )
    )
    assert (result.kind, result.message) == (ErrorKind.TIMEOUT, "no answer within 0.01 s")


def test_an_unexpected_exception_is_internal_and_short():
    result, _ = call(ValueError("x" * 1000))
    assert result.kind is ErrorKind.INTERNAL
    assert result.message.startswith("ValueError: xxx")
    assert len(result.message) == 300


def test_usage_adds_up_over_attempts():
    half = LLMReply(
        text="{bad", usage=Usage(calls=1, input_tokens=5, output_tokens=2, cost_usd=0.5)
    )
    whole = LLMReply(text="{}", usage=Usage(calls=1, input_tokens=5, output_tokens=1, cost_usd=0.5))
    result, _ = call(half, error(), whole, validate=validate_json)
    assert result.output == "{}"
    assert result.usage == Usage(calls=3, input_tokens=10, output_tokens=3, cost_usd=1.0)


def test_an_unknown_usage_makes_the_sum_unknown():
    unknown = LLMReply(text="{bad", usage=Usage(calls=1))
    known = LLMReply(text="{}", usage=Usage(calls=1, input_tokens=5, output_tokens=1, cost_usd=0.0))
    result, _ = call(unknown, known, validate=validate_json)
    assert result.usage == Usage(calls=2, at_least={"input_tokens": 5, "output_tokens": 1})


@pytest.mark.parametrize("text", ['{"a": 1}', " [1]\n", '```json\n{"a": 1}\n```', "```\n[1]\n```"])
def test_json_is_taken_out_of_what_is_around_it(text):
    assert validate_json(text) in {'{"a": 1}', "[1]"}


@pytest.mark.parametrize("text", ["", "no", "{"])
def test_what_is_not_json_is_invalid_output(text):
    with pytest.raises(LLMError, match=f"the answer '{text}' is not JSON") as caught:
        validate_json(text)
    assert caught.value.kind is ErrorKind.INVALID_OUTPUT


def test_a_check_that_does_not_end_costs_its_branch_and_holds_up_no_other():
    """A check that is stuck in another thread does not block the loop."""
    stuck = threading.Event()

    async def both():
        check = asyncio.create_task(validated(lambda _: stuck.wait(30) and "", "x", limit_s=0.2))
        turns = 0
        while not check.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns, check.exception()

    try:
        turns, failure = asyncio.run(both())
    finally:
        stuck.set()
    assert turns > 3
    assert failure.kind is ErrorKind.INVALID_OUTPUT
    assert "within 0.2 s" in str(failure)


def test_a_check_with_a_fault_of_its_own_is_internal():
    result, _ = call("x", validate=lambda text: text.nothing, policy=ONCE)
    assert result.kind is ErrorKind.INTERNAL


def test_half_a_character_at_the_end_of_an_answer_does_not_lose_the_answer():
    result, _ = call("caf\u00e9 \ud83d")
    assert result.output == "café \ufffd"


def test_an_observer_sees_each_call_and_no_text():
    seen = []
    reply = LLMReply(
        text="yes", usage=Usage(calls=1, output_tokens=3), model="m-1", response_id="7",
        finish_reason="stop",
    )  # fmt: skip
    call(error(ErrorKind.TIMEOUT), reply, observe=seen.append)
    assert [(attempt.number, attempt.kind) for attempt in seen] == [
        (1, ErrorKind.TIMEOUT),
        (2, None),
    ]
    assert seen[1].usage == reply.usage
    assert (seen[1].model, seen[1].response_id, seen[1].finish_reason) == ("m-1", "7", "stop")
    assert not {"yes", "p"} & {str(value) for value in msgspec.structs.astuple(seen[1])}


def test_an_observer_sees_an_answer_that_cannot_be_used_and_a_call_that_is_cancelled():
    seen = []
    call("no json", validate=validate_json, policy=ONCE, observe=seen.append)
    assert (seen[0].kind, seen[0].usage is None) == (ErrorKind.INVALID_OUTPUT, False)

    async def cancelled():
        task = asyncio.ensure_future(
            complete_with_retries(
                FakeLLM(latency_s=30), LLMRequest(prompt="p"), policy=ONCE, timeout_s=9,
                observe=seen.append,
            )
        )  # fmt: skip
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(cancelled())
    assert seen[1].kind is ErrorKind.CANCELLED


def cut(tokens=7, *, finish_reason="length", text="half an ans"):
    usage = Usage(calls=1, input_tokens=3, output_tokens=tokens)
    return LLMReply(text=text, usage=usage, finish_reason=finish_reason)


class Rooms:
    """A fake that records the token limit of each call."""

    def __init__(self, *told):
        self.asked = []
        script = iter(told)

        def answer(request):
            self.asked.append(request.max_tokens)
            return next(script)

        self.llm = FakeLLM(script=answer)

    def call(self, max_tokens=None, policy=POLICY):
        request = LLMRequest(prompt="p", max_tokens=max_tokens)
        return asyncio.run(
            complete_with_retries(
                self.llm, request, policy=policy, timeout_s=9, sleep=lambda _: asyncio.sleep(0)
            )
        )


@pytest.mark.parametrize(
    ("max_tokens", "tokens", "asked"),
    [
        (50, 50, [50, 100]),
        # The model's own limit is no limit to double.
        (None, 40, [None]),
    ],
)
def test_an_answer_that_is_cut_is_asked_for_once_more_with_twice_the_room(
    max_tokens, tokens, asked
):
    rooms = Rooms(*[cut(tokens)] * 9)
    result = rooms.call(max_tokens)
    assert (result.output, result.kind) == (None, ErrorKind.TRUNCATED)
    assert "raise max_tokens (split_max_tokens where a model splits" in result.message
    assert (rooms.asked, result.attempts) == (asked, len(asked))


def test_twice_the_room_may_be_enough_and_is_kept():
    rooms = Rooms(cut(50), error(), "whole")
    result = rooms.call(50)
    assert (result.output, rooms.asked) == ("whole", [50, 100, 100])


def test_waits_that_the_provider_asked_for_cost_a_cut_answer_nothing():
    rooms = Rooms(*[error(retry_after_s=0.1)] * 9, cut(50), "whole")
    result = rooms.call(50)
    assert (result.output, rooms.asked[-2:]) == ("whole", [50, 100])


@pytest.mark.parametrize("kind", [ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_LENGTH])
def test_where_more_room_is_refused_the_branch_was_cut(kind):
    result = Rooms(cut(), error(kind)).call(50)
    assert (result.kind, result.attempts) == (ErrorKind.TRUNCATED, 2)


def test_one_attempt_is_one_call_though_it_is_cut():
    assert Rooms(cut()).call(50, policy=ONCE).attempts == 1


@pytest.mark.parametrize(
    ("finish_reason", "kind"),
    [
        *((word, None) for word in (None, "", "stop", "STOP", "end_turn", "stop_sequence")),
        *((word, None) for word in ("tool_calls", "eos_token", "COMPLETE")),
        *((w, ErrorKind.TRUNCATED) for w in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
        *((w, ErrorKind.CONTENT_FILTER) for w in ("content_filter", "refusal", "SAFETY")),
        *((w, ErrorKind.SERVER_ERROR) for w in ("error", "abort", "overloaded", "never heard of")),
    ],
)
def test_only_a_complete_answer_is_a_success(finish_reason, kind):
    rooms = Rooms(*[cut(finish_reason=finish_reason)] * 9)
    result = rooms.call(50)
    assert (result.kind, result.output is None) == (kind, kind is not None)


def failed_with(kind, usage):
    return LLMError(kind, "no", usage=usage)


KNOWN = Usage(calls=1, input_tokens=5, output_tokens=2, cost_usd=0.25)


@pytest.mark.parametrize(
    ("first", "tokens"),
    [
        # The usage that the provider reports for a failed call counts.
        (failed_with(ErrorKind.INVALID_OUTPUT, KNOWN), 10),
        (failed_with(ErrorKind.SERVER_ERROR, KNOWN), 10),
        # The provider refused, or was not reached: nothing was consumed.
        (failed_with(ErrorKind.RATE_LIMITED, None), 5),
        (failed_with(ErrorKind.CONNECTION, None), 5),
        # The usage is unknown.
        (failed_with(ErrorKind.TIMEOUT, None), None),
        (failed_with(ErrorKind.INVALID_OUTPUT, None), None),
    ],
)
def test_failed_calls_are_added_up_or_the_sum_is_unknown(first, tokens):
    result, _ = call(first, LLMReply(text="yes", usage=KNOWN))
    assert (result.output, result.usage.calls, result.usage.input_tokens) == ("yes", 2, tokens)


@pytest.mark.parametrize("value", [-1, 10**12, 3.5, True, "12", float("nan"), float("inf"), [], {}])
def test_a_count_or_cost_that_makes_no_sense_is_unknown(value):
    usage = Usage(calls=-3, input_tokens=value, output_tokens=4, cost_usd=0.5)
    result, _ = call(LLMReply(text="yes", usage=usage))
    assert result.usage == Usage(calls=1, output_tokens=4, cost_usd=0.5)
    if value != 3.5:
        usage = Usage(calls=1, input_tokens=1, output_tokens=4, cost_usd=value)
        assert call(LLMReply(text="yes", usage=usage))[0].usage.cost_usd is None


def test_a_model_that_returns_no_reply_fails_its_branch_only():
    class Odd:
        async def complete(self, request):
            return "not a reply"

    result = asyncio.run(
        complete_with_retries(Odd(), LLMRequest(prompt="p"), policy=ONCE, timeout_s=9)
    )
    assert (result.kind, result.message) == (
        ErrorKind.INVALID_OUTPUT,
        "the model returned str, not an LLMReply",
    )


class Unreadable:
    def __str__(self):
        raise RuntimeError("boom")

    @property
    def value(self):
        raise RuntimeError("boom")


class UnreadableError(Exception):
    __str__ = Unreadable.__str__


ANSWER = "good"
ODD_REPLIES = {
    **{
        f"tokens {number}": (LLMReply(text=ANSWER, tokens=odd), None)
        for number, odd in enumerate(
            [
                5, "abc", [1], ((1, 2),), None, Unreadable(), (Token("good", -1.0),),
                (Token(b"good", 1000.0),), (Token(b"good", "x"),), (Token(b"good", float("nan")),),
                (Token(b"good", -1.0, 5),), (Token(b"good", -1.0, (5,)),),
                (Token(b"good", -1.0, ((b"bad",),)),), (Token(b"good", -1.0, (("bad", -1.0),)),),
            ]
        )
    },
    **{
        f"usage {number}": (LLMReply(text=ANSWER, usage=odd), None)
        for number, odd in enumerate([None, 5, "x", {"calls": 1}])
    },
    "model": (LLMReply(text=ANSWER, model=5, response_id=object()), None),
    "finish reason": (LLMReply(text=ANSWER, finish_reason=Unreadable()), "internal"),
    "finish reason of an enum": (LLMReply(text=ANSWER, finish_reason=ErrorKind.TIMEOUT), "server_error"),
    "no reply": ("good", "invalid_output"),
    "no text": (LLMReply(text=None), "invalid_output"),
    "an error": (UnreadableError(), "internal"),
    "an error's message": (LLMError(ErrorKind.AUTH, Unreadable()), "internal"),
    "an error's usage": (LLMError(ErrorKind.AUTH, "no", usage=5), "auth"),
    "an error's finish reason": (LLMError(ErrorKind.AUTH, "no", finish_reason=5), "auth"),
    "an error's stop": (LLMError(ErrorKind.AUTH, "no", stop_after="x"), "auth"),
    "an error's kind": (LLMError(Unreadable(), "no"), "internal"),
}  # fmt: skip


class Marked(str):  # noqa: SLOT000
    """A text of a class that cannot be stored."""


def test_a_text_of_another_class_becomes_a_plain_one():
    class Odd:
        async def complete(self, request):
            return LLMReply(text=Marked(ANSWER))

    call = complete_with_retries(Odd(), LLMRequest(prompt="p"), policy=ONCE, timeout_s=9)
    result = asyncio.run(call)
    assert (type(result.output), result.output) == (str, ANSWER)


@pytest.mark.parametrize("name", ODD_REPLIES)
def test_no_value_that_a_function_returns_or_raises_escapes(name):
    told, kind = ODD_REPLIES[name]

    class Odd:
        async def complete(self, request):
            if isinstance(told, Exception):
                raise told
            return told

    request = LLMRequest(prompt="p", shape=shape_of(None, ("good", "bad")))
    seen = []
    result = asyncio.run(
        complete_with_retries(Odd(), request, policy=ONCE, timeout_s=9, observe=seen.append)
    )
    assert (result.kind and result.kind.value, result.confidence) == (kind, None)
    assert result.output == (None if kind else ANSWER)
    assert len(seen) == result.attempts == 1
    assert isinstance(result.stop_after, int)


WRONG = LLMReply(text="well", finish_reason="end_turn")
CUT = LLMReply(text="goo", finish_reason="length")
LONG = LLMError(ErrorKind.CONTEXT_LENGTH, "too long")
REFUSED = LLMError(ErrorKind.BAD_REQUEST, "no")


@pytest.mark.parametrize(
    ("told", "kind", "reason"),
    [
        ([WRONG], "invalid_output", "end_turn"),
        # What follows an unusable answer does not hide it, where it can be the cause.
        ([WRONG, LONG], "invalid_output", "end_turn"),
        ([WRONG, WRONG, LONG], "invalid_output", "end_turn"),
        ([CUT, LONG], "truncated", "length"),
        ([CUT, REFUSED], "truncated", "length"),
        ([WRONG, CUT, REFUSED], "truncated", "length"),
        ([CUT, WRONG, LONG], "invalid_output", "end_turn"),
        ([LONG], "context_length", None),
        ([WRONG, REFUSED], "bad_request", None),
        ([CUT, WRONG, REFUSED], "bad_request", None),
    ],
)
def test_an_error_is_that_of_its_cause_with_its_finish_reason(told, kind, reason):
    script = iter([*told, *[told[-1]] * 3])
    request = LLMRequest(prompt="p", max_tokens=9, shape=shape_of(None, ("good", "bad")))
    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=lambda _: next(script)),
            request,
            policy=POLICY,
            timeout_s=9,
            max_reasks=2,
        )
    )
    assert (result.kind.value, result.finish_reason) == (kind, reason)


@pytest.mark.parametrize(
    ("told", "reasks", "refused"),
    [
        (["good"], 2, []),
        (["bad " * 999, "good"], 2, []),
        (["bad", "worse", "worst"], 2, [("bad", True), ("worse", True), ("worst", False)]),
        (["bad"], 0, [("bad", False)]),
        (["bad", error(ErrorKind.AUTH)], 2, [("bad", True)]),
        ([str(at) for at in range(8)], 7, [(str(at), at < 7) for at in range(3, 8)]),
    ],
)
def test_a_failure_has_the_answers_that_were_invalid(told, reasks, refused):
    script = iter(told)
    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=lambda request: next(script)),
            LLMRequest(prompt="p", shape=shape_of(None, ("good", "poor"))),
            policy=ONCE,
            timeout_s=10,
            max_reasks=reasks,
        )
    )
    assert [(answer, bool(reply)) for answer, reply in result.refused] == refused
    long = asyncio.run(
        complete_with_retries(
            FakeLLM(script=lambda request: "x" * 9_999),
            LLMRequest(prompt="p", shape=shape_of(None, ("good", "poor"))),
            policy=ONCE,
            timeout_s=10,
        )
    )
    assert len(long.refused[0][0]) < 2_100
