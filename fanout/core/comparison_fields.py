"""The fields of a job whose outputs a model compares: ``criteria`` and ``judge_model``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from fanout.core.spec_fields import NUMBER, Criteria

__all__ = ["ComparisonFields"]


class ComparisonFields(BaseModel):
    """The fields of a job that say how outputs are compared: see RunSpec."""

    criteria: Criteria = ()
    judge_model: Annotated[str | None, Field(min_length=1, max_length=512)] = None
    max_pairs: Annotated[int, Field(ge=1, le=1_000_000), NUMBER] = 10_000
