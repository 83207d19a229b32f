"""Scores of answers whose truth is known, the questions, and the mock that forgets by position."""

from __future__ import annotations

import json
import random
from statistics import mean

import pytest
from recall.forgetful import Forgetful, recall
from recall.questions import (
    NOTHING,
    QUESTIONS,
    amendments,
    count_task,
    fact_task,
    reviews,
    span_task,
    split_fact_task,
)
from recall.scoring import Score, count_score, fact_score, span_score

from fanout.aggregators import Part, render_input
from fanout.core.answer_shape import shape_of
from fanout.core.fold_words import NOTHING_TO_ADD
from fanout.llm.base import LLMRequest

FACTS = {"Oslo": ("11111", 0), "Lima": ("22222", 3)}
SOURCES = {"s-aaaaaaa": 0, "s-bbbbbbb": 3}
LISBON = "The access code of the Lisbon office is 48213."
CAIRO = "The access code of the Cairo office is 10001."
CITING = "\n\nBehind each statement of your answer, cite the sources that it is from: ..."
CODES = "Which access codes of offices does this text say?"


@pytest.mark.parametrize(
    ("answer", "right", "wrong", "cited"),
    [
        ("Oslo is 11111, Lima is 22222.", 2, 0, 0),
        ("- Lima: 22222\n- Oslo: 11111\n- Oslo: 11111", 2, 0, 0),
        ("The codes of Oslo and Lima are 11111 and 22222.", 0, 1, 0),
        ("Oslo is 22222, and 11111.", 0, 1, 0),
        ("11111 is one, and Oslo has 33333.", 0, 2, 0),
        ("Oslo 11111 [s-aaaaaaa], Lima 22222 [s-aaaaaaa].", 2, 0, 1),
        ("Oslo 111112, Bolima 22222.", 0, 1, 0),
        ("None at all, in 1865.", 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
def test_a_code_belongs_to_the_nearest_name_before_it(answer, right, wrong, cited):
    assert fact_score(answer, FACTS, SOURCES) == Score(2, right, wrong, cited)


@pytest.mark.parametrize(
    ("answer", "right", "wrong", "off"),
    [
        ("12 positive of 20", 1, 0, 0.0),
        ("There are 10 positive reviews of 20.", 0, 1, 0.1),
        ("1,200 of them", 0, 1, 1.0),
        ("In v2.12 and 3.5 of s-2: 11", 0, 1, 0.05),
        ("Most are positive.", 0, 0, 1.0),
        (None, 0, 0, 1.0),
    ],
)
def test_the_first_number_is_the_count(answer, right, wrong, off):
    score = count_score(answer, 12, 20)
    assert score[:3] == (1, right, wrong)
    assert score.off == pytest.approx(off)


@pytest.mark.parametrize(
    ("answer", "right", "wrong", "cited"),
    [
        ("The Poll-Tax.", 1, 0, 0),
        ("poll tax [s-aaaaaaa]", 1, 0, 1),
        ("poll tax [s-bbbbbbb]", 1, 0, 0),
        ("poll taxes", 0, 1, 0),
        (f"{'word ' * 39}poll tax", 0, 1, 0),
        ("Not stated.", 0, 0, 0),
        ("", 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
def test_a_short_answer_has_the_span_in_it(answer, right, wrong, cited):
    assert span_score(answer, "poll tax", NOTHING, 0, SOURCES) == Score(1, right, wrong, cited)


def test_each_question_is_answered_in_one_amendment_alone():
    texts = amendments()
    assert len(texts) == 27
    for question in QUESTIONS:
        has_it = [number for number, text in enumerate(texts, 1) if question.span in text]
        assert has_it == [question.number]
        assert not any(question.span in text for text, _ in reviews())
        assert question.span not in question.text


def test_facts_are_planted_once_each_and_nothing_else_is_changed():
    texts = amendments()
    task = fact_task(texts, 20, 1)
    assert task == task.__class__(**{**vars(fact_task(texts, 20, 1)), "score": task.score})
    lines = [
        line for text in task.texts for line in text.split("\n") if line.startswith("The access")
    ]
    assert len(lines) == len(set(lines)) == 20
    left = [
        "\n".join(line for line in text.split("\n") if line not in lines) for text in task.texts
    ]
    assert left == texts
    assert task.score("\n".join(lines), {}) == Score(20, 20, 0)


def test_the_count_of_a_sample_is_that_of_its_labels():
    labels = dict(reviews())
    task = count_task(50, 3)
    truth = sum(labels[text] for text in task.texts)
    assert len(task.texts) == 50
    assert task.score(f"{truth} positive of 50", {}).right == 1
    assert task.score(f"{truth + 1} positive of 50", {}).right == 0


def test_recall_is_that_of_a_short_prompt_at_the_ends_and_least_in_the_middle():
    assert recall(0.5, 1_000, slip=0.0) == 1.0
    assert recall(0.0, 100_000, slip=0.0) == recall(1.0, 100_000, slip=0.0) == 1.0
    assert recall(0.5, 4_000, slip=0.0) == pytest.approx(0.78)
    assert recall(0.5, 1_000_000, slip=0.0) == pytest.approx(0.5)
    assert recall(0.5, 4_000) < recall(0.25, 4_000) < recall(0.1, 4_000) < 1
    assert recall(0.3, 4_000) == pytest.approx(recall(0.7, 4_000))


def asked(prompt, *, seed=0, slip=0.0, shape=None):
    model = Forgetful(dict(reviews()), seed=seed, slip=slip)
    return model(LLMRequest(prompt=prompt, shape=shape))


@pytest.mark.parametrize("depth", [0.02, 0.25, 0.5])
def test_the_mock_forgets_as_often_as_it_is_said_to(depth):
    filler = "x" * 79 + "\n"
    before, after = filler * round(400 * depth), filler * round(400 * (1 - depth))
    prompt = f"{CODES}\n{before}{LISBON}\n{after}"
    found = [asked(prompt, seed=seed) == LISBON for seed in range(400)]
    expected = recall(prompt.index(LISBON) / len(prompt), 8_000, slip=0.0)
    assert mean(found) == pytest.approx(expected, abs=0.07)
    assert asked(prompt, seed=7) == asked(prompt, seed=7)


def test_the_mock_states_the_facts_of_a_text_and_of_answers():
    assert asked(f"A text.\n{LISBON}\nMore.\n\n{CODES}") == LISBON
    assert asked(f"A text.\n\n{CODES}") == NOTHING
    parts = [Part(group="", text=f"[a]\n{LISBON}\n{CAIRO}"), Part(group="", text=f"[b]\n{LISBON}")]
    assert asked(f"{render_input(parts, level=0)}\n{CODES}") == f"{LISBON}\n{CAIRO}"


def test_the_mock_knows_a_fact_over_two_paragraphs_only_if_it_sees_both():
    task = split_fact_task(["A text."], 1, 5)
    [text] = task.texts
    first, second = [line for line in text.split("\n") if line != "A text."]
    whole = asked(f"{text}\n\n{CODES}")
    assert task.score(whole, {}) == Score(1, 1, 0)
    fenced = (
        f"<before id=aa22>\n{first}\n</before id=aa22>\n<document id=bb22>\n{second}\n"
        f"</document id=bb22>\n\n{CODES}"
    )
    assert asked(fenced) == whole
    assert asked(f"{second}\n\n{CODES}") == asked(f"{first}\n\n{CODES}") == NOTHING


def test_the_mock_cites_the_source_that_a_statement_stands_in_and_keeps_citations():
    fence = "=== abcdefghijkl"
    leaf = f"{fence} [s-aaaaaaa]\n{CAIRO}\n\n{fence} [s-bbbbbbb]\n{LISBON}\n\n{fence}"
    told = asked(f"{leaf}\n{CODES}{CITING}")
    assert told == f"{CAIRO[:-1]} [s-aaaaaaa].\n{LISBON[:-1]} [s-bbbbbbb]."
    assert asked(f"{fence}\n{told}\n\n{fence}\n{CODES}{CITING}") == told
    question = QUESTIONS[0]
    leaf = f"{fence} [s-aaaaaaa]\nthe Owner\n\n{fence}"
    said = asked(f"{leaf}\n{question.text}{CITING}")
    assert said == "Owner [s-aaaaaaa]"
    assert asked(f"{fence}\n{said}\n\n{fence}\n{question.text}{CITING}") == said


def test_the_mock_counts_labels_reviews_and_counts():
    some = reviews()[:20]
    truth = sum(is_positive for _, is_positive in some)
    text = "\n".join(one for one, _ in some)
    assert asked(f"{text}\n\nHow many?") == f"{truth} positive of 20"
    label = shape_of(None, ("negative", "positive"))
    assert asked(f"{some[0][0]}\n\nWhich?", shape=label) in {"negative", "positive"}
    parts = [Part(group="", text=f"[a]\n{one}") for one in ("positive", "negative", "positive")]
    assert asked(f"{render_input(parts, level=0)}\n\nHow many?") == "2 positive of 3"
    parts = [Part(group="", text="2 positive of 3"), Part(group="", text="5 positive of 9")]
    assert asked(f"{render_input(parts, level=1)}\n\nHow many?") == "7 positive of 12"


def test_the_mock_has_nothing_to_add_to_an_answer_that_has_all():
    head = "(The first is the answer so far, made from 2 answers; further answers follow.)\n\n"
    parts = [
        Part(group="", text=CAIRO),
        Part(group="", text="[b]\nnone"),
        Part(group="", text=CAIRO),
    ]
    assert asked(f"{head}{render_input(parts, level=0)}\n{CODES}") == NOTHING_TO_ADD
    parts[1] = Part(group="", text=LISBON)
    assert asked(f"{head}{render_input(parts, level=0)}\n{CODES}") == f"{CAIRO}\n{LISBON}"


def test_the_mock_answers_a_question_with_a_score_where_it_is_asked_for_one():
    task = span_task(QUESTIONS[0], ["A film."], 1)
    shape = shape_of({"type": "object"}, ())
    told = [json.loads(asked(task.ask_one.format(input=text), shape=shape)) for text in task.texts]
    assert sorted(one["score"] for one in told) == [0] * 27 + [100]
    [best] = [one["answer"] for one in told if one["score"]]
    assert task.score(best, {}) == Score(1, 1, 0)


def test_chance_depends_on_the_seed_alone():
    random.seed(1)
    first = asked(f"{LISBON}\n{CODES}", seed=3, slip=0.5)
    random.seed(2)
    assert asked(f"{LISBON}\n{CODES}", seed=3, slip=0.5) == first
