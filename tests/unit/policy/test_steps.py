from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.errors import StoredDataError
from fanout.core.records import ErrorKind, StepOutcome
from fanout.core.spec import make_spec
from fanout.policy.steps import Chain, verdict_of, without_failed

FACTS = {"type": "object", "properties": {"term": {}, "days": {"type": "integer"}}}
ROUTE = (
    {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"]},
    {"name": "bill", "prompt": "{input}", "when": {"kind": "bill"}},
    {"name": "letter", "prompt": "{input}", "when": {"kind": "letter"}},
)
JUDGED = (
    {"name": "facts", "prompt": "{input}", "schema": FACTS},
    {"name": "draft", "prompt": "{facts.term}"},
    {"name": "short", "prompt": "{draft}"},
    {"name": "check", "judge": "draft", "criteria": "clear"},
    {"name": "end", "prompt": "{short}"},
)


def steps_of(*steps: dict[str, Any]):
    return make_spec(model="fake", steps=list(steps)).steps


def verdict(*, passes: bool, feedback: str = "more", score: int = 5, reasons: str = "r") -> str:
    return msgspec.json.encode(
        {"reasons": reasons, "pass": passes, "score": score, "feedback": feedback}
    ).decode()


def ran(steps, answers, done=()):
    """Go along steps, whose answers come from ``answers`` by name, one after the other."""
    chain, names = Chain(steps, done), [one.name for one in done]
    left = {name: list(some) for name, some in answers.items()}
    while (step := chain.next) is not None:
        names.append(step.name)
        chain.answered(
            StepOutcome(name=step.name, output=left[step.name].pop(0), round=chain.round(step))
        )
    return chain, names


@pytest.mark.parametrize(
    ("kind", "names"), [("bill", ["kind", "bill"]), ("letter", ["kind", "letter"])]
)
def test_a_route_goes_by_an_earlier_answer(kind, names):
    chain, found = ran(steps_of(*ROUTE), {"kind": [kind], "bill": ["B"], "letter": ["L"]})
    assert found == names
    assert chain.output(None).output == {"bill": "B", "letter": "L"}[kind]
    assert chain.output("letter") is (chain.answers["letter"] if kind == "letter" else None)


def test_a_step_of_a_step_that_did_not_run_does_not_run():
    steps = steps_of(
        *ROUTE,
        {"name": "check", "judge": "bill", "criteria": "c"},
        {"name": "later", "prompt": "{input}", "when": {"bill": "B"}},
    )
    _, names = ran(steps, {"kind": ["letter"], "letter": ["L"]})
    assert names == ["kind", "letter"]


@pytest.mark.parametrize(
    ("values", "answer", "runs"),
    [
        ("3", '{"days": 3}', True),
        (3, '{"days": 3}', True),
        ([1, 2], '{"days": 3}', False),
        ("3", '{"term": 3}', False),
        ("true", '{"days": true}', True),
        (True, '{"days": true}', True),
        ("x", '{"days": null}', False),
    ],
)
def test_a_condition_is_compared_with_a_field_as_a_prompt_shows_it(values, answer, runs):
    steps = steps_of(
        {"name": "facts", "prompt": "{input}", "schema": FACTS},
        {"name": "late", "prompt": "{input}", "when": {"facts.days": values}},
    )
    _, names = ran(steps, {"facts": [answer], "late": ["L"]})
    assert names == ["facts", *["late"] * runs]


@pytest.mark.parametrize(
    ("verdicts", "rounds", "rejected_by"),
    [
        ([True], 1, ""),
        ([False, True], 2, ""),
        ([False, False, True], 3, ""),
        ([False, False, False], 3, "check"),
    ],
)
def test_what_does_not_pass_goes_back_with_the_feedback(verdicts, rounds, rejected_by):
    answers = {
        "facts": ['{"term": "t"}'],
        "draft": [f"draft {n}" for n in range(1, 4)],
        "short": [f"short {n}" for n in range(1, 4)],
        "check": [verdict(passes=one, feedback=f"f{n}") for n, one in enumerate(verdicts, 1)],
        "end": ["end"],
    }
    chain, names = ran(steps_of(*JUDGED), answers)
    assert names == ["facts", *["draft", "short", "check"] * rounds, "end"]
    assert chain.rejected_by == rejected_by
    assert chain.turns(steps_of(*JUDGED)[1]) == tuple(
        (f"draft {n}", f"f{n}", steps_of(*JUDGED)[3].criteria) for n in range(1, rounds)
    )
    assert [chain.answers[name].round for name in ("facts", "draft", "short", "check", "end")] == [
        1, rounds, rounds, rounds, 1,
    ]  # fmt: skip
    assert chain.output(None).output == "end"


@pytest.mark.parametrize(
    ("verdicts", "ends"),
    [
        ([(True, 5)], "passed"),
        ([(True, 0), (True, 5)], "passed"),
        # A pass that is worth nothing is none.
        ([(True, 0), (True, 0)], "failed"),
        ([(False, 9), (True, 0)], "failed"),
        ([(True, 0), (False, 9)], "failed"),
    ],
)
def test_a_step_behind_a_judge_goes_by_its_final_verdict(verdicts, ends):
    steps = steps_of(
        {"name": "draft", "prompt": "{input}"},
        {"name": "check", "judge": "draft", "criteria": "clear", "max_rounds": 2},
        {"name": "passed", "prompt": "{draft}", "when": {"check.pass": "true"}},
        {"name": "failed", "prompt": "{draft}", "when": {"check.pass": "false"}},
    )
    said = [verdict(passes=passes, score=score) for passes, score in verdicts]
    answers = {"draft": ["d1", "d2"], "check": said, "passed": ["P"], "failed": ["F"]}
    chain, names = ran(steps, answers)
    assert names == ["draft", "check"] * len(verdicts) + [ends]
    assert verdict_of(chain.answers["check"].output).is_pass == (ends == "passed")


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 12))
def test_a_branch_that_is_taken_up_anywhere_ends_as_if_it_had_not_been(verdicts, at):
    answers = {
        "facts": ['{"term": "t"}'],
        "draft": ["d1", "d2", "d3"],
        "short": ["s1", "s2", "s3"],
        "check": [verdict(passes=one) for one in verdicts],
        "end": ["end"],
    }
    steps = steps_of(*JUDGED)
    whole, names = ran(steps, answers)
    left = {name: list(some) for name, some in answers.items()}
    done = [StepOutcome(name=name, output=left[name].pop(0)) for name in names[:at]]
    again, again_names = ran(steps, left, done)
    assert again_names == names
    assert {name: one.output for name, one in again.answers.items()} == {
        name: one.output for name, one in whole.answers.items()
    }
    assert again.rejected_by == whole.rejected_by


