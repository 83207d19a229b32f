"""The client of a run under faults: submits it, or resumes it, and waits.

    python -m faults.client PLAN

PLAN is a file that holds a ``RunPlan``. The run's id is kept beside it, so that a client that takes
the place of a dead one finds the run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fanout import Client, RunSpec
from fanout.core.errors import WaitTimeoutError
from fanout.core.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout import Run

__all__ = ["MARK", "RunPlan", "documents", "key", "spec"]

# What each further step adds to the key of a branch.
MARK = "+"


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the client does.

    Attributes:
        url: The server.
        branches: How many documents there are.
        document_bytes: How long each is. A shard ends at some megabytes: long documents make many.
        begun_at: When the first document is there, in seconds since the epoch.
        trickle_s: How long it takes until the last is there.
        bound_s: How long it waits at most.
        max_workers: The cap of the run; None where it has none.
        steps: Calls of a branch, one after the other.
        tree: Whether a tree of calls sums up the answers.
    """

    url: str
    branches: int
    document_bytes: int
    begun_at: float
    trickle_s: float
    bound_s: float
    max_workers: int | None = None
    steps: int = 1
    tree: bool = False


def spec(max_workers: int | None = None, steps: int = 1, *, tree: bool = False) -> RunSpec:
    """Return what the run is asked to do: its aggregate counts every answer.

    The model answers with the first word of a prompt: that of a further step is the answer of the step
    before it and a mark.
    """
    model = "faults.model:llm"
    if tree:
        return make_spec(
            model=model,
            prompt="{input}",
            aggregate_prompt="NODE {input}",
            context_tokens=512,
            aggregate_max_tokens=40,
            tokenizer="bytes/4",
            max_workers=max_workers,
        )
    if steps == 1:
        return RunSpec(model=model, prompt="{input}", reduce="vote", max_workers=max_workers)
    chain = [{"name": "s1", "prompt": "{input}"}]
    chain += [
        {"name": f"s{number}", "prompt": f"{{s{number - 1}}}{MARK} and more"}
        for number in range(2, steps + 1)
    ]
    return make_spec(model=model, steps=chain, reduce="vote", max_workers=max_workers)


def key(index: int, step: int = 1) -> str:
    """Return the key of a step of a branch in the ledger; it is its answer, too."""
    return f"b{index}{MARK * (step - 1)}"


def documents(plan: RunPlan) -> Iterator[str]:
    """Yield the documents, each when its time has come."""
    for index in range(plan.branches):
        due = plan.begun_at + plan.trickle_s * index / plan.branches
        time.sleep(max(0.0, due - time.time()))
        yield f"{key(index)} ".ljust(plan.document_bytes, "x")


def _run(client: Client, plan: RunPlan, note: Path) -> Run:
    if note.exists():
        return client.resume(note.read_text(), documents(plan))
    return client.submit(
        spec(plan.max_workers, plan.steps, tree=plan.tree),
        documents(plan),
        on_created=lambda run_id: _keep(note, run_id),
    )


def _keep(note: Path, run_id: str) -> None:
    whole = note.with_suffix(".new")
    whole.write_text(run_id)
    whole.replace(note)


def main(path: Path) -> None:
    """Submit or resume, and wait."""
    plan = msgspec.json.decode(path.read_bytes(), type=RunPlan)
    with Client(plan.url) as client:
        run = _run(client, plan, path.with_name("run_id"))
        try:
            run.wait(plan.bound_s)
        except WaitTimeoutError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
