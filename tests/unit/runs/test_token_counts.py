"""Texts are cut by what the fleet has learnt of a model, and the same run always in the same way."""

from __future__ import annotations

import pytest

from fanout.client.arguments import checked_spec
from fanout.core.errors import SpecError
from fanout.core.records import Document
from fanout.core.spec import make_spec, stored_spec
from fanout.policy.token_ratio import TokenSums, bytes_by_kind
from fanout.runs.token_counts import packing_ratio, reduce_room, require_reduce_room, with_tokenizer
from tests.fakes import RUN

TEXT = "Some words of a document. " * 30
SPLIT = {"model": "m:f", "prompt": "{input}", "split": "tokens"}
TREE = {"model": "m:f", "prompt": "{input}", "aggregate_prompt": "{input}", "context_tokens": 2_000}


def learn(store, bytes_per_token, model="m:f"):
    kinds = bytes_by_kind([TEXT])
    call = TokenSums.of_call(kinds, round(len(TEXT) / bytes_per_token))
    store.add_token_sums(model, TokenSums.total([call] * 200))


def documents(*texts):
    return iter([Document(name=f"d{at}", index=at, text=text) for at, text in enumerate(texts)])


def found(store, fields=SPLIT, *texts):
    given = texts or (TEXT, "more")
    spec, some = with_tokenizer(make_spec(**fields), documents(*given), store)
    assert [one.text for one in some] == [*given]
    return spec.tokenizer


def test_chunks_are_cut_by_what_was_learnt_and_keep_their_boundaries(store):
    assert found(store) is None
    learn(store, 3.5)
    assert found(store) is None, "near enough: the answers in the cache stay"
    learn(store, 1.0)
    cut = found(store)
    assert cut.startswith("bytes/1.")
    learn(store, 1.0)
    assert found(store) == cut, "a second run has the same chunks"
    assert found(store, {**SPLIT, "model": "other:f"}) is None
    assert found(store, {**SPLIT, "tokenizer": "bytes/3"}) == "bytes/3"
    assert found(store, {**SPLIT, "split": "lines"}) is None
    assert found(None) is None


def test_prompts_are_laid_out_by_what_was_learnt(store):
    asked = {"model": "openai/gpt-5-mini", "aspects": {"a": "A {input}", "b": "B {input}"}}
    learn(store, 1.0, model="openai/gpt-5-mini")
    assert found(store, asked).startswith("bytes/1.")
    assert found(store, {**asked, "model": "fake"}) is None, "it caches no prompts"


def test_a_document_that_cannot_be_used_shows_nothing(store):
    learn(store, 1.0)
    broken = Document(name="b", index=0, error="broken")
    spec, some = with_tokenizer(make_spec(**SPLIT), iter([broken, *documents(TEXT)]), store)
    assert spec.tokenizer.startswith("bytes/1")
    assert len(list(some)) == 2


def test_a_run_stores_what_it_was_cut_by(store):
    learn(store, 1.0)
    spec, _ = with_tokenizer(make_spec(**SPLIT), documents(TEXT), store)
    assert spec.tokenizer is not None
    assert stored_spec(spec.model_dump_json()).tokenizer == spec.tokenizer


def test_the_reduce_packs_by_one_ratio_for_all_its_stages(store):
    store.create_run(RUN, spec="{}", created_at=1.0)
    learn(store, 1.0)
    spec = make_spec(**TREE)
    assert packing_ratio(store, RUN, spec, spec.reductions[0], [TEXT]) == pytest.approx(
        1.0, abs=0.1
    )
    learn(store, 9.0)
    assert packing_ratio(store, RUN, spec, spec.reductions[0], [TEXT]) == pytest.approx(
        1.0, abs=0.1
    )
    own = make_spec(**TREE, tokenizer="bytes/3")
    assert packing_ratio(store, RUN, own, own.reductions[0], [TEXT]) == 3


def test_the_room_of_a_prompt_follows_the_ratio():
    spec = make_spec(**TREE)
    (reduce,) = spec.reductions
    large = reduce_room(spec, reduce, 4.0)
    assert reduce_room(spec, reduce, 1.0) == pytest.approx(large / 4, rel=0.02)


WHOLE = {"model": "m:f", "prompt": "{input}", "context_tokens": 600}
SUMMED = {**WHOLE, "aggregate_prompt": "SUM {input}"}
JUDGED = {**WHOLE, "criteria": "the shorter one", "aggregate_max_tokens": 500}


@pytest.mark.parametrize(
    "job",
    [
        {**SUMMED, "context_tokens": 256, "aggregate_max_tokens": 250},
        {**SUMMED, "context_tokens": 300, "aggregate_max_tokens": 250, "fold": "refine"},
        {**SUMMED, "sources": True},
        {**SUMMED, "aggregate_prompt": "x" * 2_000 + "{input}", "aggregate_max_tokens": 50},
        {**JUDGED, "reduce": "pairwise"},
        {**JUDGED, "reduce": "best", "samples": 2},
        {**WHOLE, "reduce": [
            {"name": "one", "reduce": "concat"},
            {"name": "two", "reduce": "llm", "aggregate_prompt": "SUM {input}", "aggregate_max_tokens": 500},
        ]},
    ],
)  # fmt: skip
def test_a_reduce_whose_prompt_has_no_room_is_refused_before_anything_is_paid_for(job):
    with pytest.raises(SpecError, match="leaves no room for") as caught:
        checked_spec(job, has_documents=True)
    assert caught.value.field == "context_tokens"


def test_a_reduce_whose_prompt_has_room_is_not_refused():
    for job in (SUMMED, {**JUDGED, "reduce": "pairwise"}, {**SUMMED, "sources": True}):
        assert (
            checked_spec({**job, "context_tokens": 2_000}, has_documents=True).context_tokens
            == 2_000
        )
    spec = checked_spec(
        {**SUMMED, "aggregate_max_tokens": 50, "tokenizer": "bytes/2"}, has_documents=True
    )
    assert spec.aggregate_max_tokens == 50


def test_a_reduce_that_does_not_fit_by_what_was_learnt_is_refused_before_anything_is_paid_for(
    store,
):
    spec = make_spec(
        **{**SUMMED, "aggregate_prompt": f"{TEXT[:700]} {{input}}", "aggregate_max_tokens": 50}
    )
    require_reduce_room(spec, store)
    learn(store, 1.0)
    with pytest.raises(SpecError, match="leaves no room for answers besides the prompt"):
        require_reduce_room(spec, store)
    require_reduce_room(spec)


def test_an_estimate_does_not_end_the_reduce_of_a_run_that_has_begun(store):
    store.create_run(RUN, spec="{}", created_at=1.0)
    spec = make_spec(
        **{**SUMMED, "aggregate_prompt": f"{TEXT[:700]} {{input}}", "aggregate_max_tokens": 50}
    )
    learn(store, 1.0)
    ratio = packing_ratio(store, RUN, spec, spec.reductions[0], [TEXT])
    assert reduce_room(spec, spec.reductions[0], ratio) > 0
