"""What a job has of the documents that a model has split, and what it says of them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fanout.cli.session import Faults
from fanout.core.records import Chunk, ErrorKind, Outcome
from fanout.core.spec import make_spec
from fanout.runs.planned import PlannedDocuments, plan_spec

CANARY = "Patient Jane Roe, HIV positive"
SPEC = make_spec(model="fake", prompt="{title} {input}", split="model")


def planned(outcomes, spec=SPEC, text=CANARY):
    chunks = [
        Chunk(text=text, document=f"{at}.txt", document_index=at, position=0, start=0,
              end=len(text))
        for at in range(len(outcomes))
    ]  # fmt: skip
    found = {at: one for at, one in enumerate(outcomes) if one is not None}
    store = SimpleNamespace(
        stage=lambda _id: SimpleNamespace(shards=1),
        shard=lambda _id: SimpleNamespace(chunks=chunks, first_chunk=0),
        outcomes=lambda _id: found,
    )
    return PlannedDocuments(store, "r-plan", spec)


def test_notices_say_how_many_texts_were_not_split_and_nothing_of_them():
    failed = [
        Outcome(index=at, kind=kind, message=f"part 1 ({CANARY!r}): its first_words")
        for at, kind in enumerate([ErrorKind.INVALID_OUTPUT, ErrorKind.INVALID_OUTPUT,
                                   ErrorKind.TIMEOUT])
    ]  # fmt: skip
    documents = planned([*failed, None])
    assert [len(one.parts) for one in documents] == [1] * 4
    (text,) = [one.text for one in documents.notices() if one.is_warning]
    assert CANARY not in text
    assert text.startswith(
        "the model did not split 4 texts, which are split as markdown: 2 invalid_output, "
        "1 timeout, 1 not asked (`fanout errors r-plan`"
    )


def test_only_what_the_model_has_split_is_told_as_such():
    failed = Outcome(index=0, kind=ErrorKind.INVALID_OUTPUT, message="no")
    quotes = [
        {"title": "a", "first_words": "Patient Jane", "last_words": "Roe"},
        {"title": "b", "first_words": "HIV", "last_words": "positive"},
    ]
    for outcomes, told in [
        ([failed, failed], None),
        ([failed, Outcome(index=1, output=json.dumps({"parts": quotes}).encode())],
         "a model split 1 document into 2 parts"),
    ]:  # fmt: skip
        documents = planned(outcomes)
        list(documents)
        texts = [one.text for one in documents.notices() if one.text.startswith("a model split")]
        assert texts == ([told] if told else [])


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("Budget" + " and so on" * 100, "99.2% of the text is in no part"),
        ("Budget" + " and so on" * 1_000, "more than 99.9% of the text is in no part"),
        ("Budget and", "33.3% of the text is in no part"),
    ],
)
def test_notices_say_how_much_of_the_text_is_in_no_part(text, begin):
    part = {"title": "a", "first_words": "Budget", "last_words": "Budget"}
    answer = Outcome(index=0, output=json.dumps({"parts": [part]}).encode())
    documents = planned([answer], text=text)
    list(documents)
    assert [one.text for one in documents.notices()][1].startswith(begin)


def test_splitting_calls_have_a_limit_of_their_own_and_the_temperature_of_the_same_model():
    job = {"split": "model", "temperature": 0, "max_tokens": 5, "split_max_tokens": 900}
    for split_model, temperature in [(None, 0), ("fake", 0), ("fake?seed=4", None)]:
        given = make_spec(model="fake", prompt="{title} {input}", split_model=split_model, **job)
        own = plan_spec(given, deadline_s=None)
        assert (own.temperature, own.max_tokens) == (temperature, 900)


def test_documents_without_a_subtask_are_told_once(capsys):
    spec = make_spec(model="fake", prompt="{subtask} {input}", split="model")
    failed = [Outcome(index=at, kind=ErrorKind.INVALID_OUTPUT, message="no") for at in (0, 1)]
    documents = planned(failed, spec)
    faults = Faults(SimpleNamespace(note=print, warn=print))
    for one in documents:
        assert one.error == "the model did not split it (invalid_output: no)"
        faults(one.name, one.error)
    faults("c.txt", "it is too large")
    for notice in documents.notices():
        faults.notice(notice)
    faults.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "skipping c.txt: it is too large"
    assert second.startswith(
        "the model did not split 2 texts, whose branches fail as bad_request: 2 inv"
    )
