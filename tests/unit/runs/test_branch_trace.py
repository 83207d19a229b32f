from __future__ import annotations

import json

import pytest

from fanout.aggregators import Aggregate
from fanout.cli.show import _lines
from fanout.core.errors import StoredDataError
from fanout.core.passage_uses import PassageUse
from fanout.core.records import Chunk, ErrorKind, Outcome, Shard, StepOutcome, Usage
from fanout.core.spec import make_spec
from fanout.runs.branch_trace import trace_of
from fanout.runs.result_values import ResultValues
from fanout.runs.status import StoredResult

CHUNK = Chunk(text="TEXT", document="d.csv:3", document_index=0, end=4, columns={"product": "P"},
              pages=[2, 3])  # fmt: skip
SHARD = Shard(first=0, count=2, first_chunk=0, chunks=[CHUNK])
ONCE = Usage(calls=1, input_tokens=9, output_tokens=2, cost_usd=0.5)
FACTS = {"type": "object", "properties": {"term": {"type": "string"}}}
STEPS = [
    {"name": "facts", "prompt": "Facts: {input}", "schema": FACTS, "system": "S"},
    {"name": "note", "prompt": "{facts.term} of {product}", "model": "fake?seed=2"},
    {"name": "check", "judge": "note", "criteria": "short"},
    {"name": "size", "function": "package.module:size"},
]


def verdict(*, passes):
    found = {"reasons": "r", "pass": passes, "score": 3, "feedback": "shorter"}
    return StepOutcome(name="check", output=json.dumps(found), is_json=True, attempts=1, usage=ONCE)


@pytest.mark.parametrize(
    ("job", "aggregate", "line"),
    [
        (
            {"reduce": "best", "samples": 2},
            {"d": {"index": 0, "wins": 1, "comparisons": 1}},
            "  best: yes · wins 1 of 1 comparison",
        ),
        ({"reduce": "best", "samples": 2}, {"d": {"index": 1, "wins": 2}}, "  best: no"),
        ({"reduce": "best", "samples": 2}, None, None),
        ({"reduce": "pairwise"}, [{"rank": 1, "index": 1}, {"rank": 2, "index": 0}], "  rank 2"),
        ({"reduce": "pairwise", "k": 1}, [{"rank": 1, "index": 1}], None),
        (
            {"reduce": "pairwise", "group_by": "product"},
            {"P": [{"rank": 1, "index": 0}]},
            "  rank 1",
        ),
    ],
)
def test_what_comparisons_have_found_is_shown(job, aggregate, line):
    spec = make_spec(model="fake", prompt="{input}", criteria="c", **job)
    outcome = Outcome(index=0, output="x", attempts=1, usage=ONCE)
    values = aggregate if "group_by" in job else {} if aggregate is None else {"": aggregate}
    made = {group: Aggregate(value=value) for group, value in values.items()}
    found = ResultValues(StoredResult(aggregates=made))
    shown = list(_lines("r", trace_of(spec, SHARD, outcome, values=found)))
    assert (shown[2] or None) == line


def test_each_prompt_of_a_branch_with_steps_is_as_it_was():
    spec = make_spec(model="fake", system="J", steps=STEPS)
    note = StepOutcome(name="note", output="N1", attempts=1, usage=ONCE, model="fake?seed=2")
    steps = (
        StepOutcome(name="facts", output='{"term":"t"}', is_json=True, attempts=1, usage=ONCE),
        note,
        verdict(passes=False),
        StepOutcome(name="note", output="N2", round=2, saved=ONCE),
        verdict(passes=True),
        StepOutcome(name="size", kind=ErrorKind.INTERNAL, message="ValueError: no"),
    )
    outcome = Outcome(index=0, kind=ErrorKind.INTERNAL, message="step size: no", steps=steps)
    trace = trace_of(spec, SHARD, outcome)
    assert trace.branch.text == "TEXT"
    facts, first, judged, second, _, size = trace.calls
    assert (facts.prompt, facts.system, facts.answer) == ("Facts: TEXT", "S", {"term": "t"})
    assert (first.prompt, first.system, first.model) == ("t of P", "J", "fake?seed=2")
    assert judged.judges == "note"
    assert "N1" in judged.prompt
    assert "t of P" in judged.prompt
    assert (second.prompt, second.round, second.cached) == ("t of P", 2, True)
    [(answer, reply)] = second.turns
    assert answer == "N1"
    assert "shorter" in reply
    assert (size.function, size.model, size.prompt) == ("package.module:size", None, None)
    assert size.kind is ErrorKind.INTERNAL
    assert json.loads(json.dumps(size.to_dict()))["kind"] == "internal"
    text = "\n".join(_lines("r", trace))
    assert "branch 0 of run r: d.csv:3, chunk 0, characters 0 to 4, pages 2-3" in text
    assert "failed (internal): step size: no" in text
    assert "4. step note · round 2 · fake?seed=2 · from the cache" in text
    assert '      "term": "t"' in text


