"""The client of a run at scale: ``python -m scale.submitter PLAN``.

The plan is a JSON file: ``branches``, ``model``, ``reduce``, and ``started``, a file to which the
run's id is written as soon as there is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fanout import Client, RunSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


def documents(count: int) -> Iterator[str]:
    """Yield distinct documents of about 300 characters, one at a time."""
    for number in range(count):
        yield f"Review {number}: " + " ".join(
            f"the {_THINGS[(number + i) % len(_THINGS)]} was {_WORDS[(number // 7 + i) % 6]}"
            for i in range(12)
        )


_THINGS = ("room", "food", "staff", "view", "bed", "bath", "price", "noise", "lift", "garden")
_WORDS = ("clean", "dreadful", "rather good", "as described", "too small", "a surprise")


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    spec = RunSpec(model=plan["model"], prompt="Sum it up: {input}", reduce=plan["reduce"])
    started = Path(plan["started"])
    with Client() as client:

        def note(run_id: str) -> None:
            started.write_text(run_id)

        run = client.submit(spec, documents(plan["branches"]), on_created=note)
        run.wait()


if __name__ == "__main__":
    main()
