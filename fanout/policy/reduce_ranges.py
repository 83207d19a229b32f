"""How many calls a reduce makes of so many answers, as a range: by a tree, a chain, or comparisons."""

from __future__ import annotations

from math import ceil, log

from fanout.policy.clusters import LEAST_FULL
from fanout.policy.estimates import Calls

__all__ = [
    "cluster_range",
    "comparisons_of",
    "least_refine_range",
    "least_tree_range",
    "refine_range",
    "tree_calls",
    "tree_range",
]

_EULER = 0.5772156649
# How full the prompts of a reduce are, if there are several.
_FULL = 0.8
# Tokens of the line that names an answer in a reduce: about how many, and the fewest.
_PLACE_TOKENS, _LEAST_PLACE_TOKENS = 20, 4


def tree_calls(
    answers: float,
    *,
    room: float,
    answer: float,
    partial: float,
    full: float = _FULL,
    full_above: float = _FULL,
) -> tuple[float, float]:
    """Return how many calls a reduce makes of answers, and the tokens of its prompts.

    Args:
        answers: How many answers there are.
        room: Tokens of answers that fit a prompt.
        answer: Tokens of an answer.
        partial: Tokens of a reduction of several answers.
        full: The share of a prompt that answers fill, where there are several prompts.
        full_above: The same of reductions of several answers.
    """
    calls = tokens = 0.0
    size = answer
    while answers > 0:
        least = 1.0 if not calls else 2.0
        fits = max(least, room // max(1.0, size))
        if answers > fits:
            # A node ends where its parts say so, and not where it is full.
            fits = max(least, (full_above if calls else full) * room // max(1.0, size))
        made = ceil(answers / fits)
        calls += made
        tokens += answers * min(size, room)
        if made == 1:
            break
        answers, size = made, partial
    return calls, tokens


def tree_range(answers: float, room: float, answer: float, partial: float, frame: float) -> Calls:
    """Return the calls of a reduce, each with ``frame`` tokens around the answers; see ``tree_calls``."""
    return _tree_range(answers, room, answer, partial, frame, full=_FULL)


def cluster_range(
    answers: float, room: float, answer: float, partial: float, frame: float
) -> Calls:
    """Return the most calls of a tree whose first prompts have clusters of answers: see ``tree_range``."""
    return _tree_range(answers, room, answer, partial, frame, full=LEAST_FULL)


def least_tree_range(
    answers: float, room: float, answer: float, partial: float, frame: float
) -> Calls:
    """Return the fewest calls of a tree: of full prompts, with short names of answers."""
    return _tree_range(
        answers, room, answer, partial, frame, full=1.0, full_above=1.0, place=_LEAST_PLACE_TOKENS
    )


def _tree_range(
    answers: float,
    room: float,
    answer: float,
    partial: float,
    frame: float,
    *,
    full: float,
    full_above: float = _FULL,
    place: float = _PLACE_TOKENS,
) -> Calls:
    calls, tokens = tree_calls(
        answers,
        room=room,
        answer=answer + place,
        partial=partial + place,
        full=full,
        full_above=full_above,
    )
    tokens += calls * frame
    return Calls(calls_low=calls, calls_high=calls, input_low=tokens, input_high=tokens)


def least_refine_range(
    answers: float, room: float, answer: float, partial: float, frame: float
) -> Calls:
    """Return the fewest calls of a chain, with short names of answers; see ``refine_range``."""
    return refine_range(answers, room, answer, partial, frame, place=_LEAST_PLACE_TOKENS)


def refine_range(
    answers: float,
    room: float,
    answer: float,
    partial: float,
    frame: float,
    *,
    place: float = _PLACE_TOKENS,
) -> Calls:
    """Return the calls that refine an answer in turn, each with ``frame`` tokens around what it sees.

    Args:
        answers: How many answers there are.
        room: Tokens that fit a prompt.
        answer: Tokens of an answer.
        partial: Tokens of the answer so far, which each call but the first sees.
        frame: Tokens of the rest of a prompt.
        place: Tokens of the line that names an answer.
    """
    size = min(answer + place, room)
    first, beside = (max(1.0, space // size) for space in (room, room - partial))
    calls = 1.0 + ceil(max(0.0, answers - first) / beside) if answers else 0.0
    tokens = answers * size + max(0.0, calls - 1) * (partial + place) + calls * frame
    return Calls(calls_low=calls, calls_high=calls, input_low=tokens, input_high=tokens)


def comparisons_of(answers: float, *, k: int | None, is_best: bool) -> tuple[float, float, float]:
    """Return the fewest, the likely and the most comparisons that choose among answers.

    A knock-out takes one less than there are answers; where these are equal, none. A ranking takes on
    average what a partial quicksort takes (C. Martinez, Partial Quicksort, 2004).

    Args:
        answers: How many answers there are.
        k: How many of them are to be ranked; None is all.
        is_best: Whether only the best is to be found.
    """
    if answers <= 1:
        return 0.0, 0.0, 0.0
    if is_best:
        return 0.0, answers - 1, answers - 1
    ranked = answers if k is None else min(k, answers)
    likely = 2 * answers + 2 * (answers + 1) * _harmonic(answers)
    likely -= 2 * (answers + 3 - ranked) * _harmonic(answers + 1 - ranked) + 6 * ranked - 6
    all_pairs = answers * (answers - 1) / 2
    likely = min(max(likely, answers - 1), all_pairs)
    # Of many simulations, hardly one took more.
    return answers - 1, likely, min(likely * (1.75 if ranked == answers else 2.5), all_pairs)


def _harmonic(number: float) -> float:
    """Return the sum of 1/1 to 1/number, to within a thousandth."""
    return log(number) + _EULER + 1 / (2 * number) - 1 / (12 * number**2)