@pytest.mark.parametrize(
    "done",
    [
        [StepOutcome(name="bill", output="B")],
        [StepOutcome(name="kind")],
        [StepOutcome(name="kind", output="bill"), StepOutcome(name="letter", output="L")],
        [StepOutcome(name="other", output="x")],
    ],
)
def test_answers_of_other_steps_are_refused(done):
    with pytest.raises(StoredDataError, match="out of its order"):
        Chain(steps_of(*ROUTE), done)


def test_a_damaged_verdict_is_refused():
    steps = steps_of(
        {"name": "a", "prompt": "{input}"}, {"name": "check", "judge": "a", "criteria": "c"}
    )
    with pytest.raises(StoredDataError, match="verdict"):
        Chain(steps, [StepOutcome(name="a", output="A"), StepOutcome(name="check", output="{")])


@pytest.mark.parametrize(
    ("outputs", "is_rejected", "kept"),
    [
        ({"facts": "F", "draft": None}, False, ["facts"]),
        ({"facts": None}, False, []),
        ({"facts": "F", "draft": "D", "short": "S", "check": "V"}, True, ["facts"]),
    ],
)
def test_a_failed_branch_begins_again_at_the_step_that_failed(outputs, is_rejected, kept):
    done = [
        StepOutcome(name=name, output=one, kind=None if one else ErrorKind.TIMEOUT)
        for name, one in outputs.items()
    ]
    found = without_failed(steps_of(*JUDGED), done, is_rejected=is_rejected)
    assert [one.name for one in found] == kept


@pytest.mark.parametrize(
    ("given", "passes", "advice"),
    [
        # Feedback beside a pass says what could be better still.
        ({"passes": True, "feedback": "shorter"}, True, "shorter"),
        ({"passes": True, "feedback": "", "score": 10}, True, "r"),
        ({"passes": True, "score": 1}, True, "more"),
        # Useless is no pass.
        ({"passes": True, "feedback": "", "score": 0}, False, "r"),
        # A high score does not make up for a criterion.
        ({"passes": False, "score": 10}, False, "more"),
        ({"passes": False, "feedback": " ", "reasons": "It is rude."}, False, "It is rude."),
        ({"passes": False, "feedback": "", "reasons": ""}, False, ""),
    ],
)
def test_a_verdict_that_contradicts_itself_has_a_meaning(given, passes, advice):
    found = verdict_of(verdict(**given))
    assert (found.passes, found.advice) == (passes, advice)
    steps = steps_of(
        {"name": "a", "prompt": "{input}"},
        {"name": "check", "judge": "a", "criteria": "c", "max_rounds": 2},
    )
    chain = Chain(steps)
    chain.answered(StepOutcome(name="a", output="A"))
    chain.answered(StepOutcome(name="check", output=verdict(**given)))
    assert (chain.next is None) == passes
    assert chain.turns(steps[0]) == (() if passes else (("A", advice, ("c",)),))


