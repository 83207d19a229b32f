"""The check of citations and quotes against what the prompt has shown."""

from __future__ import annotations

import json

import pytest

from fanout.core.answer_shape import WrongShapeError, shape_of
from fanout.core.citations import LOST_QUOTE, UNKNOWN
from fanout.inputs.cited_answers import CitedAnswers, with_found_quotes
from fanout.inputs.quotes import QuotedText

LOST = "these quotes do not stand in the sources cited for them"
A, B = "s-aaaaaaa", "s-bbbbbb2"
TEXTS = {A: ["(d1)\nThe house \u201cis\u201d  red.\nIt has 12 windows."], B: ["(d2)\nIt is blue."]}


@pytest.mark.parametrize(
    ("answer", "problem", "marked"),
    [
        (f"Red [{A}].", None, f"Red [{A}]."),
        (f'Red: "the house \'is\' red." [{A}]', None, None),
        (f'"The house ... has 12 windows" [{A}, {B}]', None, f'"The house ... has 12 windows" [{A}][{B}]'),
        (
            f'"It has 13 windows" [{A}]',
            f"{LOST}: It has 13 windows",
            f'"It has 13 windows" {LOST_QUOTE} [{A}]',
        ),
        (
            f'"It is blue." [{A}] [s-nope]',
            f"no source has these ids: s-nope; {LOST}: It is blue.",
            f'"It is blue." {LOST_QUOTE} [{A}] {UNKNOWN}',
        ),
    ],
)  # fmt: skip
def test_an_answer_is_checked_against_its_sources(answer, problem, marked):
    review = CitedAnswers(TEXTS)
    assert review.problem(answer) == problem
    assert review.marked(answer) == (answer if marked is None else marked)
    assert review.marked(review.marked(answer)) == review.marked(answer)
    assert review.problem(review.marked(answer)) is None


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (f'According to [{A}]: "It has 13 windows".', False),
        (f'According to [{A}]: "It has 12 windows".', True),
        (f'"It is blue", according to [{A}]', False),
        (f'"It is blue" (see [{B}])', True),
        (f'"It is green" is what they say. [{B}] is blue.', False),
        (f'"It is blue" is what they say.\n\nSo [{A}], and [{B}].', True),
        ('"It is blue" is what they say.', False),
        (f'"the house "is" blue" [{A}]', False),
        (f'"the house "is" red" [{A}]', True),
        (f'`"It has 13 windows"` [{A}]', False),
        (f'{{"is \\"blue\\" it": ["It is blue [{B}]"]}}', True),
        (f'{{"text": "\u201cIt is green\u201d [{B}]"}}', False),
    ],
)
def test_a_quote_stands_in_what_is_cited_around_it_or_is_marked(answer, is_right):
    review = CitedAnswers(TEXTS)
    assert (review.problem(answer) is None) == is_right
    marked = review.marked(answer)
    assert (LOST_QUOTE not in marked) == is_right
    assert review.problem(marked) is None
    assert review.marked(marked) == marked
    assert with_found_quotes(answer, TEXTS) == marked


def test_other_forms_of_citations_are_sent_back_and_marked():
    review = CitedAnswers({A: ["It is red, see s-c4ccccc."]})
    answer = "see s-c4ccccc: red [s\u2011aaaaaaa], blue (s-d4ddddd) 'as the sky' [s\u2011aaaaaaa]"
    assert review.problem(answer) == f"no source has these ids: s-d4ddddd; {LOST}: as the sky"
    marked = f"see s-c4ccccc: red [{A}], blue ({UNKNOWN}) 'as the sky' {LOST_QUOTE} [{A}]"
    assert review.marked(answer) == marked


def test_quotes_of_partial_results_are_checked_in_the_sources_themselves():
    asked = []

    def look_up(one):
        asked.append(one)
        return None if one == B else ["It is as red as wine."]

    shown = {A: [f"(partial) it is said to be red [{A}]"], B: [f"and blue [{B}]"]}
    review = CitedAnswers(shown, look_up=look_up)
    answer = f'"as red as wine" [{A}], "said to be red" [{A}], "who knows" [{B}], blue [{B}]'
    assert review.problem(answer) == f"{LOST}: said to be red"
    marked = answer.replace('be red"', f'be red" {LOST_QUOTE}')
    assert review.marked(answer) == marked
    assert asked == [A, B], "each once, and only where there is a quote"


def test_citations_in_the_texts_of_json_are_checked_alike():
    shape = shape_of({
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "sources": {"type": "array", "items": {"type": "string"}},
        },
    })  # fmt: skip
    review = CitedAnswers(TEXTS, shape)
    answer = json.dumps({"text": f'x "It is blue" [{A}, s-x]', "sources": [A, "s-other"], "n": 1.0})
    assert review.problem(answer).startswith("no source has these ids: s-x, s-other; these quotes")
    assert json.loads(review.marked(answer)) == {
        "text": f'x "It is blue" {LOST_QUOTE} [{A}]{UNKNOWN}', "sources": [A, UNKNOWN], "n": 1.0,
    }  # fmt: skip
    right = '{"text": "x",  "n": 1.0}'
    assert review.marked(right) == right


def test_marks_that_the_schema_does_not_allow_are_left_out():
    short = shape_of({"type": "string", "maxLength": 14})
    assert CitedAnswers(TEXTS, short).marked('"ok [s-no]"') == '"ok "'
    exact = shape_of({"type": "string", "enum": ["ok [s-no]"]})
    with pytest.raises(WrongShapeError):
        CitedAnswers(TEXTS, exact).marked('"ok [s-no]"')


def test_quotes_of_the_root_are_checked_in_the_texts_that_are_known():
    value = {"a": [f'"It is blue." [{B}], "It is green." [{B}], "x y" [{A}]']}
    made = with_found_quotes(value, {B: TEXTS[B]})
    assert made == {"a": [f'"It is blue." [{B}], "It is green." {LOST_QUOTE} [{B}], "x y" [{A}]']}


@pytest.mark.parametrize(
    ("quote", "is_there"),
    [
        ("the HOUSE 'is' red", True), ("the **house** \u2039is\u203a *red*", True), ("**", False),
        ("house [...] windows.", True), ("windows ... house", False),
        ("The house is red", False), ("12 window", True), ("...", False), ("", False),
    ],
)  # fmt: skip
def test_a_quote_stands_in_a_text_without_a_mistake(quote, is_there):
    assert QuotedText(TEXTS[A][0]).has(quote) is is_there
