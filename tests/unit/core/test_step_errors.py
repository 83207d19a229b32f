from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fanout.cli.main import cli
from fanout.core.errors import PromptError, SpecError
from fanout.core.spec import make_spec, stored_spec
from fanout.inputs.intake import checked_documents, files_for_workers
from fanout.inputs.step_prompts import StepPrompts

KIND = {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"]}
YES = {"name": "kind", "prompt": "{input}", "choices": ["yes", "no"]}
FREE = {"name": "free", "prompt": "{input}"}
FACTS = {"type": "object", "properties": {"ok": {"type": "boolean"}, "of": {"enum": ["yes", "no"]}}}
TYPED = {"name": "facts", "prompt": "{input}", "schema": FACTS}
CODE = {"name": "code", "function": "package.module:function"}


def last(**fields):
    return {"name": "last", "prompt": "{input}", **fields}


WRONG = [
    # A wrong value.
    ([last(max_tokens=-1)], "steps.last.max_tokens", "must be 1 or more (got -1)"),
    ([last(temperature="hot")], "steps.last.temperature", "must be a number, not text (got 'hot')"),
    ([last(model=["a", "b"])], "steps.last.model", "must be text (got ['a', 'b'])"),
    ([last(prompt="")], "steps.last.prompt", "must not be empty (got '')"),
    ([KIND, last(prompt="", judge="kind", criteria=[1])], "steps.last.prompt", "must not be empty"),
    ([last(function="abc")], "steps.last.function", "must be package.module:function (got 'abc')"),
    ([last(schema="none.json")], "steps.last.schema", "the file cannot be read"),
    ([last(when="kind")], "steps.last.when", "as {kind: bill} (got 'kind')"),
    # A field that there is not.
    ([last(max_token=5)], "steps.last.max_token", "no such field; did you mean max_tokens? (known: "),
    ([last(**{"max-tokens": 5})], "steps.last.max-tokens", "did you mean max_tokens? (known: "),
    ([last(llm="fake")], "steps.last.llm", "did you mean model? (known: choices, criteria, "),
    ([last(retries=3)], "steps.last.retries", "is a field of the job, and not of a step (known: "),
    ([last(rpm=3)], "steps.last.rpm", "a step has no such field"),
    # Names, and fields that do not fit together.
    ([KIND, {"prompt": "{input}"}], "steps.2.name", "is required (step 2 of the list)"),
    ([KIND, last(name="1a")], "steps.2.name", "(got '1a') (step 2 of the list)"),
    ([last(name="input")], "steps.input.name", "is a name of fanout's own"),
    ([last(name="for")], "steps.for.name", "is a word of Python; choose another one"),
    ([KIND, KIND], "steps.kind.name", "is the name of two steps"),
    ([KIND, "last"], "steps.2", "must be a mapping of fields, such as name and prompt (got 'last')"),
    ([{"name": "last"}], "steps.last", "needs a prompt, a function, or judge with criteria"),
    ([{**CODE, "model": "fake"}], "steps.code.model", "has no effect on a function"),
    ([last(criteria="c")], "steps.last.criteria", "has no effect without judge"),
    ([KIND, {"name": "last", "judge": "kind"}], "steps.last.criteria", "is required for a step with"),
    # Other steps.
    ([KIND, last(when={"king": "bill"})], "steps.last.when", "'king'; did you mean kind? (earlier: "),
    ([KIND, last(judge="x", criteria="c")], "steps.last.judge", "no earlier step 'x'"),
    ([CODE, last(judge="code", criteria="c")], "steps.last.judge", "is a function, which takes no"),
    ([KIND, last(when={"kind": "note"})], "steps.last.when.kind", "(its choices: bill, letter)"),
    ([KIND, last(when={})], "steps.last.when", "must not be empty: name an earlier step and its answers"),
    ([KIND, {"name": "last", "judge": "kind", "criteria": ["c", " "]}], "steps.last.criteria", "not be e"),
    ([KIND, {"name": "last", "judge": "kind", "criteria": ""}], "steps.last.criteria", "(got '')"),
    ([KIND, last(when={"kind": []})], "steps.last.when.kind", "has no values"),
    ([TYPED, last(when={"facts": "a"})], "steps.last.when.facts", "name a field of it, as facts.FIELD"),
    ([TYPED, last(when={"facts.x": "a"})], "steps.last.when.facts.x", "no field 'x' (its fields: ok"),
    ([TYPED, last(when={"facts.ok.x": "a"})], "steps.last.when.facts.ok.x", "no field 'ok.x' (its fi"),
    ([TYPED, last(when={"facts.ok": "yes"})], "steps.last.when.facts.ok", "'yes' (ok: true, false)"),
    ([FREE, last(prompt="{last}")], "steps.last.prompt", "does not come before this one"),
    # What YAML makes of texts without quotes.
    ([YES, last(when={"kind": True})], "steps.last.when.kind", "must be text (got True): put it in"),
    ([FREE, last(when={"free": [True]})], "steps.last.when.free", "must be text (got True): put it in"),
    ([FREE, last(when={"free": None})], "steps.last.when.free", "must be text (got None): put it in"),
    ([TYPED, last(when={"facts.of": False})], "steps.last.when.facts.of", "(of: yes, no); put it in"),
    ([last(choices=[True, False])], "steps.last.choices", "put each label in quotes, as YAML reads yes"),
    ([last(prompt={"input": None})], "steps.last.prompt", "as '{input}', or in a block after |"),
    ([KIND, last(judge="kind", criteria=[{"It": "is"}])], "steps.last.criteria.0", "a colon and a sp"),
    # All of them.
    ("facts", "steps", "must be a list of steps, each a mapping with a name of its own (got str)"),
    ({"last": FREE}, "steps", "must be a list of steps, each a mapping with a name of its own (got a m"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "field", "reason"), WRONG)
def test_an_error_has_the_name_of_the_step_and_the_field(steps, field, reason, tmp_path):
    long = {"name": "long", "prompt": f"{{input}}{' many words' * 100}"}
    given = [*steps[:-1], long, steps[-1]] if isinstance(steps, list) and len(steps) > 2 else steps
    with pytest.raises(SpecError) as raised:
        # Templates are read with the run.
        StepPrompts(make_spec(model="fake", steps=given).steps)
    assert raised.value.field == field
    assert reason in raised.value.reason
    assert len(str(raised.value)) < 400

    job = tmp_path / "job.yaml"
    # YAML has all that JSON has.
    job.write_text(json.dumps({"inputs": str(job), "model": "fake", "steps": given}))
    found = CliRunner().invoke(cli, ["run", str(job), "--dry-run"], standalone_mode=False)
    assert isinstance(found.exception, SpecError)
    assert reason in str(found.exception)
    assert str(found.exception).startswith(f"{job}: {field}: ")


def test_a_stored_run_may_have_what_a_new_one_is_refused_for():
    check = {"name": "check", "judge": "free", "criteria": "good"}
    made = make_spec(model="fake", steps=[FREE, check], reduce="pairwise", criteria="good")
    stored = json.loads(made.model_dump_json())
    assert "when" not in stored["steps"][0]
    stored["steps"][0]["when"] = {}
    stored["steps"][1]["criteria"] = stored["criteria"] = [" "]
    stored["price"] = {}
    found = stored_spec(json.dumps(stored))
    assert found.steps[0].when == {}
    assert found.steps[1].criteria == found.criteria == (" ",)


@pytest.mark.parametrize("name", ["title", "subtask"])
def test_a_step_is_not_called_as_what_a_splitting_model_gives(name):
    job = {"model": "fake", "steps": [last(name=name)]}
    assert list(checked_documents(make_spec(**job), ["text"]))
    with pytest.raises(
        SpecError, match="is a name of fanout's own in a job with split: model"
    ) as it:
        list(checked_documents(make_spec(**job, split="model"), ["text"]))
    assert it.value.field == f"steps.{name}.name"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("A part is one {clause}.", "there is no {clause}"),
        ("A part is one {kin}.", "did you mean {kind}"),
        ("A part of {title}.", "there is no {title}"),
        ("A part is one {{clause.", None),
        ("A part is one {clause.", "clause"),
        ("A part is of the {kind} in {document}.", None),
    ],
)
@pytest.mark.parametrize("prompt_of_job", ["{input}", "{subtask} {input}"])
def test_what_a_splitting_model_is_told_is_checked_before_the_run(prompt, reason, prompt_of_job):
    spec = make_spec(model="fake", prompt=prompt_of_job, split="model", split_prompt=prompt)
    rows = [{"text": "x", "kind": "bill"}]
    if reason is None:
        assert list(checked_documents(spec, rows))
        return
    with pytest.raises(PromptError) as raised:
        list(checked_documents(spec, rows))
    assert raised.value.field == "split_prompt"
    assert reason in str(raised.value)
    if "{clause}" in prompt:
        with pytest.raises(PromptError, match=r"there is no \{clause\}"):
            files_for_workers(spec)


