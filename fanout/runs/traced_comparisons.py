"""What the comparisons of ``best`` and ``pairwise`` have found of one branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.records import Usage  # noqa: TC001 - dataclasses read the annotation
from fanout.core.reduces import reduce_name
from fanout.inputs.comparison_prompts import winner_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Chunk, ErrorKind, Outcome, Shard

__all__ = ["TracedComparison", "comparisons_in"]

_VERDICTS = {1: "won", -1: "lost", 0: "tie"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedComparison:
    """One call that compared the answer of a branch with that of another one.

    Attributes:
        round: The round of comparisons, from 1.
        other: The index of the other branch.
        reduce: The name of the reduce; empty for the only one of a job without a list.
        was_first: Whether the judge saw the answer of this branch first: there is a call for each order.
        prompt: What the judge was asked.
        verdict: ``won``, ``lost`` or ``tie``; None if the call failed.
        reasons: Why, in the words of the judge.
        kind: Why the call failed, or None.
        message: One line about that, or None.
        attempts: Calls made.
        usage: Their usage.
        elapsed_s: Seconds from the first call to the end, waits included.
    """

    round: int
    other: int
    was_first: bool
    prompt: str
    verdict: str | None
    reasons: str
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    reduce: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "kind": None if self.kind is None else self.kind.value,
            "usage": self.usage.to_dict(),
            "elapsed_s": round(self.elapsed_s, 4),
        }


def comparisons_in(
    shard: Shard, outcomes: dict[int, Outcome], index: int, *, number: int
) -> Iterator[TracedComparison]:
    """Yield the comparisons of a shard of a round that one branch takes part in.

    Args:
        shard: The shard.
        outcomes: Its outcomes, by position.
        index: The index of the branch.
        number: The number of the round.
    """
    for position, chunk in enumerate(shard.chunks):
        pair = chunk.columns.get("one"), chunk.columns.get("other")
        outcome = outcomes.get(position)
        if index in pair and outcome is not None:
            yield _traced(chunk, outcome, index, number)


def _traced(chunk: Chunk, outcome: Outcome, index: int, number: int) -> TracedComparison:
    one, other = (int(str(chunk.columns[name])) for name in ("one", "other"))
    # Of the two prompts of a pair, the second has the other answer first.
    was_first = (index == one) == (chunk.position % 2 == 0)
    verdict, reasons = None, ""
    if outcome.output is not None:
        winner = winner_of(outcome.output)
        verdict = _VERDICTS[winner if was_first else -winner]
        reasons = str(msgspec.json.decode(outcome.output).get("reasons", ""))
    return TracedComparison(
        round=number,
        other=other if index == one else one,
        was_first=was_first,
        prompt=chunk.text,
        verdict=verdict,
        reasons=reasons,
        kind=outcome.kind,
        message=outcome.message,
        attempts=outcome.attempts,
        usage=outcome.usage,
        elapsed_s=outcome.elapsed_s,
        reduce=reduce_name(chunk.columns),
    )