@pytest.mark.parametrize(
    ("fields", "index", "prompt"),
    [
        ({"prompt": "{input} {sample}", "samples": 2}, 1, "TEXT 1"),
        ({"aspects": {"a": "A {input}", "b": "B {input} {aspect}"}}, 1, "B TEXT b"),
        ({"prompt": "{input} {gone}"}, 0, None),
        ({"aspects": {"a": "A {input}", "b": "B {input}"}, "prompt_order": "document_first"}, 1,
         "<document>\nTEXT\n</document>\n\nB [the text in <document> above]"),
    ],
)  # fmt: skip
def test_the_prompt_of_a_branch_without_steps_is_as_it_was(fields, index, prompt):
    spec = make_spec(model="fake", **fields)
    trace = trace_of(spec, SHARD, Outcome(index=index, output="O", attempts=1, usage=ONCE))
    [call] = trace.calls
    assert (call.prompt, call.answer, call.step) == (prompt, "O", None)
    assert "  answer:\n    O" in "\n".join(_lines("r", trace))


def test_answers_of_other_steps_are_refused():
    spec = make_spec(model="fake", steps=STEPS)
    outcome = Outcome(index=0, steps=(StepOutcome(name="note", output="N"),))
    with pytest.raises(StoredDataError, match="out of its order"):
        trace_of(spec, SHARD, outcome)


FOUND = (
    PassageUse(id="p1", source="leave.md", title="Parental leave", score=3.25),
    PassageUse(id="p2", source="x.md", share=0.4),
    PassageUse(id="p3", share=0.0),
)
SHOWN = """  passages:
    [p1] leave.md > Parental leave, score 3.25
    [p2] x.md, 40% of it
    [p3], no room for it"""


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize(
    ("uses", "kind", "context", "shown"),
    [
        (FOUND, None, "[passages: [p1] leave.md, [p2] x.md]", SHOWN),
        ((), None, "[no passage was found]", "  passages:\n    none was found"),
        (FOUND[2:], None, "[no passage was found]", "  passages:\n    [p3], no room for it"),
        ((), ErrorKind.TIMEOUT, "[passages]", "[passages]\n  failed:\n    timeout:"),
    ],
)
def test_passages_are_shown_as_the_prompt_had_them(uses, kind, context, shown, in_step):
    job = {"retrieve": "handbook", "prompt": "{input}: {context}"}
    ending = {"kind": kind, "output": None if kind else "O", "attempts": 1, "passages": uses}
    outcome = Outcome(index=0, **ending)
    if in_step:
        prompt = job.pop("prompt")
        steps = [{"name": "a", "prompt": "{input}"}, {"name": "b", "prompt": prompt}]
        job["steps"] = steps
        done = (StepOutcome(name="a", output="A"), StepOutcome(name="b", **ending))
        outcome = Outcome(index=0, kind=kind, output=ending["output"], attempts=2, steps=done)
    trace = trace_of(make_spec(model="fake", **job), SHARD, outcome)
    assert trace.calls[-1].prompt == f"TEXT: {context}"
    assert all(call.passages is None for call in trace.calls[:-1])
    built = json.loads(json.dumps(trace.calls[-1].to_dict()))["passages"]
    assert [one["id"] for one in built or []] == [one.id for one in uses]
    assert (built is None) is (kind is not None)
    assert shown in "\n".join(_lines("r", trace))


@pytest.mark.parametrize("in_step", [False, True])
def test_answers_that_stayed_invalid_are_shown_with_what_was_told_of_them(in_step):
    refused = (("maybe", "It is no label."), ("perhaps", ""))
    ending = {"kind": ErrorKind.INVALID_OUTPUT, "message": "no label", "refused": refused}
    spec = make_spec(model="fake", prompt="{input}", choices=["a", "b"])
    outcome = Outcome(index=0, attempts=2, **ending)
    if in_step:
        steps = [
            {"name": "note", "prompt": "{input}"},
            {"name": "check", "judge": "note", "criteria": "c"},
        ]
        spec = make_spec(model="fake", steps=steps)
        done = (
            StepOutcome(name="note", output="N"),
            StepOutcome(name="check", attempts=2, **ending),
        )
        outcome = Outcome(
            index=0, kind=ErrorKind.INVALID_OUTPUT, message="no", attempts=3, steps=done
        )
    trace = trace_of(spec, SHARD, outcome)
    assert trace.calls[-1].turns == refused
    text = "\n".join(_lines("r", trace))
    assert (
        "  answered:\n    maybe\n  told:\n    It is no label.\n  answered:\n    perhaps\n  failed:"
        in text
    )
