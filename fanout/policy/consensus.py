"""Consensus: ask a question several times, and stop when the majority is certain enough.

The rule to stop is that of adaptive consistency (https://arxiv.org/abs/2305.11860): the shares of the two
most frequent answers have a Beta posterior with a uniform prior, and sampling ends when the first is
the more frequent one with the wanted probability. It also ends when the answers left cannot change
the winner.
"""

from __future__ import annotations

from math import exp, lgamma, log
from typing import TYPE_CHECKING, Self

import msgspec

from fanout.core.lanes import Lane  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.core.records import (
        Outcome,
    )

__all__ = ["OTHERS", "Candidate", "Poll", "Question", "Tally", "is_decided",
           "majority_certainty", "question"]  # fmt: skip

# The answers that an outcome names with their votes, the longest of each in characters, and all but the
# winner: free texts may be long, and all different.
_MOST_NAMED = 20
_NAMED_CHARS = 2_000
_NAMED_CHARS_IN_ALL = 10_000
# Different answers without their text. One that comes less often has no majority.
_MOST_TALLIES = 1_000
# Up to here, sums are exact; beyond, terms that change no digit are left out.
_MOST_EXACT = 200
_NEGLIGIBLE = 1e-18
# The name of all other answers. No answer is empty.
OTHERS = ""


def majority_certainty(first: int, second: int) -> float:
    """Return the probability that an answer with ``first`` votes is more frequent than the second.

    It is 1 - I(1/2; first + 1, second + 1), the regularised incomplete beta function: for whole
    numbers, the probability of more than ``second`` heads in ``first + second + 1`` tosses of a coin.
    """
    if first < second:
        return _few_heads(second + first + 1, first)
    return 0.5 if first == second else 1.0 - _few_heads(first + second + 1, second)


def _few_heads(tosses: int, most: int) -> float:
    """Return the probability of at most ``most`` heads, which is less than half of the tosses."""
    if tosses <= _MOST_EXACT:
        ways = all_ways = 1
        for heads in range(1, most + 1):
            ways = ways * (tosses - heads + 1) // heads
            all_ways += ways
        return all_ways / (1 << tosses)
    term = total = 1.0
    for heads in range(most, 0, -1):
        # The terms shrink from the last one on.
        term *= heads / (tosses - heads + 1)
        total += term
        if term < _NEGLIGIBLE * total:
            break
    ways_log = lgamma(tosses + 1) - lgamma(most + 1) - lgamma(tosses - most + 1)
    return total * exp(ways_log - tosses * log(2.0))


def is_decided(votes: Sequence[int], *, left: int, certainty: float) -> bool:
    """Say whether no further answer is needed.

    Args:
        votes: The votes of each answer so far.
        left: How many answers may still be asked for.
        certainty: The wanted probability that the majority stays the majority.
    """
    if left <= 0:
        return True
    first, second = sorted((*votes, 0, 0), reverse=True)[:2]
    # On a tie, the answer that had so many votes first wins.
    return first >= second + left or majority_certainty(first, second) >= certainty


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """The next question of a consensus: the position of its model, and the number of its sample."""

    model: int
    sample: int


def question(number: int, *, models: int) -> Question:
    """Return the question ``number``, from 0: each model in turn, then the next sample of each."""
    sample, model = divmod(number, models)
    return Question(model=model, sample=sample)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that wins so far, or may win and has a short text.

    Attributes:
        key: Equal for equal answers.
        answer: The answer as it was first given, or first again after its text was left out.
        votes: How often it was given.
        since: How many answers had been asked for when it got the last of these votes.
        finish_reason: Why this first one ended, in the provider's words.
        lane: How this first one was bought; see Outcome.
        is_cut: Whether it was cut at its limit of tokens.
        model: The model that gave it, where that is not the one that was asked first.
    """

    key: bytes
    answer: str
    votes: int
    since: int
    finish_reason: str | None = None
    lane: Lane | None = None
    is_cut: bool = False
    model: str | None = None


class Tally(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The votes of an answer whose text is left out. See Candidate."""

    key: bytes
    votes: int
    since: int


