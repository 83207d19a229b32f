"""The fields of a job that say what its branches see of a document, and what a model splits it into."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fanout.core.spec_fields import NUMBER

__all__ = ["SplitFields", "SplitGaps", "SplitName"]

SplitName = Literal["none", "lines", "tokens", "markdown", "sentences", "model"]
SplitGaps = Literal["fill", "leave_out"]


class SplitFields(BaseModel):
    """The fields of a job that say how documents are split: see RunSpec."""

    split: SplitName = "none"
    split_prompt: Annotated[str | None, Field(min_length=1)] = None
    split_model: Annotated[str | None, Field(min_length=1, max_length=512)] = None
    split_gaps: SplitGaps = "fill"
    split_max_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    neighbours: Annotated[int, Field(ge=0, le=100), NUMBER] = 0

    @property
    def split_models(self) -> tuple[str, ...]:
        """The model that splits documents, if it is not the model of the job."""
        return (self.split_model,) if self.split == "model" and self.split_model else ()
