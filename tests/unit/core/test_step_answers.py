from __future__ import annotations

import pytest

from fanout.core.records import StepOutcome
from fanout.core.spec import make_spec
from fanout.core.step_answers import step_text, value_of


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
