from __future__ import annotations

import pytest

from fanout.errors import SpecError
from fanout.runs import branch_ref
from fanout.spec import load_job, make_spec


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "p"}, ["model: is required"]),
        ({"model": "fake"}, ["prompt: give either prompt or aspects"]),
        ({"model": "fake", "prompt": "p", "aspects": {"a": "p"}}, ["not both"]),
        ({"model": "fake", "promt": "p"}, ["promt:", "no such field", "did you mean prompt?"]),
        ({"model": "fake", "prompt": "p", "samples": 0}, ["samples:", "greater", "(got 0)"]),
        (
            {"model": "fake", "prompt": "p", "reduce": "sum"},
            ["reduce:", "'concat'", "'vote'", "(got 'sum')"],
        ),
        ({"model": "fake", "prompt": "p", "reduce": "llm"}, ["aggregate_prompt:"]),
        (
            {"model": "fake", "prompt": "p", "reduce": "vote", "aggregate_prompt": "a"},
            ["reduce: 'vote' does not use an aggregate prompt"],
        ),
        ({"model": "fake", "prompt": "p", "group_by": "document"}, ["group_by: needs a reduce"]),
        (
            {"model": "fake", "prompt": "p", "chunk_tokens": 10, "chunk_overlap_tokens": 10},
            ["chunk_overlap_tokens: 10 must be smaller"],
        ),
        (
            {"model": "fake", "prompt": "p", "retries": {"max_attempt": 2}},
            ["retries.max_attempt:", "did you mean max_attempts?"],
        ),
        ({"model": "fake", "prompt": "p", "min_success": 90}, ["min_success:", "(got 90)"]),
        ({"model": "fake", "prompt": "p", "temperature": "hot"}, ["temperature:", "(got 'hot')"]),
    ],
)
def test_a_wrong_field_names_itself_its_value_and_what_is_allowed(fields, words):
    with pytest.raises(SpecError) as caught:
        make_spec(**fields)
    for word in words:
        assert word in str(caught.value)


def test_the_names_of_the_library_and_of_the_job_file_are_the_same_fields():
    spec = make_spec(llm="fake", branch_prompt="{input}", aggregate="all: {input}")
    assert (spec.model, spec.prompt, spec.aggregate_prompt) == ("fake", "{input}", "all: {input}")


@pytest.mark.parametrize(
    ("fields", "reduction"),
    [({}, "none"), ({"aggregate_prompt": "{input}"}, "llm"), ({"reduce": "vote"}, "vote")],
)
def test_the_reduce_follows_from_the_prompts(fields, reduction):
    assert make_spec(model="fake", prompt="{input}", **fields).reduction == reduction


def test_a_spec_survives_its_json():
    spec = make_spec(
        model="fake", aspects={"b": "{input}", "a": "x {input}"}, samples=2, stop=["."]
    )
    again = type(spec).model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.aspect_names == ("b", "a"), "aspects keep their order"
    assert again.branches_per_chunk == 4


def test_branches_are_chunks_by_aspects_by_samples():
    refs = [branch_ref(i, ("a", "b"), 2) for i in range(8)]
    order = [(ref.chunk, ref.aspect, ref.sample) for ref in refs]
    assert order == [
        (chunk, aspect, sample) for chunk in (0, 1) for aspect in ("a", "b") for sample in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["not valid YAML", "line"]),
        ("- a\n- b", ["a mapping of fields, not list"]),
        ("", ["not NoneType"]),
    ],
)
def test_a_job_file_that_is_not_one_says_so(tmp_path, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_job(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_job_file_says_so(tmp_path):
    with pytest.raises(SpecError, match=r"cannot read the job file .*nope\.yaml"):
        load_job(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("prompt", {"prompt": "\udcff {input}"}),
        ("aspects", {"prompt": None, "aspects": {"a": "\udcff {input}"}}),
        ("inputs", {"inputs": ["\udcff.txt"]}),
    ],
)
def test_a_text_that_is_not_utf8_is_refused(field, fields):
    with pytest.raises(SpecError, match=f"^{field}: holds bytes that are not UTF-8"):
        make_spec(**{"model": "fake", "prompt": "{input}", **fields})
