"""Questions over the texts of ``examples/`` whose answers are known: counts, planted facts and spans."""

from __future__ import annotations

import csv
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recall.scoring import count_score, fact_score, span_score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from recall.scoring import Score

__all__ = [
    "ANNOUNCED",
    "FACT",
    "NOTHING",
    "QUESTIONS",
    "Question",
    "Task",
    "amendments",
    "count_task",
    "fact_task",
    "reviews",
    "span_task",
    "split_fact_task",
]

_EXAMPLES = Path(__file__).parents[2] / "examples"
_PLACES = (
    "Lisbon",
    "Cairo",
    "Oslo",
    "Lima",
    "Quito",
    "Accra",
    "Dakar",
    "Hanoi",
    "Seoul",
    "Kyoto",
    "Perth",
    "Turin",
    "Lyon",
    "Ghent",
    "Basel",
    "Graz",
    "Porto",
    "Malmo",
    "Bergen",
    "Tartu",
    "Riga",
    "Vilnius",
    "Gdansk",
    "Brno",
    "Split",
    "Varna",
    "Izmir",
    "Haifa",
    "Tunis",
    "Rabat",
)
FACT = "The access code of the {name} office is {code}."
# A fact over two paragraphs, neither of which has all of it.
ANNOUNCED = ("The next paragraph has the access code of the {name} office.", "It is {code}.")
NOTHING = "NOT STATED"
_WHITE = re.compile(r"\s+")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question whose answer stands in one amendment.

    Attributes:
        text: The question.
        number: The number of the amendment, from 1.
        span: The answer, as it stands there.
    """

    text: str
    number: int
    span: str


QUESTIONS = (
    Question(
        text="Without whose consent may no soldier be quartered in a house?", number=3, span="Owner"
    ),
    Question(
        text="What must the value in controversy exceed for a trial by jury at common law?",
        number=7,
        span="twenty dollars",
    ),
    Question(text="What may bail not be?", number=8, span="Excessive"),
    Question(
        text="To whom are the powers reserved that are not delegated to the United States?",
        number=10,
        span="reserved to the States",
    ),
    Question(
        text="On what may Congress lay taxes without apportionment?", number=16, span="incomes"
    ),
    Question(
        text="What is necessary to the security of a free State?",
        number=2,
        span="well regulated Militia",
    ),
    Question(text="Which tax may be no reason to deny the vote?", number=24, span="poll tax"),
    Question(text="From what age may citizens vote?", number=26, span="eighteen years"),
    Question(
        text="What must intervene before a law on the pay of Senators takes effect?",
        number=27,
        span="election of Representatives",
    ),
    Question(
        text="What shall not exist within the United States, except as a punishment?",
        number=13,
        span="slavery",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question over texts, and how its answer is scored.

    Attributes:
        kind: The kind of question.
        texts: One text for each document.
        ask_one: The prompt for one text, with ``{input}``.
        ask_all: The prompt for the answers about all texts.
        ask_whole: The prompt for all texts at once.
        score: Takes the answer, and the documents by the id by which the answer cites them.
        answer_tokens: The longest answer about all texts.
        fields: Further fields of the job for one text.
    """

    kind: str
    texts: Sequence[str]
    ask_one: str
    ask_all: str
    ask_whole: str
    score: Callable[[str | None, Mapping[str, int]], Score]
    answer_tokens: int
    fields: dict[str, Any] = field(default_factory=dict)


def amendments() -> list[str]:
    """Return the amendments in order, each paragraph in one line."""
    files = sorted((_EXAMPLES / "amendments").glob("*.txt"))
    return ["\n\n".join(_paragraphs(file.read_text(encoding="utf-8"))) for file in files]


def _paragraphs(text: str) -> list[str]:
    return [" ".join(_WHITE.split(one.strip())) for one in _PARAGRAPHS.split(text) if one.strip()]


def reviews() -> list[tuple[str, bool]]:
    """Return the reviews, each in one line, and whether each is positive."""
    path = _EXAMPLES / "reviews/movie-reviews.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [(" ".join(row["text"].split()), row["label"] == "positive") for row in rows]


def fact_task(texts: Sequence[str], planted: int, seed: int) -> Task:
    """Return the question for facts, each planted between two lines of one of the texts."""
    rng, facts, made = _planting(texts, planted, seed)
    for at, (name, code) in facts.items():
        lines = made[at].split("\n")
        lines.insert(rng.randint(0, len(lines)), FACT.format(name=name, code=code))
        made[at] = "\n".join(lines)
    return _fact_task("facts", made, facts)


