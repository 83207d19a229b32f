"""A worker may be killed before and after each write of a result in pieces, and another one goes on."""

from __future__ import annotations

from functools import partial

import pytest

from fanout.core.records import RunStatus
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
