"""The runs in which a model splits the documents of another run: their ids."""

from __future__ import annotations

__all__ = ["NOT_SPLIT", "PLAN", "is_plan", "job_run", "plan_run"]

# No other id begins so: the ids of runs have neither an l nor a dash.
PLAN = "plan-"
# How the message of a branch begins whose document the model did not split.
NOT_SPLIT = "the model did not split it"


def plan_run(run_id: str) -> str:
    """Return the id of the run that splits the documents of a run with ``split: model``."""
    return f"{PLAN}{run_id}"


def is_plan(run_id: str) -> bool:
    """Return whether a run splits the documents of another one."""
    return run_id.startswith(PLAN)


def job_run(run_id: str) -> str:
    """Return the run whose job a run is part of: itself, or the one whose documents it splits."""
    return run_id.removeprefix(PLAN)
