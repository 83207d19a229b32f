"""The calls of the fold refine: what each sees, and what its reply makes of the answer so far."""

from __future__ import annotations

import msgspec
import pytest

from fanout.aggregators import Part
from fanout.aggregators.coverage import Tally
from fanout.aggregators.llm import part_tokens
from fanout.aggregators.refine import Chain, Reply, next_step, reply_of, step_columns, step_input
from fanout.core.errors import SpecError
from fanout.core.records import ErrorKind, Outcome

ROOM = 300


def part(number, size=200, *, ok=True):
    text = f"[d{number}]\n" + "x" * size if ok else ""
    tally = Tally.of(document=number, chunk=number, kind=None if ok else ErrorKind.TIMEOUT)
    return Part(group="", text=text, count=int(ok), failed=int(not ok), tally=tally)


def taken(parts, chain=Chain(), *, is_complete=True, room=ROOM):  # noqa: B008 - a frozen value
    return next_step(
        iter(parts), chain, room_tokens=room, bytes_per_token=4.0, is_complete=is_complete
    )


@pytest.mark.parametrize(
    ("output", "reply"),
    [
        ("an answer", Reply(answer="an answer")),
        ("  an\nanswer\n", Reply(answer="an\nanswer")),
        ("NOTHING TO ADD", Reply(answer=None)),
        ('**"Nothing to add."**\n', Reply(answer=None)),
        ("There is nothing to add", Reply(answer="There is nothing to add")),
        ("nothing to add\nSCRATCHPAD\n3 of 5", Reply(answer=None, notes="3 of 5")),
        ("a\n\n## SCRATCHPAD:\n n ", Reply(answer="a", notes="n")),
        ("a\nSCRATCHPAD\nb\n SCRATCHPAD \nc", Reply(answer="a\nSCRATCHPAD\nb", notes="c")),
        ("SCRATCHPAD\nonly notes", Reply(answer=None, notes="only notes")),
        ("SCRATCHPAD\n\nSCRATCHPAD:\nn", Reply(answer=None, notes="n")),
        ("a\n```\nSCRATCHPAD\n SCRATCHPAD\nn", Reply(answer="a\n```", notes="n")),
        ("a\nSCRATCHPAD", Reply(answer="a", notes="")),
        ("a SCRATCHPAD b", Reply(answer="a SCRATCHPAD b")),
    ],
)
def test_what_a_reply_says(output, reply):
    assert reply_of(output) == reply


def test_a_step_takes_what_fits_and_is_known_once_the_next_answer_is():
    parts = [part(n) for n in range(20)]
    whole = taken(parts)
    fits = ROOM // part_tokens(parts[0])
    assert (whole.taken, whole.tally.behind, whole.failed) == (fits, fits, 0)
    assert taken(parts[:fits], is_complete=False) is None
    assert taken(parts[: fits + 1], is_complete=False) == whole
    assert taken(parts[:fits]) == whole
    assert taken([]) is None


def test_branches_without_an_answer_belong_to_the_answers_before_them():
    fits = ROOM // part_tokens(part(0))
    parts = [part(0, ok=False), *(part(n) for n in range(fits)), part(8, ok=False), part(9)]
    step = taken(parts)
    assert (step.taken, step.tally.behind, step.failed) == (fits + 2, fits, 2)
    assert taken(parts[:-1], is_complete=False) is None
    assert taken([part(0, ok=False)]) is None


def test_failed_branches_belong_to_an_answer_that_is_cut_too():
    """Left to a call of their own, they would never have one."""
    parts = [part(0, 5000), part(1, ok=False), part(2, ok=False)]
    step = taken(parts)
    assert (step.taken, step.tally.behind, step.failed) == (3, 1, 2)
    assert taken(parts, is_complete=False) is None
    assert taken([*parts, part(3)], is_complete=False) == step


def test_an_answer_longer_than_a_prompt_is_cut_and_goes_alone():
    step = taken([part(0, 5000), part(1)])
    assert (step.taken, step.tally.cut) == (1, 1)
    assert "[... cut:" in step.parts[0].text
    assert part_tokens(step.parts[0]) <= ROOM


