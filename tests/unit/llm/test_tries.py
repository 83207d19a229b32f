"""The conversation of a question, over the deliveries of its branch."""

from __future__ import annotations

import pytest

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.core.spec_fields import RetrySpec
from fanout.llm.answers import WrongAnswerError
from fanout.llm.base import LLMReply, LLMRequest, Turn
from fanout.llm.tries import Tries
from fanout.policy.outages import judge_alone
from fanout.policy.progress import CallsSoFar

SENT_BACK = (Turn("draft 1", "a reviewer says no"), Turn("draft 2", "still no"))


def tries_of(given=(), so_far=None):
    request = LLMRequest(prompt="p", turns=tuple(given))
    return Tries(request, RetrySpec(), 0.0, reasks=2, window_tokens=None, so_far=so_far)


def asks_again(tries, answer):
    wrong = WrongAnswerError("no JSON", answer=answer, reply="send JSON")
    return tries.reasks(wrong, LLMReply(text=answer))


@pytest.mark.parametrize("given", [(), SENT_BACK[:1], SENT_BACK])
@pytest.mark.parametrize("deliveries", [1, 2])
def test_what_a_judge_sent_back_is_neither_lost_nor_a_re_ask(given, deliveries):
    tries, said = tries_of(given), []
    for answer in ("one", "two"):
        assert asks_again(tries, answer)
        said.append(Turn(answer, "send JSON"))
        assert tries.request.turns == (*given, *said)
        if deliveries > 1:
            tries = tries_of(given, tries.so_far(1.0))
            assert tries.request.turns == (*given, *said)
    assert not asks_again(tries, "three")


@pytest.mark.parametrize("given", [(), SENT_BACK])
def test_a_failed_call_leaves_the_conversation_as_it_was(given):
    tries = tries_of(given)
    error = LLMError(ErrorKind.SERVER_ERROR, "down")
    tries.failed(error, LLMReply(text="").usage, judge_alone(error), now=0.0, jitter=0.5)
    assert tries_of(given, tries.so_far(1.0)).request.turns == given
    # A call of a batch that was given up has counted, without a conversation.
    assert tries_of(given, CallsSoFar(attempts=1)).request.turns == given
