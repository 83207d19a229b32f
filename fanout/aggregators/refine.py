"""The fold ``refine``: calls that follow each other, each of which revises the answer of those before it.

A call sees the answer so far, the notes that the call before has left (its scratchpad), and the next answers
that fit beside them. What the chain has come to is known from its last call alone: the call's columns have
what it began with, and its reply says what to put in the place of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.coverage import Tally
from fanout.aggregators.llm import Part, fitted, part_tokens, render_input
from fanout.aggregators.sources import (
    Place,
    cited_turn,
    decode_places,
    encode_places,
    sources_in,
    with_sources,
)
from fanout.core.errors import SpecError
from fanout.core.fold_words import NOTHING_TO_ADD, SCRATCHPAD
from fanout.core.records import ErrorKind
from fanout.core.units import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fanout.core.cells import Cell
    from fanout.core.records import Outcome

__all__ = [
    "Chain",
    "Reply",
    "Step",
    "next_step",
    "reply_of",
    "step_columns",
    "step_input",
]

# What models put around such words.
_MARKS = " \t\r\n#*_=`'\".:!-"
# Of the room of a prompt: more notes are cut.
_NOTES_SHARE = 0.25
# With less room beside the answer so far, answers would be cut too short to be of use.
_LEAST_ROOM = 64


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls so far have come to.

    Attributes:
        answer: The answer so far; None if no call gave one.
        notes: The notes for the next call.
        tally: What is behind it, and missing.
        unchanged: The calls that had nothing to add.
        sources: The places that the answer and the notes cite, by id, in a job with ``sources``.
        overlong: The calls that saw only a part of an answer so far, as it was longer than it may be.
    """

    answer: str | None = None
    notes: str = ""
    tally: Tally = Tally()
    unchanged: int = 0
    sources: dict[str, Place] = {}
    overlong: int = 0

    @classmethod
    def after(cls, columns: Mapping[str, Cell], outcome: Outcome, *, is_json: bool) -> Chain:
        """Return what the calls have come to with one more.

        Args:
            columns: The columns of its chunk.
            outcome: Its outcome. If it failed, the answer so far stays, without the answers of the call.
            is_json: Whether answers have a schema: they are then the whole output.
        """
        before = msgspec.convert(columns["chain"], cls)
        added = msgspec.convert(columns["added"], Tally)
        if outcome.output is None:
            lost = added.without_answers(outcome.kind or ErrorKind.INTERNAL)
            return msgspec.structs.replace(before, tally=Tally.total([before.tally, lost]))
        reply = Reply(answer=outcome.output) if is_json else reply_of(outcome.output)
        answer = before.answer if reply.answer is None else reply.answer
        notes = before.notes if reply.notes is None else reply.notes
        shown = columns.get("sources")
        places = {} if shown is None else decode_places(str(shown))
        return cls(
            answer=answer,
            notes=notes,
            sources=sources_in(f"{answer or ''}\n{notes}", places),
            tally=Tally.total([before.tally, added.with_cuts(truncated=int(outcome.is_cut))]),
            unchanged=before.unchanged + (reply.answer is None),
            overlong=before.overlong,
        )

    @property
    def failed(self) -> int:
        """The branches without an answer, and the answers of calls that failed."""
        return self.tally.branches - self.tally.behind

    @property
    def remarks(self) -> list[str]:
        """What a reader must know of the calls."""
        found = []
        if self.unchanged:
            found.append(f"{plural(self.unchanged, 'call', 'calls')} had nothing to add")
        if self.overlong:
            calls = plural(self.overlong, "call", "calls")
            found.append(
                f"{calls} saw an answer so far that was cut, as it was longer than allowed"
            )
        return found


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a call has replied.

    Attributes:
        answer: The revised answer; None if there is nothing to add.
        notes: The notes for the next call; None if it left none, and those before stay.
    """

    answer: str | None
    notes: str | None = None


def reply_of(output: str) -> Reply:
    """Return what the text of a call says: its answer, and what is below the last line SCRATCHPAD."""
    lines = output.split("\n")
    at = next(
        (at for at in range(len(lines) - 1, -1, -1) if lines[at].strip(_MARKS) == SCRATCHPAD), None
    )
    answer, notes = output, None
    if at is not None:
        notes = "\n".join(lines[at + 1 :]).strip()
        # A model may write the line twice.
        while at and lines[at - 1].strip(_MARKS) in ("", SCRATCHPAD) and "`" not in lines[at - 1]:
            at -= 1
        answer = "\n".join(lines[:at])
    answer = answer.strip()
    is_unchanged = not answer or answer.strip(_MARKS).casefold() == NOTHING_TO_ADD.casefold()
    return Reply(answer=None if is_unchanged else answer, notes=notes)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The answers that a call adds.

    Attributes:
        parts: The answers, cut where one does not fit.
        taken: How many branches it was made of.
        tally: What these are.
        is_answer_cut: Whether the answer so far is cut.
    """

    parts: list[Part]
    taken: int
    tally: Tally
    is_answer_cut: bool = False

    @property
    def failed(self) -> int:
        """How many of the branches have no answer."""
        return self.tally.branches - self.tally.behind


