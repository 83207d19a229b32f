"""How the prompts of steps are laid out, and what is marked of them."""

import pytest

from fanout.core.records import Chunk, StepOutcome
from fanout.core.spec import make_spec
from fanout.inputs.step_prompts import StepPrompts
from fanout.llm import step_plans
from fanout.policy.prefixes import CacheRules

OPENAI = CacheRules(read=0.1)
SONNET = CacheRules(is_marked=True, write=1.25, read=0.1)
TEXT = "abcd" * 2_000
HEAD = f"<document>\n{TEXT}\n</document>\n\n"
FACTS = {"name": "facts", "prompt": "Facts of:\n\n{input}"}
NOTE = {"name": "note", "prompt": "With {facts}, write of:\n\n{input}"}
LAST = {"name": "last", "prompt": "Shorten {note}"}
CHECK = {"name": "check", "judge": "note", "criteria": "short"}
CHAIN = [FACTS, NOTE, LAST, CHECK]
ANSWERS = {name: StepOutcome(name=name, output=f"<{name}>") for name in ("facts", "note")}
LABELS = {"choices": ["a", "b"]}


def planned(rules, steps, **fields):
    spec = make_spec(**{"model": "openai/m", "steps": steps, "fence": False, **fields})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step_plans, "cache_rules", lambda *_: rules)
        return spec, step_plans.step_plan_of(spec)


def prompts(rules, steps=CHAIN, text=TEXT, lane="realtime", **fields):
    spec, plan = planned(rules, steps, **fields)
    chunk, ref = Chunk(text=text, document="d", document_index=0), spec.variants.ref(0)
    made, found = StepPrompts(spec.steps), {}
    for step in spec.steps:
        answers = {name: one.output for name, one in ANSWERS.items()}
        own = made.values_of(step, {"input": text, "sample": "0"}, {}, answers.__getitem__)
        model = step.model or spec.model
        found[step.name] = plan.prompt(step, chunk, ref, own, model=model, chunks=9, lane=lane)
    return found


def test_steps_that_have_the_document_begin_with_it_and_have_one_key():
    found = prompts(OPENAI)
    (facts, one), (note, other) = found["facts"], found["note"]
    assert facts == f"{HEAD}Facts of:\n\n[the text in <document> above]"
    assert note == f"{HEAD}With <facts>, write of:\n\n[the text in <document> above]"
    assert one.key == other.key != None  # noqa: E711 - both have one
    # A step without the text does not get it, and a judge sees the task as it is written.
    assert found["last"] == ("Shorten <note>", None)
    judge, cache = found["check"]
    assert f"With <facts>, write of:\n\n{TEXT}" in judge
    assert cache is None


@pytest.mark.parametrize(
    ("steps", "fields"),
    [
        # What comes before the text differs: a schema, the system prompt, the model, a shorter text.
        ([{**FACTS, **LABELS}, NOTE], {}),
        ([FACTS, {**NOTE, "system": "Be kind."}], {}),
        ([FACTS, {**NOTE, "model": "openai/other"}], {}),
        ([FACTS, NOTE], {"text": "short"}),
        ([FACTS, NOTE], {"prompt_order": "as_written"}),
        # A route: a branch has one of the two.
        ([{"name": "k", "prompt": "K", **LABELS}, {**FACTS, "when": {"k": "a"}},
          {"name": "note", "prompt": "N {input}", "when": {"k": "b"}}], {}),
    ],
)  # fmt: skip
def test_prompts_are_as_they_are_written_where_steps_share_nothing(steps, fields):
    found = prompts(OPENAI, steps, **fields)
    assert not any(text.startswith("<document>") for text, _ in found.values())
    assert not any(cache and cache.key for _, cache in found.values())


def test_steps_that_run_together_on_a_route_share_it():
    kind = {"name": "k", "prompt": "K", **LABELS}
    on_route = [kind, *({**one, "when": {"k": "a"}} for one in (FACTS, NOTE))]
    found = prompts(SONNET, on_route)
    assert {found[name][1].marks for name in ("facts", "note")} == {(len(HEAD),)}


def test_the_document_is_marked_once_and_only_where_others_read_it_soon():
    found = prompts(SONNET)
    assert {found[name][1].marks for name in ("facts", "note")} == {(len(HEAD),)}
    assert found["last"][1] is None
    # The next step is in a later batch; samples are in the same one.
    in_batch = prompts(SONNET, lane="batch")
    assert in_batch["facts"][0].startswith(HEAD)
    assert in_batch["facts"][1] is None
    in_batch = prompts(SONNET, lane="batch", samples=6)
    assert in_batch["facts"][1].marks == (len(HEAD),)


def test_what_differs_between_samples_is_not_marked():
    written = [
        {"name": "facts", "prompt": "F {input}"},
        {"name": "note", "prompt": "{facts} {input}"},
    ]
    found = prompts(SONNET, written, samples=2, prompt_order="as_written")
    assert found["facts"][1].marks == (len(f"F {TEXT}"),)
    assert found["note"][1] is None
    same = [{"name": "facts", "prompt": "{input} F"}, {"name": "note", "prompt": "{input} {facts}"}]
    found = prompts(SONNET, same)
    assert [cache.marks for _, cache in found.values()] == [(len(TEXT),)] * 2


def test_an_order_that_the_job_gives_holds_for_the_steps_with_the_document():
    found = prompts(None, text="short", prompt_order="document_first")
    starts = [text.startswith("<document>") for text, _ in found.values()]
    assert starts == [True, True, False, False]
    assert planned(None, CHAIN)[1] is None


@pytest.mark.parametrize(
    ("fields", "count"), [({}, 0), ({"samples": 2}, 1), ({"samples": 2, "lane": "batch"}, 0)]
)
def test_the_first_calls_of_samples_have_the_name_of_their_prefix(fields, count):
    spec, plan = planned(OPENAI, CHAIN, **fields)
    chunk = Chunk(text=TEXT, document="d", document_index=0)
    names = {
        plan.families(chunk, spec.variants.ref(index), model="openai/m", chunks=1, lane=spec.lane)
        for index in range(spec.samples)
    }
    assert len(names) == 1
    assert len(next(iter(names))) == count
