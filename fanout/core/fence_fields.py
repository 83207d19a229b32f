"""The field of a job that says whether text in prompts is fenced: ``fence``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from fanout.core.model_names import has_fences

__all__ = ["FenceFields"]


class FenceFields(BaseModel):
    """The field of a job that says whether text in prompts is fenced: see RunSpec."""

    fence: Annotated[bool | None, Field(strict=True)] = None

    if TYPE_CHECKING:
        # Of the other fields of a job.
        split: Any
        steps: tuple[Any, ...]

        @property
        def prompts(self) -> dict[str | None, str]:
            """The prompts, by aspect."""

    def is_fenced(self, model: str) -> bool:
        """Say whether the prompts of a model have fences around what is not the user's own."""
        return has_fences(model) if self.fence is None else self.fence
