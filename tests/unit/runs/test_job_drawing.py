from __future__ import annotations

import pytest

from fanout.core.spec import make_spec
from fanout.runs.job_drawing import job_drawing

STEPS = [
    {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"]},
    {"name": "facts", "prompt": "{input}", "model": "fake?seed=2", "when": {"kind": "bill"},
     "schema": {"type": "object", "properties": {"term": {}, "days": {}}}},
    {"name": "due", "function": "acme.dates:due", "when": {"kind": ["bill", "letter"], "facts.days": 3}},
    {"name": "note", "prompt": "{facts.term}"},
    {"name": "check", "judge": "note", "criteria": "short", "max_rounds": 2},
]  # fmt: skip

SUMS = {"name": "sums", "llm": "{input}"}


def test_the_passages_of_steps_are_drawn():
    steps = [
        {"name": "topic", "prompt": "{input}"},
        {"name": "rules", "prompt": "{context} {topic}", "query": "{topic}", "retrieve": "rules/",
         "top_k": 1},
        {"name": "end", "prompt": "{context} {rules}", "when": {"topic": "x"}},
    ]  # fmt: skip
    lines = job_drawing(make_spec(model="fake", steps=steps, retrieve="docs/"))
    assert [" ".join(line.split()) for line in lines if "│ " in line][1:] == [
        "│ 1. topic fake a text",
        "│ 2. rules fake a text with 1 passage of rules/ for {topic}",
        "│ 3. end fake a text with 5 passages of docs/ for {input}, only if topic is x",
    ]


def test_steps_are_drawn_with_their_models_answers_and_conditions():
    spec = make_spec(model="fake", inputs=["a/*.txt"], steps=STEPS, output="note",
                     aggregate_prompt="{input}", group_by="document", split="tokens")  # fmt: skip
    assert [" ".join(line.split()) for line in job_drawing(spec)] == [
        "documents: a/*.txt",
        "│ chunks by tokens, 1,000 tokens at most",
        "▼",
        "map: 1 branch for each chunk",
        "│ 1. kind fake one of bill, letter",
        "│ 2. facts fake?seed=2 JSON with term, days only if kind is bill",
        "│ 3. due acme.dates:due a value only if kind is bill or letter and facts.days is 3",
        "│ 4. note fake a text",
        "│ 5. check fake judges note, which is asked again: 2 rounds at most",
        "│ the output is the answer of note",
        "│ what no round of a judge passes is kept, and marked",
        "▼",
        "reduce: llm, a tree of calls, for each document",
    ]


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ({}, []),
        (
            {"sources": True},
            [
                ("it cites the ids of its sources; a citation or quote that is not real is asked for "
                "once more, then marked")
            ],
        ),
        (
            {"sources": True, "max_reasks": 0, "min_group_success": 0.8, "group_by": "product"},
            ["it cites the ids of its sources; a citation or quote that is not real is marked",
             "a group with answers of less than 0.8 of its branches gets no aggregate"],
        ),
        (
            {"min_group_success": 0.5},
            ["a run with answers of less than 0.5 of its branches gets no aggregate"],
        ),
    ],
)  # fmt: skip
def test_what_an_aggregate_must_be_like_is_drawn_below_it(fields, terms):
    lines = job_drawing(
        make_spec(model="fake", prompt="{input}", aggregate_prompt="{input}", **fields)
    )
    at = next(at for at, line in enumerate(lines) if line.startswith("reduce:"))
    assert lines[at + 1 :] == [f"   {term}" for term in terms]


@pytest.mark.parametrize(
    ("reduces", "subject"),
    [
        ([SUMS], "it cites the ids of its"),
        ([SUMS, {"name": "firms", "resolve": "output"}, {"name": "all", "vote": {}}],
         "sums cites the ids of its"),
        ([SUMS, {"name": "all", "vote": {}}, {**SUMS, "name": "rest"}], "sums, rest cite the ids of their"),
    ],
)  # fmt: skip
def test_below_a_list_stands_which_reduces_cite(reduces, subject):
    lines = job_drawing(make_spec(model="fake", prompt="{input}", sources=True, reduce=reduces))
    assert lines[-1].startswith(f"   {subject} sources; ")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"prompt": "{input}"}, "│  asks fake for a text"),
        ({"prompt": "{input}", "choices": "a,b"}, "│  asks fake for one of a, b"),
        ({"prompt": "{input}", "samples": 3}, "map: 3 branches for each chunk (3 samples)"),
        (
            {"aspects": {"a": "{input}", "b": "{input}"}, "models": ["fake", "fake?seed=2"]},
            "map: 4 branches for each chunk (2 aspects x 2 models)",
        ),
        (
            {"prompt": "{input}", "samples": 9, "certainty": 0.9},
            "│  again, 9 times at most, until a majority is 0.9 certain",
        ),
        ({"prompt": "{input}", "reduce": "vote", "by": "x"}, "reduce: vote by x"),
        ({"prompt": "{input}", "reduce": "resolve", "by": "x", "group_by": "team", "max_pairs": 9},
         "reduce: resolve by x, fake says which of up to 9 pairs are the same, for each team"),
        ({"prompt": "{context} {input}", "retrieve": "docs/", "top_k": 3},
         "│  finds 3 passages of docs/ for {input}"),
        ({"prompt": "{context} {input}", "retrieve": "own.search:find", "query": "of {document}"},
         "│  finds 5 passages of own.search:find for of {document}"),
        ({"steps": STEPS, "fallback": ["fake?seed=7"]}, "│  where a model fails: fake?seed=7"),
        ({"prompt": "{input}", "inputs": ["https://ann:s3cretpassword@host/a.pdf"]},
         "documents: https://ann:[key]@host/a.pdf"),
        ({"prompt": "{input}", "split": "model"},
         "│  fake splits each into parts, and fanout checks them"),
        ({"steps": STEPS, "on_rejected": "fail"}, "│  what no round of a judge passes is a failure"),
        ({"prompt": "{input}", "choices": [f"label {n}" for n in range(9)]},
         "│  asks fake for one of label 0, label 1, label 2, label 3, label 4, label 5 and 3 more"),
    ],
)  # fmt: skip
def test_a_stage_says_what_it_does(fields, line):
    fields = fields if "models" in fields else {"model": "fake", **fields}
    assert line in job_drawing(make_spec(**fields))


def test_the_fold_of_an_aggregate_is_drawn():
    spec = make_spec(model="fake", prompt="{input}", aggregate_prompt="{input}", fold="refine")
    assert job_drawing(spec)[-1] == "reduce: llm, calls in turn, each refines the answer so far"
    spec = make_spec(model="fake", prompt="{input}", aggregate_prompt="{input}", fold="cluster")
    assert job_drawing(spec)[-1].endswith("the first of which see answers that are alike")
    embed = {"fold": "cluster", "embed": "own.words:vectors"}
    spec = make_spec(model="fake", prompt="{input}", aggregate_prompt="{input}", **embed)
    assert job_drawing(spec)[-1].endswith("that are alike by vectors of own.words:vectors")
    each = {"aggregate_prompt": "{input}"}
    lists = [{"name": "a", "llm": each}, {"name": "b", "llm": each, "fold": "cluster"}]
    spec = make_spec(model="fake", prompt="{input}", reduce=lists, embed="own.words:vectors")
    assert job_drawing(spec)[-2] == "reduce a: llm, a tree of calls"
    assert job_drawing(spec)[-1].endswith("that are alike by vectors of own.words:vectors")
