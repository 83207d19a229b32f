"""The branches and the usage of each model of a run, for its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.records import NO_CALL, Usage, total_usage

if TYPE_CHECKING:
    from fanout.runs.branch_output import Output

__all__ = ["ModelCounter", "ModelFigures"]


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a model did in a run.

    Attributes:
        name: The model.
        succeeded: Branches that asked it first, and have an answer, also of a fallback.
        failed: Branches that asked it first, and have none.
        usage: The usage of all calls of it; an unknown quantity is None.
    """

    name: str
    succeeded: int = 0
    failed: int = 0
    usage: Usage = NO_CALL

    @property
    def was_asked_first(self) -> bool:
        """Whether a branch asked it first."""
        return self.succeeded + self.failed > 0


class ModelCounter:
    """Counts branches and usage by model."""

    def __init__(self) -> None:
        self._ended: dict[str, list[int]] = {}
        self._used: dict[str, Usage] = {}

    def add(self, branch: Output[Any]) -> None:
        """Count one more branch."""
        if branch.asked_model is not None:
            self._ended.setdefault(branch.asked_model, [0, 0])[branch.kind is not None] += 1
        called = {} if branch.model is None else {branch.model: branch.usage}
        for model, usage in (branch.usage_of or called).items() if branch.attempts else ():
            used = self._used.get(model)
            self._used[model] = usage if used is None else total_usage([used, usage])

    def figures(self) -> list[ModelFigures]:
        """Return the figures of each model, in the order in which they were first asked."""
        none = [0, 0]
        return [
            ModelFigures(
                name=name,
                succeeded=self._ended.get(name, none)[0],
                failed=self._ended.get(name, none)[1],
                usage=self._used.get(name, NO_CALL),
            )
            for name in dict.fromkeys([*self._ended, *self._used])
        ]
