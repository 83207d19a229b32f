"""The fields of a job that say how far its aggregate can be checked: ``sources``, ``min_group_success``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from fanout.core.spec_fields import NUMBER

__all__ = ["TrustFields"]


class TrustFields(BaseModel):
    """The fields of a job that say how far its aggregate can be checked: see RunSpec."""

    sources: Annotated[bool, Field(strict=True)] = False
    min_group_success: Annotated[float, Field(ge=0, le=1), NUMBER] = 0.0
