"""How the calls of a run are bought: what is asked for, what came of it, and where it is shown."""

from __future__ import annotations

import asyncio

from fanout.client.run import Run
from fanout.core.errors import LLMError
from fanout.core.lanes import first_lane
from fanout.core.rate_limits import Rates
from fanout.core.records import ErrorKind, Usage
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.runs.rows import full_row, layout_of, output_row, stream_row
from fanout.runs.tables.spool import MemorySpool
from fanout.runs.tables.table import gather
from tests.fakes import RUN, FakeContext, fake_store
from tests.fences import bare
from workers.context.limiter import Limiter

SHED = LLMError(ErrorKind.RATE_LIMITED, "no capacity", is_shed=True, retry_after_s=30.0)
USAGE = Usage(calls=1, input_tokens=5, output_tokens=2)
QUICK = {"base_wait_s": 0.0, "max_attempts": 2}


def processed(told, models=("openai/m",), **fields):
    """Return the context of a run of flex that has ended, and the lanes of its calls."""
    context = FakeContext(**{"model": list(models), "lane": "flex", "retries": QUICK, **fields})
    lanes = []

    def model(name):
        def answer(request):
            lanes.append((name, request.lane))
            return told(name, request)

        return FakeLLM(script=answer)

    context.models.made = {name: model(name) for name in [*models, *fields.get("fallback", [])]}
    context.write(["a", "b"])
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage += 1
    return context, lanes


def result_of(context):
    return Run(RUN, context.store, context.publisher, check=lambda: None).result()


def test_rows_and_tables_say_how_each_answer_was_bought():
    def told(_name, request):
        lane = "realtime" if bare(request.prompt) == "a" else None
        return LLMReply(text="x", usage=USAGE, lane=lane)

    context, lanes = processed(told, aggregate_prompt="{input}")
    # The reduce, too.
    assert lanes == [("openai/m", "flex")] * 3
    result = result_of(context)
    assert [branch.lane for branch in result.branches] == ["realtime", "flex"]
    for row in (output_row, stream_row, full_row):
        assert [row(branch)["lane"] for branch in result.branches] == ["realtime", "flex"]
    for is_wide in (False, True):
        table = gather(result.branches, layout_of(context.spec), MemorySpool(), is_wide=is_wide)
        [at] = [n for n, one in enumerate(table.columns) if one.name.endswith("lane")]
        assert [row[at] for row in table.typed_rows()] == ["realtime", "flex"]


def test_a_run_that_chose_no_lane_has_none():
    context, lanes = processed(lambda *_: LLMReply(text="x", lane="realtime"), lane="realtime")
    assert {lane for _, lane in lanes} == {"realtime"}
    [branch, _] = result_of(context).branches
    assert branch.lane is None
    assert "lane" not in full_row(branch)
    table = gather([branch], layout_of(context.spec), MemorySpool())
    assert not [one for one in table.columns if one.name == "lane"]


def test_a_column_of_the_input_does_not_lose_its_name_to_a_lane():
    context, _ = processed(lambda *_: LLMReply(text="x"))
    [branch, _] = result_of(context).branches
    branch.columns["lane"] = "fast"
    assert output_row(branch)["column.lane"] == "fast"
    assert output_row(branch)["lane"] == "flex"


def test_a_fallback_without_the_lane_is_asked_in_realtime():
    def told(name, _request):
        if name == "openai/m":
            return LLMError(ErrorKind.CONTENT_FILTER, "no")
        return LLMReply(text="x")

    context, lanes = processed(told, fallback=["anthropic/m"])
    assert set(lanes) == {("openai/m", "flex"), ("anthropic/m", "realtime")}
    assert [branch.output for branch in result_of(context).branches] == ["x", "x"]


def test_an_answer_of_a_lane_that_was_bought_otherwise_says_so():
    """A model without batches is asked in realtime, as is what batches would bring too late."""
    context, _ = processed(lambda *_: LLMReply(text="x", usage=USAGE), lane="batch")
    assert [branch.lane for branch in result_of(context).branches] == ["realtime"] * 2


def test_a_majority_says_how_its_answer_was_bought():
    # Two of three answers make a majority.
    lanes = iter(["flex", "realtime", "realtime", "flex"])

    def told(_name, request):
        return LLMReply(text=f"{bare(request.prompt)}!", usage=USAGE, lane=next(lanes))

    context, _ = processed(told, samples=3, certainty=0.9)
    result = result_of(context)
    assert [branch.output for branch in result.branches] == ["a!", "b!"]
    assert [branch.lane for branch in result.branches] == ["flex", "realtime"]


def test_flex_that_is_full_holds_up_no_other_calls():
    """The model is not paused, its breaker stays closed, and no attempt is spent."""
    store = fake_store()
    limiter = Limiter(store)

    async def refused():
        for _ in range(50):
            gate = limiter.gate("m", Rates())
            await gate.enter(LLMRequest(prompt="p", lane="flex"), left_s=10)
            verdict = await gate.leave(LLMRequest(prompt="p", lane="flex"), None, SHED)
            assert (verdict.cost, verdict.is_held) == (0, False)
        # Another run's call begins at once.
        async with asyncio.timeout(60):
            await limiter.gate("m", Rates()).enter(LLMRequest(prompt="p"), left_s=100)

    asyncio.run(refused())
    assert store.pause_of("m").wait_s == 0
    assert store.pause_of("m").down_s is None


def test_auto_begins_as_batch():
    assert [first_lane(one) for one in ("realtime", "flex", "batch", "auto")] == [
        "realtime", "flex", "batch", "batch",
    ]  # fmt: skip
