"""The parts that a model proposes: located by their quotes, checked, and without loss of text."""

from __future__ import annotations

import json
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.answer_shape import WrongShapeError, shape_of
from fanout.core.parts import Part
from fanout.core.spec import make_spec
from fanout.inputs.plan_answers import (
    PARTS_SCHEMA,
    SUBTASKS_SCHEMA,
    PlanShape,
    plan_prompt,
    tiles,
    wants_subtasks,
)
from fanout.inputs.planned_parts import Proposal, covered, located
from fanout.inputs.prompts import Template
from fanout.inputs.quotes import QuotedText, _nearest
from fanout.inputs.splitters import make_splitter

MINUTES = """Minutes of May 5

1. Budget. The board looked at the figures.
Agreed: the budget is\t200,000 \u2014 not more.

2. Hiring. Two people are needed.
Agreed: \u201chire two people\u201d by June.

3. Office. Nothing was agreed.
"""


def places(quote, text=MINUTES):
    return [text[start:end] for start, end in QuotedText(text).places(quote)]


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("1. Budget. The board", ["1. Budget. The board"]),
        ("  1. Budget. The board\n", ["1. Budget. The board"]),
        ("Agreed:", ["Agreed:", "Agreed:"]),
        ("agreed: THE budget is 200,000 - not more.", ["Agreed: the budget is\t200,000 \u2014 not more"]),
        ('agreed: "hire two people" by', ["Agreed: \u201chire two people\u201d by"]),
        ("figures. Agreed: the budget", ["figures.\nAgreed: the budget"]),
        ("The board looked at...", ["The board looked at"]),
        ("The bord looked at the figurs", ["The board looked at the figures"]),
        ("2. Hiring: two peopel are needed", ["2. Hiring. Two people are needed"]),
        ("The council met in the town hall", []),
        ("xyz", []),
        ("", []),
        ("...", []),
    ],
)  # fmt: skip
def test_a_quote_is_found_exactly_or_loosely_or_with_a_few_mistakes(quote, found):
    assert places(quote) == found


def edits(one, other):
    """The edit distance, by its definition."""
    row = list(range(len(other) + 1))
    for at, char in enumerate(one, 1):
        before, row = row, [at]
        for to, also in enumerate(other, 1):
            row.append(min(before[to - 1] + (char != also), row[-1] + 1, before[to] + 1))
    return row[-1]


@given(st.text("abc", min_size=1, max_size=8), st.text("abc", max_size=12))
def test_the_nearest_part_of_a_text_has_the_fewest_edits(wanted, text):
    mistakes, first, last = _nearest(wanted, text)
    parts = [text[a:b] for a in range(len(text) + 1) for b in range(a, len(text) + 1)]
    assert mistakes == min(edits(wanted, part) for part in parts)
    assert edits(wanted, text[first:last]) == mistakes


WORDS = st.lists(st.text(string.ascii_lowercase, min_size=2, max_size=7), min_size=12, max_size=60)


