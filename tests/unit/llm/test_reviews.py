"""An answer that its review does not take is asked for once more, and then kept with marks."""

from __future__ import annotations

import asyncio

import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.citations import UNKNOWN
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.core.spec import RetrySpec
from fanout.inputs.cited_answers import CitedAnswers
from fanout.llm import FakeLLM, LLMRequest
from fanout.llm.calls import complete_with_retries

A = "s-aaaaaaa"
TEXTS = {A: ["It is red."]}


def ask(*answers, shape=None, so_far=None, reasks=2, **policy):
    """Return the result of calls with these answers, the requests, and the calls so far before each."""
    requests, kept = [], []
    rest = list(answers)

    def script(request):
        requests.append(request)
        return rest.pop(0)

    async def keep(calls):
        kept.append(calls)

    async def at_once(_seconds):
        return

    request = LLMRequest(prompt="p", shape=shape, review=CitedAnswers(TEXTS, shape))
    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=script),
            request,
            policy=RetrySpec(**policy),
            timeout_s=5,
            max_reasks=reasks,
            so_far=so_far,
            keep=keep,
            sleep=at_once,
        )
    )
    return result, requests, kept


def test_a_right_answer_costs_one_call():
    result, requests, _ = ask(f"Red ({A})")
    assert (result.output, result.attempts, len(requests)) == (f"Red ([{A}])", 1, 1)


def test_a_wrong_citation_is_asked_for_once_more_in_the_same_conversation():
    result, requests, _ = ask("Red [s-nope]", f"Red [{A}]")
    assert (result.output, result.attempts) == (f"Red [{A}]", 2)
    [turn] = requests[1].turns
    assert turn.answer == "Red [s-nope]"
    assert turn.reply == (
        "That cannot stay: no source has these ids: s-nope. Give the whole answer again, corrected."
    )


def test_then_it_is_marked():
    result, requests, _ = ask("Red [s-nope]", f"Red [s-nope2] [{A}]")
    assert (result.output, result.kind, len(requests)) == (f"Red {UNKNOWN} [{A}]", None, 2)


def test_without_reasks_it_is_marked_at_once():
    result, requests, _ = ask("Red [s-nope]", reasks=0)
    assert (result.output, len(requests)) == (f"Red {UNKNOWN}", 1)


@pytest.mark.parametrize(
    "failure",
    [LLMError(ErrorKind.CONTEXT_LENGTH, "too long"), LLMError(ErrorKind.AUTH, "no"), ""],
)
def test_the_answer_is_not_lost_where_the_second_call_fails(failure):
    result, requests, _ = ask("Red [s-nope]", failure, max_attempts=1)
    assert (result.output, result.kind, result.message) == (f"Red {UNKNOWN}", None, None)
    assert (result.attempts, len(requests), result.stop_after) == (2, 2, 0)


def test_another_process_goes_on_with_the_conversation():
    _, _, [so_far] = ask("Red [s-nope]", f"Red [{A}]")
    result, requests, _ = ask("Red [s-again]", so_far=so_far)
    assert (result.output, result.attempts) == (f"Red {UNKNOWN}", 2)
    assert len(requests[0].turns) == 1


def test_a_schema_is_checked_first_and_both_have_their_calls():
    shape = shape_of({"type": "object", "required": ["text"]})
    right = f'{{"text":"Red [{A}]"}}'
    result, requests, _ = ask("{}", '{"text": "Red [s-nope]"}', right, shape=shape)
    assert (result.output, len(requests)) == (right, 3)
    # The answer that was sent back for its citation is better than one without its schema.
    result, requests, _ = ask('{"text": "Red [s-nope]"}', "{}", "{}", shape=shape)
    assert (result.output, len(requests)) == (f'{{"text":"Red {UNKNOWN}"}}', 3)
