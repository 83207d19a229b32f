"""A model that does what it is asked, but forgets by position: most in the middle of a long prompt.

It follows the questions of ``recall.questions``. It has read the texts before, so to speak: it knows which
review is positive, and where an answer stands. Whether it notices a statement in a prompt depends on the
seed, the statement, and its position alone.
"""

from __future__ import annotations

import json
import math
import random
import re
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.fold_words import NOTHING_TO_ADD
from fanout.core.tokens import estimate_tokens
from recall.questions import ANNOUNCED, FACT, NOTHING, QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fanout.llm.base import LLMRequest

__all__ = ["Forgetful", "recall"]

# Up to so many tokens nothing is lost in the middle; each doubling loses so much more there, up to the most.
# At 4,000 tokens that is 22 %, which is about what Liu et al. (2023), Lost in the Middle, saw.
_SHORT_TOKENS = 1_000
_LOST_PER_DOUBLING = 0.11
_MOST_LOST = 0.5
_SLIP = 0.01

_CITATION = r"(?: (\[s-[a-z2-7]{7}\]))?"
_GAP = r"(?:\s|</?\w+ id=\w+>)+"
_FACT = re.compile(FACT.replace(".", "").format(name=r"(\w+)", code=r"(\d{5})") + _CITATION + r"\.")
_SPLIT_FACT = re.compile(
    re.escape(ANNOUNCED[0]).replace(r"\{name\}", r"(\w+)")
    + _GAP
    + re.escape(ANNOUNCED[1]).replace(r"\{code\}", r"(\d{5})")
)
_COUNT = re.compile(r"^(\d+) positive of (\d+)" + _CITATION, re.MULTILINE)
_LINE = re.compile(r"^.+$", re.MULTILINE)
_SOURCE_LINE = re.compile(r"^=== \w{12} (\[s-[a-z2-7]{7}\])$", re.MULTILINE)
_FENCE = re.compile(r"^=== \w{12}$", re.MULTILINE)
_CITED_NEAR = re.compile(r"[^\n\[]{0,80}(\[s-[a-z2-7]{7}\])")
_SO_FAR = "(The first is the answer so far"
_CITING = "cite the sources that it is from"


class _Statement(NamedTuple):
    """A statement of a prompt: its words, where it is, and the citation in it, or an empty one."""

    words: tuple[str, ...]
    at: int
    cited: str = ""


def recall(position: float, tokens: int, *, slip: float = _SLIP) -> float:
    """Return the probability that a statement of a prompt is noticed.

    Args:
        position: Where it stands, from 0 to 1.
        tokens: The length of the prompt.
        slip: The share that is missed anywhere.
    """
    doublings = max(0.0, math.log2(max(tokens, 1) / _SHORT_TOKENS))
    lost = min(_LOST_PER_DOUBLING * doublings, _MOST_LOST)
    return (1 - slip) * (1 - lost * (1 - (2 * position - 1) ** 2))


class Forgetful:
    """The model: takes a request, returns its answer.

    Args:
        labels: Whether each review is positive, by its text.
        seed: What decides which statements are noticed.
        slip: The share of statements that are missed anywhere.
    """

    def __init__(
        self, labels: Mapping[str, bool] | None = None, *, seed: int = 0, slip: float = _SLIP
    ) -> None:
        self._labels = labels or {}
        self._seed = seed
        self._slip = slip

    def __call__(self, request: LLMRequest) -> str:
        """Answer a prompt: for one text, for all, for answers, or for the next answers."""
        prompt = request.prompt
        if "access codes" in prompt:
            return self._facts(prompt)
        for question in QUESTIONS:
            if question.text in prompt:
                return self._span(prompt, question.span, has_score=request.shape is not None)
        return self._count(prompt, is_label=request.shape is not None)

    def _noticed(self, prompt: str, found: Iterator[_Statement]) -> list[_Statement]:
        tokens = estimate_tokens(prompt)
        noticed = []
        for one in found:
            chance = random.Random(f"{self._seed} {one.at} {len(prompt)} {one.words}")  # noqa: S311 - repeatable
            if chance.random() < recall(one.at / len(prompt), tokens, slip=self._slip):
                noticed.append(one)
        return noticed

    def _facts(self, prompt: str) -> str:
        matches = [*_FACT.finditer(prompt), *_SPLIT_FACT.finditer(prompt)]
        found = (
            _Statement((one[1], one[2]), one.start(), one[3] if one.re is _FACT else "")
            for one in sorted(matches, key=re.Match.start)
        )
        first: dict[tuple[str, ...], _Statement] = {}
        for one in self._noticed(prompt, found):
            first.setdefault(one.words, one)
        told = first.values()
        if _is_all_known(prompt, [one.at for one in told]):
            return NOTHING_TO_ADD
        lines = [
            FACT.format(name=one.words[0], code=f"{one.words[1]}{_citation(prompt, one)}")
            for one in told
        ]
        return "\n".join(lines) or NOTHING

    def _span(self, prompt: str, span: str, *, has_score: bool) -> str:
        found = (
            _Statement((span,), match.start()) for match in re.finditer(rf"\b{span}\b", prompt)
        )
        noticed = self._noticed(prompt, found)
        if has_score:
            return json.dumps({
                "answer": span if noticed else NOTHING, "score": 100 if noticed else 0,
            })  # fmt: skip
        if _is_all_known(prompt, [one.at for one in noticed[:1]]):
            return NOTHING_TO_ADD
        return f"{span}{_citation(prompt, noticed[0])}" if noticed else NOTHING

    def _count(self, prompt: str, *, is_label: bool) -> str:
        noticed = self._noticed(prompt, self._counted(prompt))
        positive = sum(int(one.words[0]) for one in noticed)
        if is_label:
            return "positive" if positive else "negative"
        if _is_all_known(prompt, [one.at for one in noticed]):
            return NOTHING_TO_ADD
        total = sum(int(one.words[1]) for one in noticed)
        # A count of many cites none: it is no statement of one of them.
        return f"{positive} positive of {total}"

    def _counted(self, prompt: str) -> Iterator[_Statement]:
        """Yield what is to be counted, as a number of positive ones and of all."""
        labels = {**self._labels, "positive": True, "negative": False}
        for line in _LINE.finditer(prompt):
            counted = _COUNT.match(line[0])
            if counted:
                yield _Statement((counted[1], counted[2]), line.start())
            elif line[0] in labels:
                yield _Statement((str(int(labels[line[0]])), "1"), line.start())


def _is_all_known(prompt: str, places: list[int]) -> bool:
    """Say whether a prompt has an answer so far, and all that was noticed stands in it."""
    at = prompt.find(_SO_FAR)
    fence = _FENCE.search(prompt, at) if at >= 0 else None
    if fence is None:
        return False
    ends = prompt.find(f"\n{fence[0]}\n", fence.end())
    return all(place < ends for place in places)


def _citation(prompt: str, one: _Statement) -> str:
    """Return the citation of a statement: its own, or that of the source that it stands in."""
    if one.cited:
        return f" {one.cited}"
    if _CITING not in prompt:
        return ""
    sources = [match[1] for match in _SOURCE_LINE.finditer(prompt, 0, one.at)]
    if sources:
        return f" {sources[-1]}"
    after = _CITED_NEAR.match(prompt, one.at)
    return f" {after[1]}" if after else ""
