"""The fold map_rerank: the answer with the highest score is the aggregate."""

from __future__ import annotations

import asyncio
import json

import pytest

from fanout.aggregators import Fields, Item, aggregate_groups, make_accumulator
from fanout.core.answer_shape import shape_of
from fanout.core.errors import SpecError
from fanout.core.own_schemas import SCORED_SCHEMA
from fanout.core.spec import make_spec, stored_spec
from fanout.llm.base import LLMRequest, Turn
from fanout.llm.callables import CallableLLM
from tests.fakes import RUN, FakeContext

JOB = {"model": "fake", "prompt": "{input}", "fold": "map_rerank"}


def best(outputs, **fields):
    items = [Item(index=n, document=f"d{n}", output=output) for n, output in enumerate(outputs)]
    return aggregate_groups("map_rerank", items, Fields(**fields))[""]


def scored(answer, score):
    return json.dumps({"answer": answer, "score": score})


def test_the_answer_with_the_highest_score_is_the_aggregate():
    made = best([scored("a", 5), scored("b", 90), None, scored("c", 40)])
    assert (made.value, made.succeeded, made.failed) == ("b", 3, 1)
    assert made.notes == ["the best of 3 answers is of d1: score 90", "1 failed and left out: d2"]


def test_of_equal_scores_the_first_is_taken_and_the_others_are_counted():
    made = best([scored("a", 5), scored("b", 9), scored("c", 9), scored("d", 9)])
    assert made.value == "b"
    assert "3 answers have this score: the first in the input is taken" in made.notes


def test_parts_of_the_input_may_be_aggregated_apart():
    items = [Item(index=n, document=f"d{n}", output=scored(f"a{n}", n % 4)) for n in range(12)]
    whole = aggregate_groups("map_rerank", items)[""]
    one, other = make_accumulator("map_rerank"), make_accumulator("map_rerank")
    for item in items:
        (one if item.index % 3 else other).add(item)
    one.merge(other)
    assert one.result() == whole
    assert (whole.value, whole.succeeded) == ("a3", 12)


def test_answers_of_other_shapes_are_taken_whole():
    assert best(["Score: 3", "Score: 8 as it says"]).value == "Score: 8 as it says"
    near = [json.dumps({"km": km, "town": town}) for km, town in ((9, "a"), (2, "b"))]
    assert best(near, by=("-km",), schema={"type": "object"}).value == {"km": 2, "town": "b"}


def test_without_any_score_there_is_no_best_answer():
    made = best(["who knows", None])
    assert made.value is None
    assert made.notes[0].startswith("1 answer has no number: left out")


def test_a_job_gets_a_schema_with_a_score_unless_it_says_what_answers_are():
    spec = make_spec(**JOB)
    assert list((spec.answer_schema or {})["properties"]) == ["answer", "score"]
    assert stored_spec(spec.model_dump_json()) == spec
    assert make_spec(**JOB, output_format="json").schema is None
    own = {"type": "object", "properties": {"score": {"type": "number"}}}
    assert (make_spec(**JOB, schema=own).answer_schema or {})["properties"].keys() == {"score"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"aggregate_prompt": "{input}"}, "fold: 'map_rerank' takes the answer"),
        ({"reduce": "rank"}, "fold: 'map_rerank' takes the answer"),
        ({"choices": "a,b"}, "choices: are labels, which have no score"),
        (
            {"schema": {"type": "object", "properties": {"km": {"type": "number"}}}},
            r"by: fold 'map_rerank' needs a score: name its field \(the schema has km\)",
        ),
        ({"output_format": "json", "by": "a,b"}, "by: reduce 'map_rerank' goes by one field"),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(SpecError, match=words):
        make_spec(**{**JOB, **fields})


def test_a_run_ends_with_the_best_answer_of_each_group_and_no_further_call():
    context = FakeContext(fold="map_rerank", group_by="document", fence=False)
    context.answer = lambda request: scored(request.prompt, len(request.prompt))
    context.write(["a", "bbb", "cc"])
    context.process()
    assert context.store.run(RUN).has_ended
    made = context.result.aggregates
    assert {group: one.value for group, one in made.items()} == {"d0": "a", "d1": "bbb", "d2": "cc"}
    assert context.llm.calls == 3


def test_a_function_is_told_in_its_first_prompt_which_shape_its_answer_must_have():
    prompts = []

    def wrapped(prompt):
        prompts.append(prompt)
        return "text"

    llm = CallableLLM(wrapped)
    asyncio.run(llm.complete(LLMRequest(prompt="p", shape=shape_of(SCORED_SCHEMA))))
    asyncio.run(llm.aclose())
    assert prompts[0].startswith("p\n\nAnswer with one JSON value")
    assert '"score"' in prompts[0]


def test_a_function_finds_a_schema_of_its_user_in_no_first_prompt():
    shape = shape_of({"type": "string"})
    assert LLMRequest(prompt="p", shape=shape).function_prompt == "p"
    own = LLMRequest(prompt="p", shape=shape_of(SCORED_SCHEMA), turns=(Turn("x", "no"),))
    assert own.function_prompt.count("JSON Schema") == 1