def next_step(
    parts: Iterable[Part],
    chain: Chain,
    *,
    room_tokens: int,
    bytes_per_token: float,
    is_complete: bool,
    most_tokens: int | None = None,
) -> Step | None:
    """Return the next answers that fit one prompt beside the answer so far.

    None if that is not known yet, or if no answer is left.

    Args:
        parts: The branches that follow, in order; no more are taken than are needed.
        chain: What the calls so far have come to.
        room_tokens: The tokens that fit one prompt.
        bytes_per_token: For what a prompt says of an answer that was cut.
        is_complete: Whether no branch follows these.
        most_tokens: What the answer so far may have: one that has more, as a server ignores the limit, is cut
            where it leaves no room. None: it has no limit.

    Raises:
        SpecError: The answer so far leaves no room.
    """
    own = _own_parts(chain, room_tokens, bytes_per_token, most_tokens)
    room = _room_beside(own, room_tokens)
    taken: list[Part] = []
    used = 0
    for part in parts:
        size = part_tokens(part) if part.text else 0
        # A failed branch begins no call: it is of the call before, though an answer that is cut fills that.
        if size and used and used + size > room:
            break
        taken.append(part)
        used += size
    else:
        if not is_complete or not used:
            return None
    shown = [part for part in taken if part.text]
    made = fitted(shown, room, bytes_per_token)
    cut = sum(one is not whole for one, whole in zip(made, shown, strict=True))
    tally = Tally.total(part.tally for part in taken).with_cuts(cut=cut)
    is_answer_cut = bool(own) and own[0].text != chain.answer
    return Step(parts=made, taken=len(taken), tally=tally, is_answer_cut=is_answer_cut)


def _room_beside(own: list[Part], room_tokens: int) -> int:
    room = room_tokens - sum(map(part_tokens, own))
    if room < _LEAST_ROOM:
        raise SpecError(
            f"the answer so far leaves {max(0, room):,} of {room_tokens:,} tokens for further answers; "
            "raise it, or give a (smaller) aggregate_max_tokens",
            field="context_tokens",
        )
    return room


def _own_parts(
    chain: Chain, room_tokens: int, bytes_per_token: float, most_tokens: int | None
) -> list[Part]:
    """Return the answer so far and the notes, as parts of a prompt; notes may be cut, and see next_step."""
    if chain.answer is None:
        return []
    answer = [Part(group="", text=chain.answer, count=0)]
    notes = []
    if chain.notes:
        part = Part(group="", text=chain.notes, count=0)
        notes = fitted([part], int(room_tokens * _NOTES_SHARE), bytes_per_token)
    left = room_tokens - _LEAST_ROOM - sum(map(part_tokens, notes))
    if most_tokens is not None and max(left, most_tokens) < part_tokens(answer[0]):
        answer = fitted(answer, min(left, most_tokens), bytes_per_token)
    return [*answer, *notes]


def step_input(
    chain: Chain,
    step: Step,
    *,
    room_tokens: int,
    bytes_per_token: float,
    cites: bool = False,
    most_tokens: int | None = None,
) -> tuple[str, dict[str, Cell]]:
    """Return the value of ``{input}``: the answer so far, the notes, and the answers, between fences.

    What is which stands before the first fence, where no answer can write.

    Returns:
        The text; and if the call cites sources, the columns of its chunk with their places.
    """
    own = _own_parts(chain, room_tokens, bytes_per_token, most_tokens)
    if cites:
        # What is cut of the notes cites nothing.
        own = [with_sources(part, chain.sources) for part in own]
        text, places = cited_turn(own, step.parts, tally=step.tally)
        level: dict[str, Cell] = {"level": "1"} if own else {}
        return _told(chain, own, text), {"sources": encode_places(places), **level}
    missing = [Part(group="", text="", count=0, failed=step.failed)] if step.failed else []
    return _told(chain, own, render_input([*own, *step.parts, *missing], level=0)), {}


def _told(chain: Chain, own: list[Part], text: str) -> str:
    """Return the value of ``{input}`` with what stands first in it."""
    if not own:
        return text
    notes = ", the second your notes" if len(own) > 1 else ""
    made = plural(chain.tally.behind, "answer", "answers")
    return f"(The first is the answer so far, made from {made}{notes}; further answers follow.)\n\n{text}"


def step_columns(chain: Chain, step: Step) -> dict[str, Any]:
    """Return what a call begins with, and what it stands for, as the columns of its chunk."""
    return {
        "group": "",
        "count": str(chain.tally.behind + step.tally.behind),
        "failed": str(chain.failed + step.failed),
        "chain": msgspec.to_builtins(
            msgspec.structs.replace(chain, overlong=chain.overlong + step.is_answer_cut)
        ),
        "added": msgspec.to_builtins(step.tally),
    }
