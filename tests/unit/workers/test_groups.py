"""Very many groups: partitions give the nodes that all answers in one place would give."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import Any

import pytest

from fanout.aggregators import nodes_of
from fanout.core.errors import SpecError
from fanout.core.group_hashes import group_hash
from fanout.core.ids import StageId
from fanout.core.partitions import PartitionRecord, PartWrite
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus
from fanout.core.state import RecordRequest
from fanout.policy.packing import pack
from fanout.runs.branch_groups import known_groups
from tests.fakes import RUN, FakeContext
from workers.reduce import group_packing, groups
from workers.reduce.frontier import leaf_of, node_chunk
from workers.reduce.group_nodes import measures
from workers.reduce.groups import pack_partition
from workers.reduce.items import branches, item_of
from workers.reduce.stages import aggregate, collect

HOSTILE = ["", "a", "A", "a\nb", "\x00", "x" * 3_000, "0:0", "g/1", "null", "\u202e", "=== abc"]
JOB = {"context_tokens": 900, "aggregate_max_tokens": 100, "tokenizer": "bytes/4"}


class GroupContext(FakeContext):
    """A context whose branches have outcomes without calls."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.outcome = outcome_of_words(1)


def submitted(names, *, shard=20, **fields):
    """Return a context with a run of a branch for each name: its group is the column of this name."""
    fields = {"group_by": "g", "aggregate_prompt": "{input}", "fence": False, **JOB, **fields}
    context = GroupContext(**fields)
    chunks = [
        Chunk(text=f"t{at}", document=f"d{at}", document_index=at, columns={"g": name})
        for at, name in enumerate(names)
    ]
    shards = pack(chunks, branches_per_chunk=context.spec.branches_per_chunk, max_branches=shard)
    for number, one in enumerate(shards):
        hashes = known_groups(RUN, context.spec, one)
        context.store.put_shard(StageId(RUN, 0).shard(number), one, groups=hashes)
    context.store.seal_stage(StageId(RUN, 0))
    context.store.open_shards(StageId(RUN, 0), window=1_000)
    return context


def outcome_of_words(count, failing=()):
    """Return what makes outcomes of some length; those of some texts are failures."""

    def outcome(index, chunk):
        if chunk.text in failing:
            return Outcome(index=index, kind=ErrorKind.INTERNAL, message="no", attempts=1)
        output = chunk.text[:20] + " word" * count
        return Outcome(index=index, output=output, attempts=1)

    return outcome


def at_once(context):
    """Return the prompts of the first level as all answers in one place give them."""
    [reduce] = context.spec.reductions
    parts = defaultdict(list)
    for chunk, outcome in branches(context, StageId(RUN, 0)):
        part = leaf_of(context.spec, reduce, chunk, outcome)
        parts[part.group].append(part)
    ratio, room = measures(context, context.store.run(RUN), context.spec, 0)
    return sorted(
        node_chunk(node, reduce, group=group, position=0, level=0).text
        for group, some in parts.items()
        for node in nodes_of(some, room_tokens=room, level=0, bytes_per_token=ratio)
    )


def nodes_at(context, stage):
    store, stage_id = context.store, StageId(RUN, stage)
    shards = range(store.stage(stage_id).shards)
    return [chunk for number in shards for chunk in store.shard(stage_id.shard(number)).chunks]


def answered(context, stage, shards=None):
    """Give the branches of shards of a stage the outcomes that calls would have, and collect them."""
    stage_id = StageId(RUN, stage)
    numbers = range(context.store.stage(stage_id).shards) if shards is None else shards
    for shard_id in map(stage_id.shard, numbers):
        shard = context.store.shard(shard_id)
        outcomes = [
            context.outcome(index, chunk) for index, chunk in enumerate(shard.chunks, shard.first)
        ]
        context.store.record_all(
            [RecordRequest(shard_id.branch(at), one) for at, one in enumerate(outcomes)]
        )
        collect(context, [], shard_id)
        context.pack()


def end(context):
    """Process the run to its end."""
    for stage in range(20):
        if context.store.run(RUN).has_ended:
            return
        answered(context, stage)
        aggregate(context, StageId(RUN, stage))
        if context.pack():
            aggregate(context, StageId(RUN, stage))
    raise AssertionError("the run does not end")


@pytest.fixture
def small(monkeypatch):
    """Make partitions of a few branches, and memory for a few answers."""

    def make(branches=40, size_bytes=1_000_000):
        monkeypatch.setattr(groups, "MOST_BRANCHES", branches)
        monkeypatch.setattr(group_packing, "MOST_BYTES", size_bytes)

    return make


