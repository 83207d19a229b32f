"""The fields of a job that say what a branch sees of its document: ``neighbours``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from fanout.core.spec_fields import NUMBER

__all__ = ["SplitFields"]


class SplitFields(BaseModel):
    """The fields of a job that say what its branches see of a document: see RunSpec."""

    neighbours: Annotated[int, Field(ge=0, le=100), NUMBER] = 0
