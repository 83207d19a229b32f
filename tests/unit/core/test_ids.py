"""Ids are values: one module writes and reads them, and nothing else does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fanout
import workers
from fanout.core.ids import BranchId, PartitionId, ShardId, StageId, joined, parse_task_id, run_of

RUNS = st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True)
NUMBERS = st.integers(min_value=0, max_value=1_000_000_000)


@given(RUNS, NUMBERS, NUMBERS, NUMBERS)
def test_what_is_written_is_read_as_it_was(run_id, stage, shard, position):
    branch_id = BranchId(run_id, stage, shard, position)
    shard_id, stage_id = branch_id.shard_id, branch_id.stage_id
    assert shard_id == stage_id.shard(shard) == ShardId(run_id, stage, shard)
    assert branch_id == shard_id.branch(position)
    partition_id = stage_id.partition(shard, position)
    assert (
        partition_id == PartitionId(run_id, stage, shard, position) == partition_id.at(9).at(stage)
    )
    assert BranchId.parse(branch_id.task_id) == branch_id
    assert ShardId.parse(shard_id.group_id) == shard_id
    assert StageId.parse(stage_id.group_id) == stage_id == shard_id.stage_id
    tasks = {
        branch_id.task_id: (branch_id, "branch"),
        shard_id.expand_task_id: (shard_id, "expand"),
        shard_id.collect_task_id: (shard_id, "collect"),
        stage_id.seal_task_id: (stage_id, "seal"),
        stage_id.aggregate_task_id: (stage_id, "aggregate"),
        partition_id.pack_task_id: (partition_id, "pack"),
    }
    assert {task_id: parse_task_id(task_id) for task_id in tasks} == tasks
    assert {run_of(task_id) for task_id in tasks} == {run_id}
    assert shard_id.positions(tasks) == {position}
    ends = {task_id for task_id in tasks if stage_id.is_ended_by(task_id)}
    assert ends == {task_id for task_id, (_, word) in tasks.items() if word[0] in "casp"}


def test_the_ids_are_as_messages_in_queues_have_them():
    assert BranchId("r1", 0, 3, 59).task_id == "r1/0/3/59"
    assert (ShardId("r1", 0, 3).group_id, StageId("r1", 0).group_id) == ("r1/0/3", "r1/0")
    assert ShardId("r1", 0, 3).collect_task_id == "r1/0/3/collect"
    assert StageId("r1", 1).seal_task_id == "r1/1/seal"
    assert joined(0, 3, 59) == "0/3/59"


@given(st.text(alphabet="r/0\u0661-9 \nx", max_size=12))
def test_a_text_is_an_id_in_one_way_or_refused_by_its_name(text):
    for parse, written in (
        (StageId.parse, "group_id"),
        (ShardId.parse, "group_id"),
        (BranchId.parse, "task_id"),
    ):
        try:
            found = parse(text)
        except ValueError as error:
            assert repr(text) in str(error)  # noqa: PT017 - most texts are none
        else:
            assert getattr(found, written) == text


@pytest.mark.parametrize(
    "text", ["", "r", "r/0", "r/0/1", "r/0/1/", "r/0/1/-1", "r/0/1/01", "r/0/1/x", "/0/1/2",
             "r/0/1/2/3", "r/0/1/2\n", "r/0/1/seal", "r/0/1/2/collect", "r/0/1/" + "9" * 5_000],
)  # fmt: skip
def test_what_is_no_branch_is_refused(text):
    with pytest.raises(ValueError, match="is not of the form run_id/stage/shard/position"):
        BranchId.parse(text)


@pytest.mark.parametrize("text", ["r/0/done", "r/0/1/seal", "r/collect", "collect", "r/0/expand"])
def test_what_is_no_task_is_refused(text):
    with pytest.raises(ValueError, match="is not of the form"):
        parse_task_id(text)


def test_ids_of_different_kinds_differ_and_none_changes():
    assert len({StageId("r", 0), ShardId("r", 0, 0), BranchId("r", 0, 0, 0)}) == 3
    with pytest.raises(AttributeError):
        StageId("r", 0).stage = 1  # type: ignore[misc]


# The search for ids that are made or parsed elsewhere.

# They write keys and names of files, of id values.
KEYS = {"fanout/core/ids.py", "fanout/stores/redis/base.py", "fanout/stores/blobs/base.py"}
# The record of a parked branch, of which the run is in the key.
RECORDS = {"fanout/stores/codec.py": {"encode_parked", "decode_parked"}}
PARTS = {"run", "run_id", "stage", "shard", "number", "position", "task_id", "group_id", "group"}
BETWEEN = {"/", ":", ".", "-", "/s", ":s"}
PARSERS = {"split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix"}
LOOSE = {"shard", "position"}


def name_of(node):
    """Return the last word of an expression: ``task_id`` of ``each.task_id`` and ``x["task_id"]``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
            return name
        case ast.Subscript(slice=part):
            return name_of(part)
        case ast.FormattedValue(value=value):
            return name_of(value)
        case ast.Call(args=[only]):
            return name_of(only)
    return ""


def makes_id(node):
    """Say whether an f-string, or a join, puts parts of an id beside each other."""
    match node:
        case ast.JoinedStr(values=values):
            return any(
                isinstance(between, ast.Constant)
                and between.value in BETWEEN
                and {name_of(before), name_of(after)} <= PARTS
                for before, between, after in zip(values, values[1:], values[2:], strict=False)
            )
        case ast.Call(func=ast.Attribute(value=ast.Constant(value="/" | ":"), attr="join")):
            return True
    return False


def parses_id(node):
    match node:
        case ast.Call(func=ast.Attribute(value=text, attr=how)) if how in PARSERS:
            return name_of(text) in {"task_id", "group_id", "group", "id", "folder"}
    return False


def takes_parts(node):
    """Say whether a function takes a run and a stage, or a loose shard, in place of their id."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    given = {arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
    return "run_id" in given and bool(given & LOOSE or "stage" in given)


def found_in(where, source):
    """Return what of a module makes or parses an id, or takes one in parts."""
    tree = ast.parse(source)
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in RECORDS.get(where, ())
        for inner in ast.walk(node)
    }
    # What a message's task takes, and the one write that has a stage beside its run.
    tasks = {
        "branch",
        "expand_shard",
        "collect_shard",
        "seal_stage",
        "aggregate_stage",
        "pack_groups",
    }
    allowed = tasks if where == "workers/tasks.py" else {"set_status"}
    return [
        f"{where}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt)
        and node not in skipped
        and (
            (where not in KEYS and (makes_id(node) or parses_id(node)))
            or (takes_parts(node) and getattr(node, "name", None) not in allowed)
        )
    ]


def test_no_other_code_makes_or_parses_an_id_or_takes_one_in_parts():
    found = []
    for package in (fanout, workers):
        [root] = package.__path__
        for path in sorted(Path(root).rglob("*.py")):
            where = path.relative_to(Path(root).parent).as_posix()
            found += found_in(where, path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'f"{run_id}/{stage}/{shard}"', 'f"{self.run_id}:s{one.stage}"', 'f"{group_id}/{position}"',
        '"/".join(map(str, key))', 'task_id.rpartition("/")[2]', 'record["task_id"].split("/")',
        'headers["id"].partition("/")', "def f(run_id, stage, number): ...",
        "async def f(run_id, *, stage): ...", "def f(run_id, shard): ...",
    ],
)  # fmt: skip
def test_the_search_finds_each_way_to_do_so(source):
    assert found_in("fanout/x.py", source)
