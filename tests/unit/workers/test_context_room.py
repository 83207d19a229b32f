"""The room that passages have in the prompts of steps: beside drafts, feedback, and what a judge sees."""

from __future__ import annotations

import json

import pytest

from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes
from fanout.llm.callables import CallableLLM
from tests.fakes import RUN, FakeContext

WINDOW = 4_096
ANSWER = WINDOW // 4
PROMPT = "ASK {context} {input}"
NOTE = {"name": "note", "prompt": PROMPT}
JUDGE = {"name": "check", "judge": "note", "criteria": "short", "max_rounds": 3}


@pytest.mark.parametrize(
    "steps",
    [
        [NOTE, JUDGE],
        [NOTE, {**JUDGE, "prompt": "{context} {task} {answer} {criteria}"}],
        [NOTE, {**JUDGE, "system": "x" * 2_000}],
    ],
)
def test_passages_leave_room_for_drafts_feedback_and_an_answer(steps):
    async def find(_query, most):
        return [f"{at} {'word ' * 600}" for at in range(most)]

    asked = []
    draft, feedback = "d" * ANSWER * BYTES_PER_TOKEN, "f" * 900

    def answer(request):
        asked.append(request)
        if request.prompt.startswith("ASK"):
            return draft
        return json.dumps({"reasons": "", "pass": False, "score": 1, "feedback": feedback})

    context = FakeContext(
        prompt=None, steps=steps, retrieve="m:find", context_tokens=WINDOW, cache=False, fence=False
    )
    context.models.made["m:find"] = CallableLLM(find)
    context.answer = answer
    context.write(["the text"])
    context.process()
    assert context.store.run(RUN).has_ended
    assert len(asked) == 6
    for request in asked:
        size = sum(map(utf8_bytes, (request.prompt, request.system or "")))
        size += sum(utf8_bytes(one.answer) + utf8_bytes(one.reply) for one in request.turns)
        assert size <= (WINDOW - ANSWER) * BYTES_PER_TOKEN or "word" not in request.prompt
    assert "word" in asked[0].prompt
    assert "word" in asked[1].prompt