def named(seed):
    chance = random.Random(seed)
    count = chance.choice([30, 100, 200])
    kinds = chance.choice([1, 4, 25, count])
    names = [
        chance.choice([f"group {chance.randrange(kinds)}", *HOSTILE][:kinds]) for _ in range(count)
    ]
    if chance.random() < 0.4:
        names.sort()
    return names


@pytest.mark.parametrize("seed", range(12))
def test_any_partitions_give_the_nodes_and_answers_of_all_in_one_place(seed, small):
    chance = random.Random(seed)
    small(chance.choice([5, 20, 60, 10_000]), chance.choice([1, 3_000, 10**6]))
    names = named(seed)
    context = submitted(names, shard=chance.choice([7, 20, 50]))
    context.outcome = outcome_of_words(chance.choice([1, 40, 300]), failing=("t7",))
    end(context)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    prompts = sorted(chunk.text for chunk in nodes_at(context, 1))
    assert prompts == at_once(context)
    found = context.result.aggregates
    kept = [name for at, name in enumerate(names) if at != 7]
    assert list(found) == list(dict.fromkeys(names)), "the order of first appearance"
    counts = {name: one.succeeded for name, one in found.items()}
    assert counts == {name: kept.count(name) for name in counts}
    assert sum(one.failed for one in found.values()) == 1


def test_a_group_is_called_as_soon_as_its_last_member_is_known(small):
    small(10_000)
    context = submitted(sorted(f"g{at // 5:02}" for at in range(100)), shard=20)
    for number in (1, 0):
        answered(context, 0, [number])
        # The first shard shows how long answers are.
        assert len(nodes_at(context, 1)) == (0 if number else 8)
    assert ("expand", 1, 0) in context.publisher.sent


def test_a_large_group_is_packed_while_its_branches_go_on(small):
    small(40)
    names = ["small", *["large"] * 200, "end"]
    context = submitted(names, shard=20)
    context.outcome = outcome_of_words(40)
    answered(context, 0, range(6))
    early = [chunk.text for chunk in nodes_at(context, 1)]
    assert len(early) > 5
    end(context)
    assert sorted(chunk.text for chunk in nodes_at(context, 1)) == at_once(context)
    assert [chunk.text for chunk in nodes_at(context, 1)][: len(early)] == early
    assert list(context.result.aggregates) == ["small", "large", "end"]
    assert context.result.aggregates["large"].succeeded == 200


def test_a_worker_that_dies_between_two_writes_leaves_a_partition_that_goes_on(small, monkeypatch):
    small(60)
    names = [f"g{random.Random(at).randrange(9)}" for at in range(120)]
    context = submitted(names)
    context.outcome = outcome_of_words(100)
    monkeypatch.setattr("workers.reduce.group_writing.MAX_SHARD_BRANCHES", 3)
    put_part, calls = context.store.put_part, []

    def dying(*args, **options):
        calls.append(options)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        wrote = put_part(*args, **options)
        if len(calls) % 3 == 1 and len(calls) < 40:
            # The step was done, and its process does not know.
            raise KeyboardInterrupt
        return wrote

    monkeypatch.setattr(context.store, "put_part", dying)
    pack_partition = groups.pack_partition

    def again(own, partition_id):
        while True:
            try:
                return pack_partition(own, partition_id)
            except KeyboardInterrupt:
                continue

    monkeypatch.setattr("tests.fakes.pack_partition", again)
    end(context)
    prompts = [chunk.text for chunk in nodes_at(context, 1)]
    assert sorted(prompts) == at_once(context)
    assert {name: one.succeeded for name, one in context.result.aggregates.items()} == {
        name: names.count(name) for name in dict.fromkeys(names)
    }


def test_one_of_the_tasks_that_need_the_plan_makes_it(monkeypatch):
    context, made = submitted(["a", "b", "c"] * 40), []
    plan = groups.make_plan

    def making(*args):
        made.append(args)
        # Another shard ends meanwhile.
        groups.follow_groups(context, StageId(RUN, 0).shard(1))
        return plan(*args)

    monkeypatch.setattr(groups, "make_plan", making)
    answered(context, 0)
    assert len(made) == 1
    assert len(nodes_at(context, 1)) == 3, "all that is due is packed"


def test_groups_are_packed_although_the_maker_of_their_plan_died():
    context = submitted(["a", "b", "c"] * 40)
    place = StageId(RUN, 0).partition(0, 0)
    assert context.store.take_partition(place, "dead", lasts_s=3_600)
    answered(context, 0)
    assert not nodes_at(context, 1)
    end(context)
    assert len(context.result.aggregates) == 3


