"""``{context}`` in prompts, and the templates of what passages are looked for."""

from __future__ import annotations

import pytest

from fanout.core.errors import SpecError
from fanout.core.records import Document, StepOutcome
from fanout.core.retrieval import is_retrieval_function
from fanout.core.spec import make_spec
from fanout.inputs.intake import checked_documents
from fanout.inputs.retrieval_prompts import step_prompts_of
from fanout.inputs.step_prompts import context_of

ROWS = [Document(name="a", index=0, text="x", columns={"topic": "leave"})]
STEP = {"name": "a", "prompt": "{input}"}


def check(**fields):
    return list(checked_documents(make_spec(model="fake", **fields), iter(["x"])))


def check_rows(**fields):
    return list(
        checked_documents(make_spec(model="fake", **fields), [{"text": "x", "topic": "leave"}])
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "{context} {input}", "retrieve": "kb"},
        {"prompt": "{fanout.context} {input}", "retrieve": "a.b:c", "query": "{input} {document}"},
        {"aspects": {"a": "{context} {input}", "b": "{input}"}, "retrieve": "kb"},
        {"retrieve": "kb", "steps": [STEP, {"name": "b", "prompt": "{context}", "query": "{a}"}]},
        {"steps": [STEP, {"name": "b", "prompt": "{context}", "retrieve": "kb", "top_k": 2}]},
        {"retrieve": "kb", "steps": [{**STEP, "prompt": "{input} {context}"},
                                     {"name": "j", "judge": "a", "criteria": "c"}]},
    ],
)  # fmt: skip
def test_prompts_with_passages(fields):
    assert check(**fields)


def test_a_query_may_have_columns_and_a_column_may_be_called_context():
    assert check_rows(prompt="{context} {input}", retrieve="kb", query="{topic} {input}")
    rows = [{"text": "x", "context": "c"}]
    spec = make_spec(model="fake", prompt="{input} {context}")
    assert list(checked_documents(spec, rows))
    spec = make_spec(model="fake", prompt="{input} {context}", retrieve="kb")
    with pytest.raises(SpecError, match=r"\{context\} is not clear"):
        list(checked_documents(spec, rows))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "{context} {input}"}, r"prompt: there is no \{context\}"),
        ({"prompt": "{input}", "retrieve": "kb"}, r"retrieve: has no effect: no prompt has \{context"),
        ({"prompt": "{context}", "retrieve": "kb"}, r"must contain \{input\}"),
        ({"prompt": "{input} {context}", "retrieve": "kb", "query": "{who}"}, r"query: there is no"),
        ({"prompt": "{input} {context}", "retrieve": "kb", "query": "{context}"}, r"query: there is no"),
        ({"prompt": "{input} {context}", "retrieve": "kb", "query": "{"}, r"query: the brace"),
        ({"prompt": "{input}", "query": " "}, r"query: must not be empty"),
        ({"prompt": "{input}", "retrieve": ""}, r"retrieve: "),
        ({"prompt": "{input}", "retrieve": "kb", "top_k": 0}, r"top_k: "),
        ({"steps": [{**STEP, "retrieve": "kb"}]}, r"steps.a.retrieve: has no effect: .* no \{context\}"),
        ({"steps": [{"name": "b", "prompt": "{context} {input}", "retrieve": "kb"},
                    {"name": "c", "prompt": "{context}"}]}, r"steps.c.prompt: there is no \{context\}"),
        ({"steps": [{**STEP, "top_k": 3}]}, r"step 'a': top_k: has no effect without retrieve"),
        ({"steps": [STEP, {"name": "b", "function": "a.b:c", "retrieve": "kb"}]},
         r"retrieve: has no effect on a function"),
        ({"retrieve": "kb", "steps": [{"name": "b", "prompt": "{context} {input}", "query": "{later}"},
                                      {"name": "later", "prompt": "{b}"}]},
         r"steps.b.query: \{later\} is the answer of a step that does not come before"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_field(fields, words):
    with pytest.raises(SpecError, match=words):
        check(**fields)


def test_a_step_looks_for_what_earlier_steps_have_answered():
    spec = make_spec(
        model="fake",
        retrieve="kb",
        steps=[STEP, {"name": "b", "prompt": "{context} {a}", "query": "{input}: {a}"}],
    )
    prompts = step_prompts_of(spec)
    answers = {"a": StepOutcome(name="a", output="leave")}
    assert prompts.query(spec.steps[1], {"input": "q"}, {}, answers) == "q: leave"
    values = {"input": "q", context_of("b"): "[p1] text"}
    made = prompts.render(spec.steps[1], values, {}, answers)
    assert made == "[p1] text leave"


def test_a_step_wins_over_its_job():
    spec = make_spec(
        model="fake", retrieve="kb", top_k=9, query="{input}!",
        steps=[STEP, {"name": "b", "prompt": "{context}", "retrieve": "a.b:c", "top_k": 2, "query": "{a}"}],
    )  # fmt: skip
    assert spec.retrieval(spec.steps[0]) == ("kb", 9, "{input}!")
    assert spec.retrieval(spec.steps[1]) == ("a.b:c", 2, "{a}")
    assert spec.retrieval_sources == ("kb", "a.b:c")
    assert spec.retrieval_functions == ("a.b:c",)


@pytest.mark.parametrize(
    ("source", "is_function"),
    [
        ("acme.search:find", True), ("callable:find-1", True), ("acme:Find", True), ("docs", False),
        ("run:latest", False), ("run:abc", False), ("s3://bucket/docs", False), ("a/b.csv", False),
        ("docs/*.md", False), ("sqlite:///a.db?table=x", False), ("acme.search:", False),
    ],
)  # fmt: skip
def test_functions_are_told_from_files(source, is_function):
    assert is_retrieval_function(source) is is_function
