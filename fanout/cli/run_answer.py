"""What a run has given beside its branches, as JSON that may be larger than memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.runs.spaced_json import array_json
from fanout.runs.status import kept_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.runs.evaluation_result import Evaluation
    from fanout.runs.status import Status
    from fanout.runs.stored_aggregate import StoredAggregate
    from fanout.runs.stored_aggregates import StoredAggregates

__all__ = ["RunAnswer"]


@dataclass(frozen=True, kw_only=True)
class RunAnswer:
    """What a run has given beside its branches; ``evaluation`` is None without labels."""

    aggregated: StoredAggregate | StoredAggregates
    evaluation: Evaluation | None
    has_sources: bool = False

    def to_dict(self, status: Status) -> dict[str, Any]:
        """Return it with the status as JSON values; without labels there is no ``evaluation``.

        What may be larger than memory is None here: see parts.
        """
        names = ("aggregated", "aggregate_coverage", "sources", "notes", "reduce_errors")
        found = {**status.to_dict(), **dict.fromkeys(names)}
        if self.evaluation is not None:
            found["evaluation"] = self.evaluation.to_dict()
        return found

    def parts(self, status: Status, *, is_indented: bool = False) -> dict[str, Iterator[str]]:
        """Return the JSON of the values that may be larger than memory, a part at a time.

        Args:
            status: The status.
            is_indented: Whether each value in them has a line of its own.
        """
        notes = chain(kept_notes(status), self.aggregated.each_note())
        return {
            "aggregated": self.aggregated.json(is_indented=is_indented),
            "aggregate_coverage": self.aggregated.coverage_json(is_indented=is_indented),
            "notes": array_json(notes, is_indented=is_indented),
            "reduce_errors": array_json(
                map(msgspec.to_builtins, self.aggregated.values.errors()), is_indented=is_indented
            ),
            **self.sources(is_indented=is_indented),
        }

    def sources(self, *, is_indented: bool = False) -> dict[str, Iterator[str]]:
        """Return the JSON of what the aggregate cites, a part at a time; nothing if it is to cite nothing."""
        if not self.has_sources:
            return {}
        return {"sources": self.aggregated.sources_json(is_indented=is_indented)}
