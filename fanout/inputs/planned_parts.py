"""The parts of a document that a model has proposed: located by their quotes, and checked."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.parts import Part
from fanout.inputs.quotes import QuotedText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Covered", "Proposal", "covered", "located"]

_SHOWN_CHARS = 60
_SHOWN_PROBLEMS = 5


class Proposal(NamedTuple):
    """A part as a model has proposed it.

    Attributes:
        title: What it is about.
        first_words: The words that it begins with.
        last_words: The words that it ends with; empty if it goes on to the next part.
    """

    title: str
    first_words: str
    last_words: str


class Covered(NamedTuple):
    """The parts of a text, in order, of which no two overlap.

    Attributes:
        parts: The parts.
        missed: How many characters, without white space, no proposed part has.
        overlaps: How many proposed parts began before the one before them ended.
    """

    parts: list[Part]
    missed: int
    overlaps: int


def located(text: str, proposals: Sequence[Proposal]) -> tuple[list[Part], list[str]]:
    """Return where the proposed parts are in a text, and what is wrong with those that are not there.

    Quotes may stand in the text several times: a part begins at the first place behind the beginning of
    the part before it, and ends at the last place before the next part begins.
    """
    quoted = QuotedText(text)
    begins: list[tuple[Proposal, int, int]] = []
    problems: list[str] = []
    after = -1
    for number, one in enumerate(proposals, 1):
        places = list(quoted.places(one.first_words))
        place = next((span for span in places if span[0] > after), places[0] if places else None)
        if place is None:
            problems.append(_problem(number, one, "first_words", one.first_words))
            continue
        after = place[0]
        begins.append((one, *place))
    starts = sorted({begin for _, begin, _ in begins})
    parts: list[Part] = []
    for one, begin, begin_end in begins:
        following = next((start for start in starts if start > begin), len(text))
        end = _end(quoted, one, begin, begin_end, following)
        if end is None:
            number = 1 + proposals.index(one)
            problems.append(_problem(number, one, "last_words", one.last_words))
            continue
        parts.append(Part(start=begin, end=end, title=one.title.strip()))
    shown = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more such problems")
    return parts, shown


def _end(
    quoted: QuotedText, one: Proposal, begin: int, begin_end: int, following: int
) -> int | None:
    if not one.last_words.strip():
        return following
    ends = [end for start, end in quoted.places(one.last_words) if start >= begin]
    # The first words may hold the last ones.
    ends = [end for end in ends if end >= begin_end] or ends
    if not ends:
        return None
    return max((end for end in ends if end <= following), default=min(ends))


def _problem(number: int, one: Proposal, field: str, quote: str) -> str:
    where = f"part {number} ({_shown(one.title)}): its {field} "
    if not quote.strip():
        return f"{where}are empty"
    behind = " behind its first_words" if field == "last_words" else ""
    return f"{where}{_shown(quote)} do not stand in the text{behind}; copy them exactly"


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}...")


def covered(
    text: str, parts: Iterable[Part], *, cut: Callable[[str], Iterable[tuple[int, int]]] | None
) -> Covered:
    """Return the parts of a text so that none overlaps another, and no text is lost.

    Of two parts that overlap, the later one has what both have; what a part has behind one within it is a
    part with the same title. What no part has becomes parts of its own without a title, unless it has no
    letter or digit: then it belongs to the part before it.

    Args:
        text: The text.
        parts: The parts, in any order.
        cut: Cuts text that no part has into pieces that are not too large; None leaves that text out.
    """
    ordered = sorted(parts, key=lambda one: (one.start, -one.end))
    overlaps = sum(one.end > other.start for one, other in pairwise(ordered))
    flat = _flat(text, ordered)
    found: list[Part] = []
    missed, at = 0, 0
    for part in [*flat, Part(start=len(text), end=len(text))]:
        gap = text[at : part.start]
        if any(map(str.isalnum, gap)):
            missed += sum(not char.isspace() for char in gap)
            if cut is not None:
                found += [Part(start=at + low, end=at + high) for low, high in cut(gap)]
        elif gap.strip() and found and cut is not None:
            last = found.pop()
            found.append(
                Part(start=last.start, end=at + len(gap.rstrip()), title=last.title,
                     subtask=last.subtask)
            )  # fmt: skip
        if part.end > part.start:
            found.append(part)
        at = part.end
    return Covered(found, missed, overlaps)


def _flat(text: str, ordered: Sequence[Part]) -> list[Part]:
    """Return parts of which none overlaps another, from ones in the order in which they begin."""
    flat: list[Part] = []
    # Those that have begun, the last one on top.
    begun: list[Part] = []
    at = 0
    for one in [*ordered, Part(start=len(text), end=len(text))]:
        while begun and at < one.start:
            part = begun[-1]
            until = min(part.end, one.start)
            is_first = at == part.start
            if until > at and (is_first or any(map(str.isalnum, text[at:until]))):
                flat.append(Part(start=at, end=until, title=part.title, subtask=part.subtask))
            at = max(at, until)
            if part.end <= at:
                begun.pop()
        at = max(at, one.start)
        begun.append(one)
    return flat
