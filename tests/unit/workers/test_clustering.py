"""The fold cluster on a fake server: the first calls see answers that are alike, each in one call."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from msgspec import structs

import workers.reduce.clustering
import workers.reduce.writing
from fanout.core.errors import LLMError, SpecError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec
from fanout.llm.callables import CallableLLM
from fanout.policy.packing import pack
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext, run_branch
from tests.unit.workers.test_comparisons import Deaths, DiedError, through
from workers.consumer.task_requests import HandedBackError
from workers.context.event_loop import LoopThread
from workers.context.inflight import CallStoppedError, StopReason
from workers.reduce import group_clusters, group_packing
from workers.reduce.clustering import words_of_part
from workers.reduce.groups import pack_partition
from workers.reduce.stages import aggregate, collect
from workers.tasks import _not_done

CLUSTERED = {
    "aggregate_prompt": "SUM {input}", "fold": "cluster", "context_tokens": 700,
    "aggregate_max_tokens": 40, "tokenizer": "bytes/4", "cache": False, "fence": False,
}  # fmt: skip
THEMES = ["the parcel came late", "screen was broken glass", "battery died within hours"]
TEXTS = [f"n={number % 4} {THEMES[number % 3]} {'x' * 20}" for number in range(60)]
TOTAL = sum(number % 4 for number in range(60))


def summing(request):
    if not request.prompt.startswith("SUM"):
        return request.prompt
    return f"n={sum(map(int, re.findall('n=([0-9]+)', request.prompt)))}"


def clustering(**fields):
    context = FakeContext(**{**CLUSTERED, **fields})
    context.answer = summing
    return context


def node_prompts(context):
    asked = []
    answer = context.answer

    def noted(request):
        if request.prompt.startswith("SUM"):
            asked.append(request.prompt)
        return answer(request)

    context.answer = noted
    return asked


def first_nodes(asked):
    return [prompt for prompt in asked if "partial results" not in prompt]


def documents(prompts):
    return [int(number) for prompt in prompts for number in re.findall(r"\[d(\d+)\]", prompt)]


def test_a_call_sees_answers_that_are_alike_and_a_tree_follows():
    context = clustering()
    asked = node_prompts(context)
    assert through(context, TEXTS, max_branches=7) > 2
    made = context.result.aggregates[""]
    assert (made.value, made.succeeded, made.failed) == (f"n={TOTAL}", len(TEXTS), 0)
    first = first_nodes(asked)
    assert sorted(documents(first)) == list(range(len(TEXTS)))
    assert documents(first) != list(range(len(TEXTS)))
    mixed = [prompt for prompt in first if sum(theme in prompt for theme in THEMES) > 1]
    assert len(mixed) <= 1, "what is left of the clusters"
    assert len(first) < len(asked)
    assert made.coverage.branches_behind == made.coverage.documents_behind == len(TEXTS)
    assert made.coverage.is_whole


def test_answers_that_fit_one_prompt_are_one_call():
    context = clustering()
    asked = node_prompts(context)
    assert through(context, TEXTS[:5]) == 2
    assert len(asked) == 1
    assert documents(asked) == list(range(5))


@pytest.mark.parametrize("sizes", [(1, 59), (500, 1)])
def test_the_calls_are_the_same_however_the_answers_came(sizes):
    prompts = []
    for size in sizes:
        context = clustering()
        asked = node_prompts(context)
        through(context, TEXTS, max_branches=size)
        prompts.append(asked)
    assert prompts[0] == prompts[1]


def test_branches_that_fail_are_counted_once():
    context = clustering(max_attempts=1)
    answer = context.answer

    def some(request):
        if "d" not in request.prompt and "n=3" in request.prompt:
            raise ValueError(request.prompt)
        return answer(request)

    context.answer = some
    through(context, TEXTS, max_branches=9)
    made = context.result.aggregates[""]
    assert made.succeeded + made.failed == len(TEXTS)
    assert made.coverage.branches == made.coverage.documents == len(TEXTS)
    assert made.coverage.documents_behind == made.coverage.branches_behind == made.succeeded


def test_a_document_of_several_branches_counts_once():
    context = clustering(samples=3)
    through(context, TEXTS[:30], max_branches=8)
    coverage = context.result.aggregates[""].coverage
    assert (coverage.branches, coverage.branches_behind) == (90, 90)
    assert (coverage.documents, coverage.documents_behind) == (30, 30)
    assert (coverage.chunks, coverage.chunks_behind) == (30, 30)


def test_the_same_nodes_are_written_after_a_death_between_two_steps(monkeypatch):
    whole = clustering()
    stages = through(whole, TEXTS)
    context = clustering()
    deaths = Deaths(context, monkeypatch)
    assert through(context, TEXTS) == stages
    assert not deaths.unmet
    assert context.result == whole.result
    assert context.llm.calls == whole.llm.calls


def write_map(context, texts, **options):
    context.write(texts, **options)
    map_id = StageId(RUN, 0)
    context.store.open_shards(map_id, window=1000)
    for number in range(context.store.stage(map_id).shards):
        shard_id = map_id.shard(number)
        for position in range(len(context.store.shard(shard_id).chunks)):
            run_branch(context, shard_id.branch(position))
        collect(context, [], shard_id)
    return map_id


@pytest.mark.parametrize("is_other", [False, True])
def test_each_answer_is_in_one_node_though_another_process_goes_on(is_other, monkeypatch):
    # One node in each shard, so that the first process dies in between.
    monkeypatch.setattr("workers.reduce.writing.pack", lambda chunks, **_: (
        shard for chunk in chunks for shard in pack([chunk], branches_per_chunk=1)
    ))  # fmt: skip
    context = clustering()
    map_id = write_map(context, TEXTS)
    put_next, left = context.store.put_next, [2]

    def dying(*args, **kwargs):
        if not left[0]:
            raise DiedError
        left[0] -= 1
        return put_next(*args, **kwargs)

    monkeypatch.setattr(context.store, "put_next", dying)
    with pytest.raises(DiedError):
        aggregate(context, map_id)
    assert context.store.stage(StageId(RUN, 1)).total == 2
    left[0] = 1000
    if is_other:
        # As if embeddings differed from one call to the next.
        monkeypatch.setattr(
            workers.reduce.clustering, "clustered", lambda answers, *_: [range(len(answers))]
        )
    aggregate(context, map_id)
    store, target = context.store, StageId(RUN, 1)
    chunks = [one for n in store.shards_of(target) for one in store.shard(target.shard(n)).chunks]
    counts = Counter(documents(chunk.text for chunk in chunks))
    assert counts == Counter(range(len(TEXTS)))
    assert sum(int(chunk.columns["count"]) for chunk in chunks) == len(TEXTS)
    assert store.stage(target).sealed


@pytest.mark.parametrize("fold", ["tree", "cluster"])
def test_a_shard_of_long_prompts_has_few_of_them(fold, monkeypatch):
    most_bytes = 3_000
    monkeypatch.setattr(workers.reduce.writing, "MOST_BYTES", most_bytes)
    context = clustering(fold=fold)
    aggregate(context, write_map(context, TEXTS))
    store, target = context.store, StageId(RUN, 1)
    shards = [store.shard(target.shard(n)) for n in store.shards_of(target)]
    prompts = [[len(chunk.text) for chunk in shard.chunks] for shard in shards]
    assert len(prompts) > 1
    assert all(sum(some[:-1]) < most_bytes for some in prompts)
    assert sum(int(one.columns["count"]) for shard in shards for one in shard.chunks) == len(TEXTS)


@pytest.mark.parametrize("look", [0, 1, 2])
def test_a_run_that_is_cancelled_meanwhile_writes_no_node(look, monkeypatch):
    context = clustering()
    map_id = write_map(context, TEXTS)
    looks = []

    def goes_on(_context, run):
        looks.append(run)
        if len(looks) > look:
            context.store.halt(RUN, RunStatus.CANCELLED)
        return not context.store.run(RUN).halt

    monkeypatch.setattr(workers.reduce.clustering, "goes_on", goes_on)
    aggregate(context, map_id)
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.store.stage(StageId(RUN, 1)).total == 0


def packing_group(monkeypatch):
    """Return a run whose only group is about to be packed, and its partition."""
    monkeypatch.setattr(group_packing, "_RENEW_S", 0.0)
    context = clustering(group_by="product")
    map_id = write_map(context, TEXTS, columns=[{"product": "tea"}] * len(TEXTS))
    aggregate(context, map_id)
    return context, map_id.partition(0, 0)


def test_the_lease_of_a_partition_is_renewed_with_each_answer_that_is_compared(monkeypatch):
    context, partition = packing_group(monkeypatch)
    store, compared, leases = context.store, [], []
    take = store.take_partition

    def words(part):
        compared.append(len(leases))
        return words_of_part(part)

    monkeypatch.setattr(group_clusters, "words_of_part", words)
    monkeypatch.setattr(
        store, "take_partition", lambda *args, **of: leases.append(args) or take(*args, **of)
    )
    pack_partition(context, partition)
    # The words of each are read twice.
    assert len(compared) == 2 * len(TEXTS)
    assert all(before < after for before, after in pairwise(compared))
    assert context.store.stage(StageId(RUN, 1)).total > 1


@pytest.mark.parametrize("answers", [1, 70, 119])
def test_a_run_that_is_cancelled_clusters_no_further_answer_of_a_group(monkeypatch, answers):
    context, partition = packing_group(monkeypatch)
    compared = []

    def words(part):
        compared.append(part)
        if len(compared) == answers:
            context.store.halt(RUN, RunStatus.CANCELLED)
        return words_of_part(part)

    monkeypatch.setattr(group_clusters, "words_of_part", words)
    pack_partition(context, partition)
    assert len(compared) <= answers + 1
    assert context.store.stage(StageId(RUN, 1)).total == 0


def test_a_process_from_before_a_retry_writes_no_node(monkeypatch):
    context = clustering()
    map_id = write_map(context, TEXTS)
    store_run = context.store.run
    looks = []

    def run(run_id):
        looks.append(run_id)
        found = store_run(run_id)
        # It is reopened after the first look of `aggregate`.
        return found if len(looks) == 1 else structs.replace(found, reopened_at=1.0)

    monkeypatch.setattr(context.store, "run", run)
    aggregate(context, map_id)
    assert context.store.stage(StageId(RUN, 1)).total == 0
    assert not store_run(RUN).has_ended


def test_too_few_answers_are_no_aggregate_and_no_call():
    context = clustering(min_group_success=0.9, min_success=0, max_attempts=1)
    asked = node_prompts(context)
    answer = context.answer

    def some(request):
        if "n=3" in request.prompt and not request.prompt.startswith("SUM"):
            raise ValueError(request.prompt)
        return answer(request)

    context.answer = some
    through(context, TEXTS)
    assert context.store.run(RUN).status is RunStatus.FAILED
    assert "min_group_success" in context.store.run(RUN).error
    assert asked == []


def test_a_retry_makes_the_clusters_again_with_the_new_answers():
    context = clustering(max_attempts=1)
    bad = ["n=3"]

    def some(request):
        if any(word in request.prompt for word in bad) and not request.prompt.startswith("SUM"):
            raise ValueError(request.prompt)
        return summing(request)

    context.answer = some
    through(context, TEXTS)
    assert context.result.aggregates[""].failed == 15
    bad.clear()
    retry_failed(context.store, context.publisher, RUN, None)
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage = context.store.run(RUN).base_stage + 1 if stage == 0 else stage + 1
    made = context.result.aggregates[""]
    assert (made.value, made.failed) == (f"n={TOTAL}", 0)
    assert made.coverage.is_whole


def test_a_node_cites_the_answers_that_it_shows():
    context = clustering(sources=True, context_tokens=1100)
    asked = node_prompts(context)

    def citing(request):
        if not request.prompt.startswith("SUM"):
            return request.prompt
        asked.append(request.prompt)
        return f"n [{re.findall(r's-[a-z0-9]+', request.prompt)[0]}]"

    context.answer = citing
    through(context, TEXTS)
    [source] = context.result.aggregates[""].sources
    assert source.document in {f"d{number}" for number in range(60)}


@pytest.mark.parametrize("fold", ["tree", "cluster"])
def test_a_long_answer_gets_the_room_that_the_words_on_sources_do_not_need(fold):
    context = clustering(sources=True, fold=fold, context_tokens=1100)
    asked = node_prompts(context)
    through(context, [*TEXTS, "y" * 2_800])
    assert any("y" * 2_800 in prompt for prompt in asked)
    assert context.result.aggregates[""].coverage.cut == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"group_by": "document", "embed": "a.b:c"}, "embed: makes no vectors with group_by")],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        make_spec(model="fake", prompt="{input}", **{**CLUSTERED, **fields})


def embedding(function, **fields):
    context = clustering(embed="functions.own:vectors", **fields)
    context.models.made["functions.own:vectors"] = CallableLLM(function)
    context.loop = LoopThread()
    return context


def test_a_function_says_which_answers_are_alike():
    seen = []

    def vectors(texts):
        seen.append(texts)
        # By what no words tell: whether the number is even.
        return [[1.0, float(int(text.split()[0][2:]) % 2)] for text in texts]

    context = embedding(vectors)
    asked = node_prompts(context)
    through(context, TEXTS, max_branches=9)
    assert context.result.aggregates[""].value == f"n={TOTAL}"
    assert [text for some in seen for text in some] == TEXTS
    assert max(map(len, seen)) == len(seen[0]) <= 64
    groups = [{int(n) % 2 for n in re.findall("n=([0-9]+)", one)} for one in first_nodes(asked)]
    assert sum(len(one) == 1 for one in groups) >= len(groups) - 1


@pytest.mark.parametrize("failing", [[], TEXTS[3:5]])
def test_a_copy_of_the_task_makes_no_vectors_of_answers_that_are_in_nodes(failing):
    seen = []

    def vectors(texts):
        seen.extend(texts)
        return [[1.0, float(len(text))] for text in texts]

    def answer(request):
        if request.prompt in failing:
            raise LLMError(ErrorKind.CONTENT_FILTER, "no")
        return summing(request)

    context = embedding(vectors, retries={"max_attempts": 1})
    context.answer = answer
    context.write(TEXTS)
    context.process(0)
    total = context.store.stage(StageId(RUN, 1)).total
    shown = [text for text in TEXTS if text not in failing]
    assert (seen, total > 1) == (shown, True)
    aggregate(context, StageId(RUN, 0))
    assert (seen, context.store.stage(StageId(RUN, 1)).total) == (shown, total)


async def slow_vectors(texts):
    return [[float(len(text)), 1.0] for text in texts]


def test_an_async_function_is_awaited():
    context = embedding(slow_vectors)
    through(context, TEXTS)
    assert context.result.aggregates[""].value == f"n={TOTAL}"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda _texts: 1 / 0, "internal: ZeroDivisionError"),
        (lambda texts: [[1.0]] * (len(texts) - 1), "vectors for"),
    ],
)
def test_a_function_that_fails_ends_the_run_with_the_reason(function, words):
    context = embedding(function, retries={"max_attempts": 1})
    through(context, TEXTS)
    run = context.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert "embed: functions.own:vectors made no vectors of answers" in run.error
    assert words in run.error


def test_a_function_is_called_again_after_a_failure():
    left = [2]

    def vectors(texts):
        if left[0]:
            left[0] -= 1
            raise LLMError(ErrorKind.SERVER_ERROR, "busy")
        return [[float(len(text)), 1.0] for text in texts]

    context = embedding(vectors, retries={"max_attempts": 3, "base_wait_s": 0.01})
    through(context, TEXTS)
    assert context.result.aggregates[""].value == f"n={TOTAL}"


def test_a_function_that_fails_is_not_called_again_once_its_run_is_cancelled():
    calls = []

    def vectors(texts):
        calls.append(texts)
        context.store.halt(RUN, RunStatus.CANCELLED)
        raise LLMError(ErrorKind.SERVER_ERROR, "busy")

    context = embedding(vectors, retries={"max_attempts": 3, "base_wait_s": 0.01})
    aggregate(context, write_map(context, TEXTS))
    assert len(calls) == 1
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.store.stage(StageId(RUN, 1)).total == 0


def test_what_is_no_function_makes_no_vectors():
    with pytest.raises(SpecError, match="embed: must be"):
        make_spec(**{"model": "fake", "prompt": "{input}", **CLUSTERED, "embed": "openai/embed"})


def test_a_worker_that_stops_waits_for_no_further_call_of_a_function():
    calls = []

    def vectors(texts):
        calls.append(texts)
        if len(calls) == 1:
            context.models.in_flight.is_stopping = True
            raise LLMError(ErrorKind.SERVER_ERROR, "busy")
        return [[float(len(text)), 1.0] for text in texts]

    context = embedding(vectors, retries={"max_attempts": 3, "base_wait_s": 0.01})
    map_id = write_map(context, TEXTS)
    for _ in range(2):
        with pytest.raises(CallStoppedError):
            aggregate(context, map_id)
    assert len(calls) == 1
    assert not context.store.run(RUN).has_ended
    context.models.in_flight.is_stopping = False
    aggregate(context, map_id)
    assert context.store.stage(StageId(RUN, 1)).total > 0
    assert len(calls) > 1


def test_what_a_worker_that_stops_leaves_goes_back_to_the_queue():
    with pytest.raises(HandedBackError) as left, _not_done():
        raise CallStoppedError(StopReason.HANDED_BACK)
    assert left.value.requeue