TWO = (
    {"name": "a", "prompt": "{input}"},
    {"name": "first", "judge": "a", "criteria": "c", "max_rounds": 2},
    {"name": "second", "judge": "a", "criteria": "d", "max_rounds": 2},
    {"name": "end", "prompt": "{a}"},
)


@pytest.mark.parametrize(
    ("first", "second", "names", "rejected_by"),
    [
        ("+", "+", "a first second end", ""),
        ("-+", "+", "a first a first second end", ""),
        ("++", "-+", "a first second a first second end", ""),
        ("-++", "-+", "a first a first second a first second end", ""),
        # One that has no round left rejects; the other one is not asked for nothing.
        ("--", "", "a first a first end", "first"),
        ("++", "--", "a first second a first second end", "second"),
        # It has used its rounds, and judges again what another one has sent back.
        ("-+-", "-", "a first a first second a first end", "first"),
    ],
)
def test_an_answer_with_two_judges_has_to_pass_both(first, second, names, rejected_by):
    answers = {
        "a": ["A1", "A2", "A3"],
        "first": [verdict(passes=one == "+") for one in first],
        "second": [verdict(passes=one == "+") for one in second],
        "end": ["end"],
    }
    chain, found = ran(steps_of(*TWO), answers)
    assert " ".join(found) == names
    assert chain.rejected_by == rejected_by
    assert chain.round(steps_of(*TWO)[0]) == found.count("a")


@pytest.mark.parametrize(
    ("inner", "rejected_by"),
    [
        # The answer that it rejected for good is gone: it judges the one that took its place.
        ("-+", ""),
        ("--", "inner"),
        ("++", ""),
    ],
)
def test_a_rejection_for_good_goes_with_its_answer(inner, rejected_by):
    steps = steps_of(
        {"name": "a", "prompt": "{input}"},
        {"name": "b", "prompt": "{a}"},
        {"name": "inner", "judge": "b", "criteria": "c", "max_rounds": 1},
        {"name": "outer", "judge": "a", "criteria": "c", "max_rounds": 2},
    )
    answers = {
        "a": ["A1", "A2"],
        "b": ["B1", "B2"],
        "inner": [verdict(passes=one == "+") for one in inner],
        "outer": [verdict(passes=False), verdict(passes=True)],
    }
    chain, names = ran(steps, answers)
    assert names == ["a", "b", "inner", "outer"] * 2
    assert chain.rejected_by == rejected_by


@pytest.mark.parametrize(
    ("kind", "names", "rejected_by"),
    [
        ("bill", ["kind", "note", "check", "note", "check"], "check"),
        ("letter", ["kind", "note"], ""),
    ],
)
def test_a_judge_with_a_condition_judges_only_then(kind, names, rejected_by):
    steps = steps_of(
        ROUTE[0],
        {"name": "note", "prompt": "{input}"},
        {
            "name": "check",
            "judge": "note",
            "criteria": "c",
            "max_rounds": 2,
            "when": {"kind": "bill"},
        },
    )
    refused = [verdict(passes=False)] * 2
    chain, found = ran(steps, {"kind": [kind], "note": ["N", "N"], "check": refused})
    assert (found, chain.rejected_by) == (names, rejected_by)


@pytest.mark.parametrize(
    ("judged", "answers"),
    [
        ({"choices": ["yes", "no"]}, ["yes", "no"]),
        ({"schema": FACTS}, ['{"days": 3}', '{"days": 4}']),
    ],
)
def test_a_label_and_a_typed_answer_are_judged_and_sent_back(judged, answers):
    steps = steps_of(
        {"name": "a", "prompt": "{input}", **judged},
        {"name": "check", "judge": "a", "criteria": "c"},
        {"name": "late", "prompt": "{input}", "when": {"check.pass": True}},
    )
    verdicts = [verdict(passes=False), verdict(passes=True)]
    chain, names = ran(steps, {"a": list(answers), "check": verdicts, "late": ["L"]})
    assert names == ["a", "check", "a", "check", "late"]
    assert chain.turns(steps[0]) == ((answers[0], "more", ("c",)),)
