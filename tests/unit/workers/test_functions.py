"""Functions of the user between the calls of a branch: its steps, and those that find passages."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, RunStatus
from fanout.core.spec import make_spec
from fanout.llm import LLMRequest, user_code
from fanout.llm.callables import CallableLLM
from fanout.policy.packing import pack
from tests.fakes import RUN, FakeContext
from workers.branch.claims import Claim
from workers.branch.functions import call_function
from workers.branch.places import Place
from workers.context.admission import Admission
from workers.context.progress import TrackedBranch


def run_of(functions, *, texts=("t",), answer=lambda _request: "yes", **fields):
    """Run a job without a prompt of its own to the end of its branches."""
    context = FakeContext(**{"prompt": None, "cache": False, **fields})
    context.answer = answer
    for path, function in functions.items():
        context.models.made[path] = CallableLLM(function)
    chunks = [
        Chunk(text=text, document=text, document_index=at, columns={"tags": ["x"]})
        for at, text in enumerate(texts)
    ]
    for number, shard in enumerate(pack(chunks, branches_per_chunk=1)):
        context.store.put_shard(ShardId(RUN, 0, number), shard)
    context.store.seal_stage(ShardId(RUN, 0, 0).stage_id)
    context.process()
    return context


def test_what_a_function_changes_is_its_own():
    seen, places, calls = [], [], 0

    async def facts(_given):
        return {"n": 1, "of": ["a"]}

    async def changes(given):
        nonlocal calls
        seen.append((given["facts"], list(given["tags"]), given["input"]))
        places.append((given["index"], given["sample"], given["pages"]))
        given["facts"]["n"] += 1
        given["facts"]["of"].append("b")
        given["tags"].append("y")
        del given["input"]
        calls += 1
        if calls == 1:
            raise LLMError(ErrorKind.SERVER_ERROR, "once")
        return "done"

    steps = [
        {"name": "facts", "function": "m:facts"},
        {"name": "change", "function": "m:changes"},
        {"name": "end", "prompt": "{input} {facts.n} {facts.of} {tags}", "when": {"facts.n": 1}},
    ]
    prompts = []
    retries = {"max_attempts": 2, "base_wait_s": 0.0}
    run_of(
        {"m:facts": facts, "m:changes": changes},
        texts="abc",
        steps=steps,
        retries=retries,
        answer=lambda request: prompts.append(request.prompt) or "yes",
    )
    assert prompts == [f'{text} 1 ["a"] ["x"]' for text in "abc"]
    assert [one[1:] for one in seen] == [(["x"], text) for text in "aabc"]
    # What fanout counts is a number.
    assert places == [(0, 0, ""), (0, 0, ""), (1, 0, ""), (2, 0, "")]


BRANCH = BranchId(RUN, 0, 0, 0)
WRONG_KEY = LLMError(ErrorKind.AUTH, "wrong key", stop_after=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "{context} {input}", "retrieve": "m:bad"},
        {"steps": [{"name": "a", "prompt": "{context} {input}"}], "retrieve": "m:bad"},
        {"steps": [{"name": "a", "prompt": "{context} {input}", "retrieve": "m:bad"}]},
        {"steps": [{"name": "a", "function": "m:bad"}]},
        {
            "steps": [
                {"name": "first", "prompt": "{input}"},
                {"name": "a", "function": "m:bad"},
            ]
        },
    ],
    ids=["prompt", "step", "own", "function", "later"],
)
def test_a_failure_of_a_function_that_strikes_all_branches_stops_the_run(fields):
    calls = 0

    async def bad(*_given):
        nonlocal calls
        calls += 1
        raise WRONG_KEY

    context = run_of({"m:bad": bad}, texts=[f"t{n}" for n in range(20)], **fields)
    assert calls <= 4
    run = context.store.run(RUN)
    assert run.halt is RunStatus.FAILED
    assert "wrong key" in run.error


def test_a_model_that_another_one_has_replaced_stops_no_run():
    async def first(_prompt):
        raise LLMError(ErrorKind.CONTENT_FILTER, "not here", stop_after=3)

    steps = [
        {"name": "a", "prompt": "{input}", "model": "m:first"},
        {"name": "b", "prompt": "{input}", "when": {"a": "no"}},
    ]
    context = run_of(
        {"m:first": first}, texts="abcdefgh", steps=steps, output="b", fallback=["fake"]
    )
    run, stage = context.store.run(RUN), context.store.stage(StageId(RUN, 0))
    assert (run.halt, stage.errors) == (None, {ErrorKind.INVALID_OUTPUT: 8})


@pytest.mark.parametrize("next_call", ["gate", "function"])
def test_a_branch_that_left_its_place_for_an_answer_takes_one_before_its_next_call(next_call):
    """A hit in the cache brings no place back; the next call may be one that the cache has no part in."""

    async def run():
        admission = Admission(lambda requests: [None] * len(requests), sure_s=9)
        admission.places = 1
        spec = make_spec(model="fake", prompt="{input}")
        context = FakeContext()
        context.admission = admission
        in_flight = most = 0

        async def calls(*_given):
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(0.002)
            in_flight -= 1
            return "answer"

        context.models.made["m:f"] = CallableLLM(calls)

        async def branch():
            claim = Claim(context, SimpleNamespace(branch_id=BRANCH, moves=ignored), "t")
            async with Place(context, RUN, ignored, None) as claim.place:
                claim.waits_for_answer()
                await asyncio.sleep(0)
                if next_call == "function":
                    await call_function(
                        claim, context, spec, "m:f", lambda llm: llm.call("x"), instead=""
                    )
                    return
                await claim.gate(Open(), 9.0).enter(LLMRequest(prompt="p"), left_s=9.0)
                await calls()

        await asyncio.wait_for(asyncio.gather(*(branch() for _ in range(4))), 60)
        return most

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": [{"name": "a", "function": "m:f"}]},
        {"prompt": "{context} {input}", "retrieve": "m:f"},
        {"prompt": "{input}", "model": "m:f"},
    ],
    ids=["step", "retrieve", "model"],
)
def test_a_function_that_swallows_its_cancellation_fails_its_branches_alone(fields, monkeypatch):
    monkeypatch.setattr(user_code, "_GRACE_S", 0.01)
    cancelled = 0

    async def stubborn(*_given):
        nonlocal cancelled
        # The end of the loop cancels it once more.
        while cancelled < 2:
            try:
                await asyncio.sleep(60)
            except BaseException:  # noqa: BLE001 - as some functions do
                cancelled += 1

    retries = {"max_attempts": 1}
    context = run_of({"m:f": stubborn}, timeout_s=0.02, retries=retries, **fields)
    assert context.store.stage(StageId(RUN, 0)).errors == {ErrorKind.TIMEOUT: 1}
    assert cancelled == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": [{"name": "a", "function": "m:f"}]},
        {"prompt": "{context} {input}", "retrieve": "m:f"},
    ],
    ids=["step", "retrieve"],
)
def test_a_branch_that_stands_in_a_function_is_noticed_after_its_timeout(fields, monkeypatch):
    due = []
    moves = TrackedBranch.moves

    def noted(branch, doing, *, within_s=None):
        due.append((doing, within_s))
        moves(branch, doing, within_s=within_s)

    async def answers(*_given):
        due.append("called")
        return []

    monkeypatch.setattr(TrackedBranch, "moves", noted)
    run_of({"m:f": answers}, timeout_s=7_000, **fields)
    at = due.index("called")
    doing, within_s = due[at - 1]
    assert doing == "calls a function"
    assert 7_000 < within_s < 7_100
    assert due[at + 1][1] is None


def ignored(*_given, **_more):
    pass


class Open:
    async def enter(self, _request, *, left_s):
        return 0.0