def test_the_answer_so_far_and_its_notes_take_room_and_come_first():
    chain = Chain(answer="so far" * 40, notes="notes" * 90, tally=Tally(1239, 1234))
    step = taken([part(n) for n in range(9)], chain)
    assert 0 < step.tally.behind < ROOM // part_tokens(part(0))
    text, _ = step_input(chain, step, room_tokens=ROOM, bytes_per_token=4.0)
    head = "(The first is the answer so far, made from 1,234 answers, the second your notes; "
    assert text.startswith(head + "further answers follow.)\n")
    fence = text.splitlines()[-1]
    shown = text.split(fence + "\n")[1:]
    assert shown[0].strip() == chain.answer
    assert shown[1].startswith("notesnotes")
    assert "[... cut:" in shown[1]
    assert len(shown) == 2 + step.tally.behind
    first, _ = step_input(Chain(), step, room_tokens=ROOM, bytes_per_token=4.0)
    assert first.startswith("(Each begins below")


def test_an_answer_so_far_that_leaves_no_room_is_refused():
    with pytest.raises(
        SpecError, match=r"context_tokens: the answer so far leaves 0 of 300 tokens"
    ):
        taken([part(0)], Chain(answer="x" * 5000))


def test_an_answer_so_far_that_is_longer_than_allowed_is_cut_where_it_leaves_no_room():
    chain = Chain(answer="x" * 5000, notes="n" * 5000)
    rules = {"room_tokens": ROOM, "bytes_per_token": 4.0, "most_tokens": 40}
    step = next_step([part(0), part(1)], chain, is_complete=True, **rules)
    assert step.taken == 2
    text, _ = step_input(chain, step, **rules)
    fence = text.splitlines()[-1]
    shown, notes, *_ = text.split(fence + "\n")[1:]
    assert "[... cut:" in shown
    assert part_tokens(Part(group="", text=shown, count=0)) <= 45
    assert notes.startswith("nnn")
    after = Chain.after(step_columns(chain, step), Outcome(index=0, output="short"), is_json=False)
    assert (after.answer, after.overlong) == ("short", 1)
    assert after.remarks == [
        "1 call saw an answer so far that was cut, as it was longer than allowed"
    ]
    fits = next_step([part(0)], Chain(answer="x" * 400), is_complete=True, **rules)
    assert not fits.is_answer_cut, "it leaves room"
    allowed = {**rules, "most_tokens": 5000}
    with pytest.raises(SpecError, match="leaves 0 of"):
        next_step([part(0)], Chain(answer="x" * 5000), is_complete=True, **allowed)


def test_the_state_after_a_call_is_in_its_columns_and_its_reply():
    before = Chain(answer="old", notes="n", tally=Tally(11, 10))
    step = taken([part(0, ok=False), part(1), part(2)], before, room=ROOM)
    columns = msgspec.json.decode(msgspec.json.encode(step_columns(before, step)))
    assert (columns["count"], columns["failed"]) == ("12", "2")

    def after(output, *, is_json=False, **fields):
        outcome = Outcome(index=0, output=output, **fields)
        found = Chain.after(columns, outcome, is_json=is_json)
        return found.answer, found.notes, found.tally.behind, found.failed, found.unchanged

    assert after("new") == ("new", "n", 12, 2, 0)
    assert after("new\nSCRATCHPAD\nm") == ("new", "m", 12, 2, 0)
    assert after("NOTHING TO ADD") == ("old", "n", 12, 2, 1)
    lost = after(None, kind=ErrorKind.TIMEOUT, message="no")
    assert lost == ("old", "n", 10, 4, 0), "its answers are not in the answer so far"
    assert after("NOTHING TO ADD", is_json=True) == ("NOTHING TO ADD", "n", 12, 2, 0)
    assert Chain(unchanged=1).remarks == ["1 call had nothing to add"]
    assert Chain(unchanged=0).remarks == []
