"""A run whose reduce goes by a field that no answer of its first shard has says so while it goes on."""

from __future__ import annotations

import json

import pytest

from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from tests.fakes import RUN, FakeContext, run_branch
from workers.reduce import missing_fields
from workers.reduce.stages import collect

ANSWERS = [json.dumps({"firm": f"f{n % 3}", "stars": n % 5}) for n in range(40)]


def first_shard(answers=ANSWERS, *, columns=(), seal=False, **fields):
    """Process the first of two shards, and return the process; the answer to a text is the text."""
    context = FakeContext(cache=False, **fields)
    context.answer = lambda request: request.prompt
    context.write(answers, columns=columns, max_branches=(len(answers) + 1) // 2, seal=seal)
    ended(context)
    return context


def ended(context, shard=0):
    shard_id = StageId(RUN, 0).shard(shard)
    for position in range(context.store.shard(shard_id).count):
        run_branch(context, shard_id.branch(position))
    collect(context, [], shard_id)


def notice(*args, **fields):
    return first_shard(*args, **fields).store.run(RUN).notice


@pytest.mark.parametrize(
    "fields",
    [
        {"reduce": "table", "by": ["frm"]},
        {"reduce": "vote", "by": ["frm"]},
        {"reduce": "top", "by": ["-frm"]},
        {"reduce": "table", "by": ["firm"], "measures": ["mean:frm"]},
        {"reduce": "resolve", "by": ["frm"]},
    ],
)
def test_a_field_that_no_answer_of_the_first_shard_has_is_named_with_those_there_are(fields):
    assert notice(**fields) == (
        "the reduce: none of the first 20 answers has a field 'frm' (they have 'firm', 'stars'); "
        "did you mean 'firm'?"
    )


def test_each_reduce_of_a_list_is_named():
    several = [
        {"name": "firms", "table": "frm"},
        {"name": "stars", "top": "stars"},
        {"name": "kinds", "vote": "kind.name"},
    ]
    assert notice(reduce=several) == (
        "reduce firms: none of the first 20 answers has a field 'frm' (they have 'firm', 'stars'); "
        "did you mean 'firm'?; reduce kinds: none of the first 20 answers has a field 'kind.name' "
        "(they have 'firm', 'stars')"
    )


@pytest.mark.parametrize(
    ("answers", "fields"),
    [
        (ANSWERS, {"by": ["firm"]}),
        (ANSWERS, {"by": ["output"]}),
        (ANSWERS, {"by": ["document"]}),
        # One has it: it is optional.
        ([json.dumps({"n": 1})] * 19 + ['{"firm": null}', *ANSWERS], {"by": ["firm"]}),
        # Too few answers to tell, or none with fields: resolve alone looks at these.
        (ANSWERS[:30], {"by": ["frm"]}),
        (["a text"] * 40, {"by": ["frm"]}),
    ],
)
def test_nothing_is_said_of_a_field_that_may_be_there(answers, fields):
    assert notice(answers, reduce="table", **fields) is None


def test_a_column_of_the_input_is_no_missing_field():
    rows = [{"shop": "s"}] * len(ANSWERS)
    assert notice(columns=rows, reduce="table", by=["shop"]) is None


def test_a_job_that_goes_by_no_field_reads_no_answer(monkeypatch):
    read = []
    monkeypatch.setattr(missing_fields, "shard_branches", lambda *_: read.append(1) or iter(()))
    schema = {"type": "object", "properties": {"firm": {"type": "string"}}}
    for fields in (
        {"reduce": "none"},
        {"reduce": "concat"},
        {"reduce": "vote"},
        {"reduce": "table", "by": ["firm"], "schema": schema},
        {"reduce": "vote", "choices": ["a", "b"]},
    ):
        context = FakeContext(cache=False, **fields)
        context.write(["a", "b"])
        missing_fields.note_missing_fields(context, StageId(RUN, 0).shard(0))
        assert not read, fields


def test_a_retry_whose_answers_have_the_field_takes_the_notice_back():
    context = first_shard(reduce="table", by=["frm"], seal=True)
    assert context.store.run(RUN).notice is not None
    ended(context, shard=1)
    context.store.end_run(RUN, RunStatus.FAILED, ended_at=2.0)
    shard_id = StageId(RUN, 0).shard(0)
    missing_fields.note_missing_fields(context, shard_id)
    assert "frm" in context.store.run(RUN).notice, "what has ended stays as it is"
    context.store.reopen_run(RUN, retry=frozenset({ErrorKind.TIMEOUT}))
    outcomes = context.store.outcomes(shard_id)
    context.store.reopen_shard(shard_id, kept={}, dropped=[], checkpoints={}, regrouped=[])
    context.answer = lambda _request: json.dumps({"frm": 1})
    ended(context)
    assert len(outcomes) == 20
    assert context.store.run(RUN).notice is None