def split_fact_task(texts: Sequence[str], planted: int, seed: int) -> Task:
    """Return the question for facts that go over two paragraphs of one of the texts."""
    rng, facts, made = _planting(texts, planted, seed)
    for at, (name, code) in facts.items():
        lines = [line for line in made[at].split("\n") if line]
        place = rng.randint(0, len(lines))
        lines[place:place] = [one.format(name=name, code=code) for one in ANNOUNCED]
        made[at] = "\n".join(lines)
    return _fact_task("split facts", made, facts)


def _planting(
    texts: Sequence[str], planted: int, seed: int
) -> tuple[random.Random, dict[int, tuple[str, str]], list[str]]:
    """Return the facts by the text that they are planted in, and the texts."""
    rng = random.Random(seed)  # noqa: S311 - repeatable
    names = rng.sample(_PLACES, planted)
    codes = rng.sample(range(10_000, 100_000), planted)
    places = sorted(rng.sample(range(len(texts)), planted))
    pairs = [(name, str(code)) for name, code in zip(names, codes, strict=True)]
    return rng, dict(zip(places, pairs, strict=True)), list(texts)


def _fact_task(kind: str, texts: list[str], facts: dict[int, tuple[str, str]]) -> Task:
    by_name = {name: (code, at) for at, (name, code) in facts.items()}
    form = FACT.format(name="X", code="N")
    return Task(
        kind=kind,
        texts=texts,
        ask_one=(
            "{input}\n\nWhich access codes of offices does this text say? Answer in the form "
            f'"{form}", or with {NOTHING}.'
        ),
        ask_all=(
            "Answers about many texts:\n\n{input}\n\nWhich access codes of offices do they say? List "
            f'each once, in the form "{form}".'
        ),
        ask_whole=(
            "{input}\n\nWhich access codes of offices do these texts say? List each once, in the form "
            f'"{form}".'
        ),
        score=lambda answer, cited: fact_score(answer, by_name, cited),
        answer_tokens=18 * len(facts) + 40,
        fields={"max_tokens": 24},
    )


def count_task(count: int, seed: int) -> Task:
    """Return the question how many reviews of a sample are positive."""
    rng = random.Random(seed)  # noqa: S311 - repeatable
    share = rng.uniform(0.2, 0.8)
    positive = [text for text, is_positive in reviews() if is_positive]
    negative = [text for text, is_positive in reviews() if not is_positive]
    truth = round(share * count)
    texts = rng.sample(positive, truth) + rng.sample(negative, count - truth)
    rng.shuffle(texts)
    return Task(
        kind="counts",
        texts=texts,
        ask_one="{input}\n\nWhat is the sentiment of this movie review?",
        ask_all=(
            "Sentiments of movie reviews:\n\n{input}\n\nHow many reviews are positive, and of how many? "
            'Answer in the form "N positive of M".'
        ),
        ask_whole=(
            "{input}\n\nHow many of these movie reviews, one a line, are positive? Answer in the form "
            '"N positive of M".'
        ),
        score=lambda answer, _cited: count_score(answer, truth, count),
        answer_tokens=32,
        fields={"choices": ["negative", "positive"]},
    )


def span_task(
    question: Question, others: Sequence[str], seed: int, *, most: int = 27, longest: int = 10_000
) -> Task:
    """Return a question whose answer stands in one of the texts, in any order.

    Args:
        question: The question.
        others: Texts beside the amendments.
        seed: Decides the order.
        most: How many amendments are among the texts.
        longest: The longest amendment that is one of the texts, in characters.
    """
    rng = random.Random(f"{seed} {question.text}")  # noqa: S311 - repeatable
    known = amendments()
    has_it = known.pop(question.number - 1)
    short = [text for text in known if len(text) <= longest]
    texts = [has_it, *rng.sample(short, min(most - 1, len(short))), *others]
    rng.shuffle(texts)
    at = texts.index(has_it)
    ask = f"Answer in a few words, or with {NOTHING}.\nQuestion: {question.text}"
    return Task(
        kind="questions",
        texts=texts,
        ask_one=f"{{input}}\n\n{ask}",
        ask_all=f"Answers from many texts:\n\n{{input}}\n\n{ask}",
        ask_whole=f"{{input}}\n\n{ask}",
        score=lambda answer, cited: span_score(answer, question.span, NOTHING, at, cited),
        answer_tokens=32,
        fields={"max_tokens": 16},
    )