@given(WORDS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_a_quote_with_a_few_mistakes_is_found_about_where_it_stands(words, rand, mistakes):
    text = " ".join(f"{word}{at}" for at, word in enumerate(words))
    first = rand.randrange(len(words) - 8)
    quote = " ".join(text.split()[first : first + 8])
    at = text.find(quote)
    spoilt = list(quote)
    for one in rand.sample(range(1, len(quote) - 1), min(mistakes, len(quote) // 8)):
        spoilt[one] = rand.choice("#~")
    found = list(QuotedText(text).places("".join(spoilt)))
    assert any(abs(start - at) <= 3 and abs(end - at - len(quote)) <= 3 for start, end in found)


def test_a_quote_that_is_not_there_is_given_up_soon():
    rand = random.Random(1)
    text = " ".join(rand.choice(["the", "board", "agreed", "on", "more"]) for _ in range(60_000))
    quoted = QuotedText(text)
    for number in range(20):
        quote = f"on that the bo{number}rd nev{number}r had agreed with the b{number}ard"
        assert list(quoted.places(quote)) == []


def spans(proposals, text=MINUTES):
    parts, problems = located(text, [Proposal(*one) for one in proposals])
    return [(one.title, text[one.start : one.end]) for one in parts], problems


def test_parts_begin_and_end_where_their_quotes_stand():
    found, problems = spans([
        ("Budget", "1. Budget.", "not more."), ("Hiring", "2. Hiring.", "by June."),
        ("Office", "3. Office.", ""),
    ])  # fmt: skip
    assert problems == []
    assert [title for title, _ in found] == ["Budget", "Hiring", "Office"]
    assert found[0][1].startswith("1. Budget.")
    assert found[0][1].endswith("not more.")
    assert found[1][1].endswith("by June.")
    assert found[2][1] == "3. Office. Nothing was agreed.\n"


def test_a_quote_that_stands_there_several_times_is_taken_in_the_order_of_the_parts():
    text = "Item: a. So agreed. End.\nItem: b. End.\nItem: c. End. And more. End.\n"
    found, problems = spans([("a", "Item:", "End."), ("b", "Item:", "End."), ("c", "Item:", "End.")],
                            text)  # fmt: skip
    assert problems == []
    assert [one for _, one in found] == text.strip().split("\n")


def test_quotes_that_are_not_there_are_named_with_their_part():
    _, problems = spans([
        ("Budget", "1. Budget.", "the chair closed the meeting"), ("Gone", "Once upon a time", "x"),
        ("Empty", " ", "by June."), ("Back", "2. Hiring.", "Minutes of May 5"),
    ])  # fmt: skip
    assert len(problems) == 4
    text = "; ".join(problems)
    assert "part 1 ('Budget'): its last_words 'the chair closed the meeting' do not stand" in text
    assert "part 2 ('Gone'): its first_words 'Once upon a time' do not stand in the text" in text
    assert "part 3 ('Empty'): its first_words are empty" in text
    assert (
        "part 4 ('Back'): its last_words 'Minutes of May 5' do not stand in the text behind" in text
    )


@given(
    text=st.text("ab .\n", max_size=80),
    cuts=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=6),
    fills=st.booleans(),
)
def test_covered_parts_do_not_overlap_and_lose_nothing(text, cuts, fills):
    size = len(text)
    parts = [
        Part(start=min(a, size), end=min(size, max(a, b)), title=f"t{at}")
        for at, (a, b) in enumerate(cuts)
    ]
    found = covered(text, parts, cut=(lambda gap: [(0, len(gap))]) if fills else None)
    end = 0
    for one in found.parts:
        assert end <= one.start < one.end <= size
        end = one.end
    kept = "".join(text[one.start : one.end] for one in found.parts)
    if fills:
        assert [c for c in kept if c.isalnum()] == [c for c in text if c.isalnum()]
    missed = sum(not c.isspace() for one in found.parts if not one.title
                 for c in text[one.start : one.end])  # fmt: skip
    assert not fills or missed == found.missed
    assert {one.title for one in found.parts} <= {"", *(one.title for one in parts)}


def test_of_two_parts_that_overlap_the_later_has_what_both_have():
    found = covered("aaabbbccc", [Part(start=0, end=6, title="x"), Part(start=3, end=9, title="y")],
                    cut=None)  # fmt: skip
    assert [(one.start, one.end, one.title) for one in found.parts] == [(0, 3, "x"), (3, 9, "y")]
    assert (found.missed, found.overlaps) == (0, 1)


@pytest.mark.parametrize(
    ("spans", "flat"),
    [
        (["a 0 9", "b 3 5"], ["a 0 3", "b 3 5", "a 5 9"]),
        (["a 0 9", "b 2 3", "c 4 5"], ["a 0 2", "b 2 3", "a 3 4", "c 4 5", "a 5 9"]),
        (["a 0 9", "b 2 7", "c 3 5"], ["a 0 2", "b 2 3", "c 3 5", "b 5 7", "a 7 9"]),
        (["a 0 6", "b 3 5", "c 4 9"], ["a 0 3", "b 3 4", "c 4 9"]),
        (["a 0 9", "b 0 4"], ["b 0 4", "a 4 9"]),
        (["a 0 5", "b 0 5"], ["b 0 5"]),
        (["a 0 5", "b 5 9"], ["a 0 5", "b 5 9"]),
    ],
)
def test_text_behind_a_part_within_another_is_of_the_outer_one(spans, flat):
    parts = [
        Part(start=int(start), end=int(end), title=title)
        for title, start, end in map(str.split, spans)
    ]
    found = covered("abcdefghi", parts, cut=None)
    assert [f"{one.title} {one.start} {one.end}" for one in found.parts] == flat
    assert found.missed == 9 - sum(one.end - one.start for one in found.parts)


def test_marks_between_parts_belong_to_the_part_before_and_other_text_makes_parts():
    text = "one\n---\ntwo. Then three"
    parts = [Part(start=0, end=3, title="1"), Part(start=8, end=11, title="2")]
    found = covered(text, parts, cut=make_splitter("markdown", chunk_tokens=100))
    assert [text[one.start : one.end] for one in found.parts] == ["one\n---", "two", ". Then three"]
    assert [one.title for one in found.parts] == ["1", "2", ""]
    left_out = covered(text, parts, cut=None)
    assert [text[one.start : one.end] for one in left_out.parts] == ["one", "two"]
    assert left_out.missed == found.missed == len(".Thenthree")


@given(st.text("ab# \n", max_size=200), st.integers(1, 20))
def test_the_pieces_of_a_large_text_are_the_text(text, most):
    cut = make_splitter("markdown", chunk_tokens=most)
    found = tiles(text, cut, most=lambda one: len(one) > 4 * most)
    assert "".join(text[one.start : one.end] for one in found) == text


def test_a_shape_checks_quotes_and_its_own_example_passes():
    for text in (MINUTES, "a", "a\n\nb"):
        for schema in (PARTS_SCHEMA, SUBTASKS_SCHEMA):
            shape = PlanShape(shape_of(schema), text)
            assert shape.checked(shape.example())
    shape = PlanShape(shape_of(PARTS_SCHEMA), MINUTES)
    one = {"title": "x", "first_words": "not in there at all", "last_words": ""}
    with pytest.raises(WrongShapeError, match=r"part 1 \('x'\): its first_words"):
        shape.checked(json.dumps({"parts": [one]}))
    with pytest.raises(WrongShapeError):
        shape.checked('{"sections": []}')
    assert shape.checked('{"parts": []}') == '{"parts":[]}'
    tasks = PlanShape(shape_of(SUBTASKS_SCHEMA), MINUTES)
    with pytest.raises(WrongShapeError, match="subtask 1 is empty"):
        tasks.checked('{"subtasks": [{"title": "x", "subtask": " "}]}')
    with pytest.raises(WrongShapeError, match="no subtask"):
        tasks.checked('{"subtasks": []}')


def test_a_prompt_with_a_subtask_asks_for_subtasks():
    job = {"model": "fake", "split": "model"}
    parts = make_spec(**job, prompt="{title}: {input}", split_prompt="A part is a {{decision}}.")
    assert not wants_subtasks(parts)
    prompt = Template.parse(plan_prompt(parts)).render({"input": "TEXT"})
    assert "A part is a {decision}." in prompt
    assert prompt.endswith("TEXT")
    steps = [{"name": "a", "prompt": "{subtask} {input}"}]
    assert wants_subtasks(make_spec(**job, steps=steps))
    assert "subtask" in plan_prompt(make_spec(**job, prompt="{input} {fanout.subtask}"))