def test_an_unknown_name_in_a_prompt_is_told_which_steps_come_before():
    steps = [KIND, FREE, last(prompt="{kin} {input}"), {"name": "later", "prompt": "{input}"}]
    with pytest.raises(PromptError) as raised:
        list(checked_documents(make_spec(model="fake", steps=steps), ["text"]))
    assert raised.value.field == "steps.last.prompt"
    assert "there is no {kin}; did you mean {kind}? known: " in str(raised.value)
    assert "{free}" in str(raised.value)
    assert "{later}" not in str(raised.value)


@pytest.mark.parametrize(
    "when", [{"facts.ok": True}, {"facts.ok": "true"}, {"code": True}, {"facts.of": ["yes"]}]
)
def test_a_condition_on_a_boolean_is_one(when):
    spec = make_spec(model="fake", steps=[TYPED, CODE, last(when=when)])
    assert set(spec.steps[-1].when) == set(when)


@pytest.mark.parametrize(
    "line",
    [
        "prompt: {input} is good",
        "{name: a, prompt: {input} is good}",
        "criteria:\n    - {facts.term} is named",
    ],
)
def test_a_text_that_begins_with_a_brace_is_explained(line, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(f"steps:\n  - {line}\n")
    found = CliRunner().invoke(cli, ["run", str(job)], standalone_mode=False)
    assert isinstance(found.exception, SpecError)
    assert str(found.exception).endswith("a text that begins with { must be in quotes")
