"""A worker may be killed before and after each write of a result in pieces, and another one goes on."""

from __future__ import annotations

from functools import partial

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.runs import result_writer
from tests.fakes import RUN, FakeContext
from workers.reduce.stages import aggregate

WRITES = ("set_status", "put_result_piece", "put_result", "end_run")
ANSWERS = ['{"a": 1, "b": [1]}', '{"a": 2, "b": [2]}', '{"a": 2, "b": "x"}', '{"c": {"a": 7}}']


class KilledError(BaseException):
    """In place of a kill: nothing that is to run at the end of a block runs."""


class Kills:
    """Kills the worker at each write of a result in turn."""

    def __init__(self, context, monkeypatch):
        self._store = context.store
        self._done: set[tuple[str, int, str]] = set()
        self._counts: dict[str, int] = {}
        self._is_killed = False
        self.kills = 0
        for name in (*WRITES, "drop_result_pieces"):
            write = partial(self._write, name, getattr(context.store, name))
            monkeypatch.setattr(context.store, name, write)
        monkeypatch.setattr("tests.fakes.aggregate", self._aggregate)

    def _write(self, name, write, *args, **kwargs):
        if self._is_killed:
            raise KilledError
        number = self._counts[name] = self._counts.get(name, 0) + 1
        self._may_kill(name, number, "before")
        result = write(*args, **kwargs)
        self._may_kill(name, number, "after")
        return result

    def _may_kill(self, *at):
        if at not in self._done and at[0] in WRITES:
            self._done.add(at)
            self.kills += 1
            self._is_killed = True
            raise KilledError

    def _aggregate(self, *args):
        while True:
            self._counts, self._is_killed = {}, False
            try:
                aggregate(*args)
            except KilledError:
                continue
            return


@pytest.mark.parametrize("group_by", [None, "document"])
@pytest.mark.parametrize("reduce", ["concat", "merge", "rank", "vote", "table"])
def test_a_result_in_pieces_is_there_at_once_and_whole(reduce, group_by, monkeypatch):
    monkeypatch.setattr(result_writer, "_SMALL_BYTES", -1)
    monkeypatch.setattr(result_writer, "PIECE_BYTES", 15)

    def made(*, is_killed):
        by = ["document"] if reduce == "table" else None
        context = FakeContext(reduce=reduce, group_by=group_by, by=by)
        context.answer = lambda request: request.prompt
        context.write(ANSWERS)
        kills = Kills(context, monkeypatch) if is_killed else None
        context.process()
        assert context.store.run(RUN).status is RunStatus.SUCCEEDED
        keys = context.store._redis.keys(f"*{RUN}:result:*")
        return context.result.aggregates, len(keys), kills

    undisturbed, count, _ = made(is_killed=False)
    disturbed, left, kills = made(is_killed=True)
    values = [
        {group: one.value for group, one in some.items()} for some in (undisturbed, disturbed)
    ]
    assert values[0] == values[1]
    assert any(values[0].values())
    assert left == count > 2, "the pieces of killed workers are gone"
    assert kills.kills >= 2 * (3 + count - 1) - 2


CONCAT = {"name": "all", "reduce": "concat"}
SUMMARY = {
    "name": "summary", "reduce": "llm", "aggregate_prompt": "SUM {input}", "aggregate_max_tokens": 40,
}  # fmt: skip
CALLED = {"context_tokens": 8000, "tokenizer": "bytes/4", "cache": False, "fence": False}


def ends(context, stage=0):
    """Process a run to its end, from a stage; return how it ends."""
    while not context.store.run(RUN).has_ended:
        context.process(stage)
        stage += 1
    run = context.store.run(RUN)
    return run.status, run.error


def before_its_end(context, monkeypatch, happens):
    """Let something happen once, when the result of a run stands and the run has not ended yet."""
    end, left = context.store.end_run, [happens]

    def held_up(*args, **options):
        if left:
            left.pop()()
        return end(*args, **options)

    monkeypatch.setattr(context.store, "end_run", held_up)


def kill():
    raise KilledError


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("reduces", [[CONCAT, SUMMARY], [SUMMARY, CONCAT]])
def test_the_result_that_stands_decides_how_a_run_ends(reduces, fails, is_killed, monkeypatch):
    """A second worker finds it as it writes its first piece, and has read no aggregate of later reduces."""
    monkeypatch.setattr(result_writer, "PIECE_BYTES", 5_000)
    monkeypatch.setattr(result_writer, "_SMALL_BYTES", 5_000)
    context = FakeContext(reduce=reduces, retries={"max_attempts": 1}, **CALLED)

    def answer(request):
        if not request.prompt.startswith("SUM"):
            return request.prompt
        if fails:
            raise LLMError(ErrorKind.INVALID_OUTPUT, "no")
        return "short"

    context.answer = answer
    context.write(["y" * 2_000 + str(number) for number in range(9)])
    context.process(0)
    happens = kill if is_killed else partial(aggregate, context, StageId(RUN, 1))
    before_its_end(context, monkeypatch, happens)
    if is_killed:
        with pytest.raises(KilledError):
            context.process(1)
    status, error = ends(context, 1)
    assert status is (RunStatus.FAILED if fails else RunStatus.SUCCEEDED)
    assert ("reduce summary: no aggregate could be made: invalid_output" in (error or "")) is fails
    found = context.result.named
    assert (found["summary"].problem is not None) is fails
    assert found["all"].aggregates[""].held is not None


def test_a_result_that_is_too_large_ends_its_run_as_failed_the_second_time_too(monkeypatch):
    monkeypatch.setattr(result_writer, "PIECE_BYTES", 200)
    monkeypatch.setattr(result_writer, "_SMALL_BYTES", -1)
    monkeypatch.setattr(result_writer, "_MAX_RECORD_BYTES", 500)
    context = FakeContext(reduce="concat", group_by="document", cache=False)
    context.write(ANSWERS)
    before_its_end(context, monkeypatch, kill)
    with pytest.raises(KilledError):
        context.process()
    status, error = ends(context)
    assert status is RunStatus.FAILED
    assert "more groups than can be stored" in error


def test_a_tree_without_an_answer_ends_its_run_as_failed_the_second_time_too(monkeypatch):
    """The second worker finds the result before it has read an aggregate."""
    monkeypatch.setattr(result_writer, "PIECE_BYTES", 50)
    monkeypatch.setattr(result_writer, "_SMALL_BYTES", -1)
    context = FakeContext(
        aggregate_prompt="SUM {input}",
        aggregate_max_tokens=40,
        retries={"max_attempts": 1},
        **CALLED,
    )

    def answer(request):
        if request.prompt.startswith("SUM"):
            raise LLMError(ErrorKind.INVALID_OUTPUT, "no")
        return request.prompt

    context.answer = answer
    context.write(["a", "b"])
    context.process(0)
    before_its_end(context, monkeypatch, kill)
    with pytest.raises(KilledError):
        context.process(1)
    status, error = ends(context, 1)
    assert status is RunStatus.FAILED
    assert error.startswith("no aggregate could be made: invalid_output: no")