def test_two_workers_that_pack_the_same_partition_write_each_node_once():
    names = [f"g{at % 5}" for at in range(60)]
    context = submitted(names)
    partition_id = StageId(RUN, 1).partition(0, 0)
    store = context.store
    one = PartitionRecord(packed=b"\x01")
    assert store.put_part(partition_id, before=PartitionRecord(), after=one) is PartWrite.DONE
    assert store.put_part(partition_id, before=PartitionRecord(), after=one) is PartWrite.OVERTAKEN
    assert store.take_partition(partition_id, "a", lasts_s=60)
    assert not store.take_partition(partition_id, "b", lasts_s=60)
    assert store.take_partition(partition_id, "a", lasts_s=-1), "its own"
    assert store.take_partition(partition_id, "b", lasts_s=60), "the lease of the other has ended"
    store.release_partition(partition_id, "a")
    assert not store.take_partition(partition_id, "a", lasts_s=60)
    store.release_partition(partition_id, "b")
    assert store.take_partition(partition_id, "a", lasts_s=60)


def test_the_groups_that_are_written_with_a_shard_are_those_of_its_branches():
    for group_by in ("document", "aspect", "g", "column.g", "title", "missing", "fanout.document"):
        context = submitted(
            ["x", "y", "x"],
            group_by=group_by,
            prompt=None,
            aspects={"one": "{input}", "two": "2 {input}"},
        )
        context.outcome = outcome_of_words(1)
        stage_id = StageId(RUN, 0)
        content = context.store.shard(stage_id.shard(0))
        [hashes] = context.store.groups_of(stage_id, 0, [0])
        [reduce] = context.spec.reductions
        names = [
            item_of(context.spec, reduce, content.chunks[index // 2], Outcome(index=index)).group
            for index in range(6)
        ]
        assert hashes is not None
        assert list(hashes) == [group_hash(name, run_id=RUN) for name in names]


def test_several_reduces_of_a_run_have_groups_of_their_own(small):
    small(30)
    names = [f"g{random.Random(at).randrange(5)}" for at in range(90)]
    prompt = {"llm": "{input}"}
    context = submitted(
        names,
        group_by=None,
        aggregate_prompt=None,
        aggregate_max_tokens=None,
        reduce=[
            {"name": "all", **prompt},
            {"name": "by-g", "group_by": "g", **prompt},
            {"name": "by-document", "group_by": "document", **prompt},
            {"name": "counts", "vote": None},
        ],
    )
    context.outcome = outcome_of_words(30)
    end(context)
    found = context.result.named
    assert list(found) == ["all", "by-g", "by-document", "counts"]
    assert {name: one.succeeded for name, one in found["by-g"].aggregates.items()} == {
        name: names.count(name) for name in dict.fromkeys(names)
    }
    assert len(found["by-document"].aggregates) == 90
    assert found["all"].aggregates[""].succeeded == 90


def test_groups_with_too_little_behind_them_make_no_call(small):
    small(40)
    names = ["good"] * 30 + ["bad"] * 30 + ["small"]
    context = submitted(names, min_group_success=0.5)
    context.outcome = outcome_of_words(3, failing=[f"t{at}" for at in range(30, 50)])
    end(context)
    found = context.result.aggregates
    assert found["bad"].value is None
    assert "min_group_success" in str(found["bad"].coverage)
    assert found["good"].value is not None
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED


def test_a_job_without_room_for_answers_ends_with_the_reason(small):
    small(40)
    context = submitted(["a", "b"] * 50, context_tokens=300, aggregate_max_tokens=200)
    end(context)
    run = context.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert "leaves no room" in str(run.error)


def test_a_group_whose_prompts_cannot_be_made_fails_alone(small, monkeypatch):
    small(40)

    def refusing(node: Any, *args: Any, **options: Any) -> Chunk:
        if options["group"] == "b" and "problem" not in options:
            raise SpecError("there is no {name}", field="aggregate_prompt")
        return node_chunk(node, *args, **options)

    context = submitted(["a", "b", "c"] * 10)
    monkeypatch.setattr(group_packing, "node_chunk", refusing)
    end(context)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    found = context.result.aggregates
    assert [name for name in "abc" if found[name].value is not None] == ["a", "c"]
    assert found["b"].coverage.problem == "aggregate_prompt: there is no {name}"


THEMES = ("the parcel came late", "screen was broken glass", "battery died within hours")


def outcome_of_themes(index, chunk):
    """Answer with one of three themes; a node with its first words."""
    if "===" in chunk.text:
        return Outcome(index=index, output="sum", attempts=1)
    number = int(chunk.text[1:])
    return Outcome(index=index, output=f"{chunk.text} {THEMES[number % 3]} {'x' * 30}", attempts=1)


@pytest.mark.parametrize("branches", [40, 1_000])
def test_the_first_calls_of_a_group_see_answers_that_are_alike(branches, small):
    small(branches=branches)
    names = ["a", "b"] * 60 + ["c"] * 3
    context = submitted(names, fold="cluster")
    context.outcome = outcome_of_themes
    end(context)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    found = context.result.aggregates
    assert {group: one.value for group, one in found.items()} == {
        "a": "sum",
        "b": "sum",
        "c": "sum",
    }
    assert [one.coverage.branches_behind for one in found.values()] == [60, 60, 3]
    assert [one.coverage.documents_behind for one in found.values()] == [60, 60, 3]
    nodes = [one for one in nodes_at(context, 1) if one.columns["group"] == "a"]
    themes = [{theme for theme in THEMES if theme in one.text} for one in nodes]
    assert len(nodes) >= 3
    assert sum(len(one) > 1 for one in themes) <= 1
    shown = [int(at) for one in nodes for at in re.findall(r"\[d(\d+)\]", one.text)]
    assert sorted(shown) == list(range(0, 120, 2)), "each answer is in one node"


def test_groups_whose_branches_all_failed_have_no_clusters(small):
    small()
    context = submitted(["a"] * 5 + ["b"] * 5, fold="cluster")
    context.outcome = outcome_of_words(2, failing={f"t{at}" for at in range(5)})
    end(context)
    tree = submitted(["a"] * 5 + ["b"] * 5)
    tree.outcome = context.outcome
    end(tree)
    assert context.result == tree.result


@pytest.mark.parametrize("branches", [10_000, 4])
def test_a_group_whose_branches_all_failed_has_the_reason_in_place_of_an_aggregate(small, branches):
    """A group of its own partition, and one of several."""
    small(branches)
    context = submitted(["a"] * 50 + ["b"] * 5, shard=20)
    context.outcome = outcome_of_words(2, failing={f"t{at}" for at in range(50)})
    end(context)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    found = context.result.aggregates
    assert list(found) == ["a", "b"]
    assert (found["a"].value, found["a"].succeeded, found["a"].failed) == (None, 0, 50)
    assert found["a"].coverage.problem.startswith("no answer is behind it: 0 of 50 branches (0.0%)")
    assert found["b"].value is not None
    assert not context.result.errors


@pytest.mark.parametrize("failing", [range(10, 40), range(1, 60), range(60)])
def test_a_large_group_with_a_least_share_is_streamed_once_it_is_known_to_have_enough(
    small, monkeypatch, failing
):
    small(40, size_bytes=1)
    held = []
    monkeypatch.setattr(
        group_packing, "complete_groups", lambda *_, **how: held.append(how) or iter(())
    )
    names = ["large"] * 200
    context = submitted(names, min_group_success=0.75, shard=20)
    context.outcome = outcome_of_words(40, failing=[f"t{at}" for at in failing])
    end(context)
    assert not held, "the group is not in memory"
    found = context.result.aggregates["large"]
    assert (found.succeeded, found.failed) == (200 - len(failing), len(failing))
    has_enough = len(failing) <= 50
    assert (found.value is not None) is has_enough
    assert ("min_group_success" in str(found.coverage)) is not has_enough
    if has_enough:
        fewer = submitted(names, shard=20)
        fewer.outcome = context.outcome
        end(fewer)
        assert found.value == fewer.result.aggregates["large"].value


def test_a_run_that_is_stopped_while_groups_wait_to_be_packed_ends_at_once(small, monkeypatch):
    small(20)
    context = submitted([f"g{at % 30}" for at in range(120)], shard=20)
    pack_all, context.pack = context.pack, lambda: False
    answered(context, 0)
    aggregate(context, StageId(RUN, 0))
    assert len(context.publisher.packs) > 3
    put_part = context.store.put_part

    def put(*args, **options):
        # The first one finds out in its midst, and the others before they begin.
        context.store.halt(RUN, RunStatus.CANCELLED)
        return put_part(*args, **options)

    monkeypatch.setattr(context.store, "put_part", put)
    context.publisher.sent.clear()
    pack_all()
    assert context.publisher.sent.count(("aggregate", 0)) == 1, "not one for each partition"
    aggregate(context, StageId(RUN, 0))
    assert context.store.run(RUN).status is RunStatus.CANCELLED


def test_a_run_that_is_stopped_before_its_branches_have_ended_is_ended_by_their_callback(small):
    small(20)
    context = submitted([f"g{at // 4}" for at in range(120)], shard=20)
    answered(context, 0, [0, 1])
    context.store.halt(RUN, RunStatus.CANCELLED)
    context.publisher.sent.clear()
    pack_partition(context, StageId(RUN, 0).partition(0, 0))
    assert ("aggregate", 0) not in context.publisher.sent
