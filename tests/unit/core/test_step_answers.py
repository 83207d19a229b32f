from __future__ import annotations

import pytest

from fanout.core.records import StepOutcome
from fanout.core.spec import make_spec
from fanout.core.step_answers import answers_of, last_answers, step_text, value_of
from fanout.policy.steps import Chain


def test_prompts_have_answers_and_their_fields():
    answers = {"facts": StepOutcome(name="facts", output='{"a": {"b": [1, "x"]}, "n": null}')}
    assert step_text("facts.a.b.1", answers) == "x"
    assert step_text("facts.a", answers) == '{"b": [1, "x"]}'
    assert step_text("facts.n", answers) == ""
    assert step_text("other.a", answers) == ""
    assert value_of("[1]", "") == [1]
    for path in ("facts.c", "facts.a.b.7", "facts.a.b.x"):
        with pytest.raises(KeyError):
            step_text(path, answers)


def ran(name, output, **fields):
    return StepOutcome(name=name, output=output, **fields)


@pytest.mark.parametrize(
    ("done", "answers"),
    [
        ([ran("kind", "bill"), ran("bill", "b")], {"kind": "bill", "bill": "b"}),
        # A judge has sent kind back: the bill went by an answer that is none.
        ([ran("kind", "bill"), ran("bill", "b"), ran("check", "{}"), ran("kind", "other"),
          ran("check", "{}", round=2)], {"kind": "other", "check": "{}"}),
        ([ran("a", "1"), ran("b", "2"), ran("c", "3"), ran("b", "4")], {"a": "1", "b": "4"}),
        # What failed in its second round has no answer.
        ([ran("a", "1"), ran("b", "2"), ran("check", "{}"), ran("b", None)], {"a": "1"}),
        ([ran("a", "[1]", is_json=True), ran("b", None)], {"a": [1]}),
        ([], {}),
    ],
)  # fmt: skip
def test_the_answers_of_a_branch_are_those_that_no_judge_has_sent_back(done, answers):
    assert answers_of(done) == answers
    assert list(answers_of(done)) == list(answers)


STEPS = [
    {"name": "kind", "prompt": "{input}", "choices": ["bill", "other"]},
    {"name": "bill", "prompt": "{input}", "when": {"kind": "bill"}},
    {"name": "check", "judge": "kind", "criteria": "good", "max_rounds": 2},
    {"name": "end", "prompt": "{input}"},
]
PASS = '{"reasons":"","pass":true,"score":5,"feedback":""}'
BACK = PASS.replace("true", "false")


@pytest.mark.parametrize("first", ["bill", "other"])
@pytest.mark.parametrize("second", ["bill", "other"])
@pytest.mark.parametrize("verdicts", [[PASS], [BACK, PASS], [BACK, BACK]])
def test_the_answers_are_those_that_the_next_step_sees(first, second, verdicts):
    chain, done = Chain(make_spec(model="fake", steps=STEPS).steps), list[StepOutcome]()
    said = {"kind": iter([first, second]), "check": iter(verdicts)}
    while (step := chain.next) is not None:
        done.append(ran(step.name, next(said.get(step.name, iter(["text"])))))
        chain.answered(done[-1])
    assert {name: one.output for name, one in chain.answers.items()} == answers_of(done)
    assert [one.output for one in last_answers(done).values()] == [*answers_of(done).values()]


BILL = {"name": "bill", "prompt": "{input}", "when": {"kind": "bill"}}
LETTER = {"name": "letter", "prompt": "{input}", "when": {"kind": ["letter", "note"]}}
KIND = {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter", "note"]}
FACTS = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
OF_FACTS = {"name": "facts", "prompt": "{input}", "schema": FACTS}
TO_FACTS = (
    {**BILL, "when": {"facts.ok": True}},
    {**LETTER, "when": {"facts.ok": "false"}},
)


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        ([KIND, BILL, LETTER], ["bill", "letter"]),
        # An answer that no step goes by is an output itself.
        ([KIND, BILL], ["kind", "bill"]),
        ([{**KIND, "choices": None, "schema": {"enum": ["bill", "note", "letter"]}}, BILL, LETTER],
         ["bill", "letter"]),
        ([{**KIND, "choices": None}, BILL, LETTER], ["kind", "bill", "letter"]),
        ([{**KIND, "name": "a"}, {**KIND, "when": {"a": "bill"}}, BILL, LETTER],
         ["a", "kind", "bill", "letter"]),
        ([KIND, BILL, {**LETTER, "when": {"kind": "letter", "bill": "x"}}],
         ["kind", "bill", "letter"]),
        ([OF_FACTS, *TO_FACTS], ["bill", "letter"]),
        ([{**OF_FACTS, "schema": {**FACTS, "required": []}}, *TO_FACTS], ["facts", "bill", "letter"]),
        ([KIND, BILL, {"name": "end", "prompt": "{input}"}], ["end"]),
    ],
)  # fmt: skip
def test_the_output_is_of_a_step_that_may_be_the_last_one(steps, names):
    given = [{name: value for name, value in step.items() if value is not None} for step in steps]
    assert [step.name for step in make_spec(model="fake", steps=given).final_steps] == names