class Poll(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answers of a consensus so far, in bounded space.

    An answer can only become the winner when it is given once more, and then its text is there: so
    texts are kept for the winner, and for the few that are named with their votes.

    Attributes:
        asked: How many answers were asked for, with those that failed.
        candidates: The answers with their texts, those with most votes first.
        tallies: The other answers.
        forgotten: The votes for still others, which are no longer told apart.
    """

    asked: int = 0
    candidates: tuple[Candidate, ...] = ()
    tallies: tuple[Tally, ...] = ()
    forgotten: int = 0

    def with_vote(self, key: bytes, outcome: Outcome) -> Self:
        """Return the poll with one more answer, which votes for those with the same key.

        An outcome without an answer has no vote.
        """
        asked = self.asked + 1
        if outcome.output is None:
            return msgspec.structs.replace(self, asked=asked)
        known = next((one for one in self._all if one.key == key), None)
        votes = 1 + (known.votes if known else 0)
        if isinstance(known, Candidate):
            voted = msgspec.structs.replace(known, votes=votes, since=asked)
        else:
            voted = Candidate(
                key=key,
                answer=outcome.output,
                votes=votes,
                since=asked,
                finish_reason=outcome.finish_reason,
                lane=outcome.lane,
                is_cut=outcome.is_cut,
                model=outcome.model,
            )
        before = [one for one in self.candidates if one is not known]
        candidates, left_out = _with_texts(sorted([*before, voted], key=_rank))
        tallies = [one for one in self.tallies if one is not known] + left_out
        forgotten = self.forgotten
        while len(tallies) > _MOST_TALLIES:
            least = min(tallies, key=lambda one: (one.votes, one.since))
            tallies.remove(least)
            forgotten += least.votes
        return type(self)(
            asked=asked,
            candidates=tuple(candidates),
            tallies=tuple(tallies),
            forgotten=forgotten,
        )

    def is_decided(self, *, most: int, certainty: float) -> bool:
        """Say whether no further answer is needed, of ``most`` that may be asked for."""
        votes = [one.votes for one in self._all]
        return is_decided(votes, left=most - self.asked, certainty=certainty)

    @property
    def _all(self) -> Iterator[Candidate | Tally]:
        yield from self.candidates
        yield from self.tallies

    @property
    def winner(self) -> Candidate | None:
        """The answer with most votes; on a tie, the one that had so many first."""
        return self.candidates[0] if self.candidates else None

    def won(self, outcome: Outcome) -> Outcome:
        """Return an outcome with the answer of the majority; as it is, if there is no answer."""
        winner = self.winner
        if winner is None:
            return outcome
        return msgspec.structs.replace(
            outcome,
            output=winner.answer,
            kind=None,
            message=None,
            finish_reason=winner.finish_reason,
            lane=winner.lane,
            is_cut=winner.is_cut,
            model=winner.model,
        )

    def votes(self) -> dict[str, int]:
        """Return the votes by answer, the winner first.

        At most 20 answers of up to 2,000 characters are named, of 10,000 in all beside the winner;
        OTHERS has the votes of all others. The winner is always named, by its beginning if it is longer.
        """
        named = {_name(one): one.votes for one in self.candidates}
        others = sum(one.votes for one in self.tallies) + self.forgotten
        return named | {OTHERS: others} if others else named


def _rank(one: Candidate | Tally) -> tuple[int, int]:
    return -one.votes, one.since


def _name(one: Candidate) -> str:
    return one.answer.strip()[:_NAMED_CHARS]


def _with_texts(ranked: Sequence[Candidate]) -> tuple[list[Candidate], list[Tally]]:
    """Return the answers that keep their texts, the winner first, and the others."""
    kept: list[Candidate] = []
    left_out: list[Tally] = []
    names: set[str] = set()
    left_chars = _NAMED_CHARS_IN_ALL
    for one in ranked:
        size = len(one.answer) if kept else 0
        is_short = size <= min(_NAMED_CHARS, left_chars)
        if is_short and len(kept) < _MOST_NAMED and _name(one) not in names:
            kept.append(one)
            names.add(_name(one))
            left_chars -= size
        else:
            left_out.append(Tally(key=one.key, votes=one.votes, since=one.since))
    return kept, left_out
