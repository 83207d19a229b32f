"""Jobs with each way to reduce, small enough to try each of their steps: see tests.simulated_fleet."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from tests.simulated_fleet import Fleet, HungError

if TYPE_CHECKING:
    import redis

__all__ = ["JOBS", "Job", "fleet_of", "problem_of"]

_NUMBER = re.compile(r"n=(\d+)")
_ID = re.compile(r"\[(s-[a-z2-7]{7})\]")
_ANSWERS = re.compile(
    r"<answer_A[^>]*>\n(.*?)\n</answer_A.*<answer_B[^>]*>\n(.*?)\n</answer_B", re.DOTALL
)
_VALUES = re.compile(
    r"<value_A[^>]*>\n(.*?)\n</value_A.*<value_B[^>]*>\n(.*?)\n</value_B", re.DOTALL
)
_SMALL: dict[str, Any] = {
    "model": "fake", "prompt": "{input}", "tokenizer": "bytes/4", "context_tokens": 400,
    "aggregate_max_tokens": 20, "fence": False, "cache": False, "retries": {"max_attempts": 1},
}  # fmt: skip
_TREE: dict[str, Any] = {"aggregate_prompt": "SUM {input}"}
_SUM = {"name": "sum", "llm": "SUM {input}", "aggregate_max_tokens": 20}
_EACH = {**_SUM, "name": "each", "llm": "SUM EACH {input}", "group_by": "g"}
_CHAIN = {**_SUM, "name": "chain", "fold": "refine"}
_THEMES = {**_SUM, "name": "themes", "fold": "cluster"}
_COUNTS = {"name": "counts", "table": {"by": "g", "measures": ["count"]}}
_ALL = {"name": "all", "concat": None}
_TEXTS = [f"n={n % 5} text {n} {'of words ' * 3}" for n in range(30)]
_FIRMS = ["Acme Corp", "ACME corp.", "Acme Corporation", "Bolt Ltd", "Bolt Limited", "Zebra"]
# Each of so many branches fails, until it is retried.
_EACH_BAD = 10


class Job:
    """A job: the fields of its spec, its texts, and whether it is retried."""

    def __init__(
        self, *, texts: list[str] = _TEXTS, groups: int = 1, retries: bool = False, **spec: Any
    ) -> None:
        self.texts = texts
        self.groups = groups
        self.retries = retries
        self.spec = {**_SMALL, **spec}
        if "reduce" in spec and isinstance(spec["reduce"], list):
            del self.spec["aggregate_max_tokens"]


JOBS: dict[str, Job] = {
    "tree": Job(**_TREE),
    "groups": Job(**_TREE, group_by="g", groups=12),
    "large group": Job(**_TREE, group_by="g", groups=2),
    "several": Job(reduce=[_SUM, _EACH, _COUNTS, _ALL], groups=6),
    "folds": Job(reduce=[_SUM, _CHAIN, _THEMES]),
    "refine": Job(**_TREE, fold="refine"),
    "cluster": Job(**_TREE, fold="cluster"),
    "sources": Job(**_TREE, sources=True, context_tokens=700),
    "best": Job(reduce="best", criteria="longer", samples=2, texts=_TEXTS[:6], temperature=1),
    "pairwise": Job(reduce="pairwise", criteria="longer", texts=_TEXTS[:8]),
    "resolve": Job(
        reduce="resolve", by="firm", output_format="json", fence=True,
        texts=[json.dumps({"firm": firm}) for firm in _FIRMS],
    ),
    "concat": Job(reduce="concat"),
    "retried tree": Job(**_TREE, retries=True),
    "retried groups": Job(**_TREE, group_by="g", groups=12, retries=True),
    "retried several": Job(reduce=[_SUM, _EACH, _COUNTS], groups=6, retries=True),
    "retried refine": Job(**_TREE, fold="refine", retries=True),
    "retried cluster": Job(**_TREE, fold="cluster", retries=True),
}  # fmt: skip


def fleet_of(
    pool: redis.ConnectionPool, job: Job, *, event: str = "kill", at: int | None = None
) -> Fleet:
    """Process a job to its end, with a retry if it has one, and return its fleet.

    Args:
        pool: Connections to a server, whose database is emptied.
        job: The job.
        event: What happens.
        at: At which step; None for none.

    Raises:
        HungError: The run does not end.
    """
    bad = set(job.texts[::_EACH_BAD]) if job.retries else set()

    def answer(request: Any) -> Any:
        if request.prompt in bad:
            raise LLMError(ErrorKind.CONTENT_FILTER, "no")
        return _answered(request)

    fleet = Fleet(
        pool,
        answer=answer,
        texts=job.texts,
        event=event,
        at=at,
        columns=lambda number: {"g": f"g{number % job.groups}"},
        spec=job.spec,
    )
    fleet.drain()
    bad.clear()
    if event == "delete" and fleet.status is None:
        return fleet
    is_cancelled = event == "cancel" and fleet.status == "cancelled"
    if job.retries or is_cancelled:
        fleet.retry()
        fleet.drain()
    if job.retries and event == "cancel" and fleet.status == "cancelled":
        fleet.retry()
        fleet.drain()
    return fleet


def problem_of(
    pool: redis.ConnectionPool, job: Job, *, event: str, at: int, expected: dict[str, Any]
) -> tuple[str | None, int]:
    """Process a job, and compare what it has come to.

    Args:
        pool: Connections to a server, whose database is emptied.
        job: The job.
        event: What happens.
        at: At which step.
        expected: The account of an undisturbed run.

    Returns:
        What is wrong, or None, and how many steps the reaper has repeated.
    """
    try:
        fleet = fleet_of(pool, job, event=event, at=at)
    except HungError as error:
        return f"hangs: {error}", 0
    if event == "delete":
        left = [*fleet.keys(), *fleet.queue]
        gone = fleet.status is None and not left
        return None if gone else f"{fleet.what}: left are {left}", fleet.heals
    found = fleet.account()
    # What was stopped has another number of calls.
    free = {"stages", "asked"} if event == "cancel" else set()
    wrong = [name for name in expected if name not in free and found.get(name) != expected[name]]
    if not wrong:
        return None, fleet.heals
    told = (f"{name} is {found.get(name)!r:.600}, not {expected[name]!r:.600}" for name in wrong)
    return f"{fleet.what}: {'; '.join(told)}", fleet.heals


def _answered(request: Any) -> Any:
    """Answer a node with the sum of what it shows, a comparison by length, and a branch with its text."""
    prompt = request.prompt
    if found := _ANSWERS.search(prompt):
        sizes = [*map(len, found.groups())]
        winner = "A" if sizes[0] > sizes[1] else "B" if sizes[1] > sizes[0] else "tie"
        return json.dumps({"reasons": "r", "winner": winner})
    if found := _VALUES.search(prompt):
        one, other = found.groups()
        return json.dumps({"reasons": "r", "same": one[0] == other[0]})
    if prompt.startswith("SUM"):
        total = f"n={sum(map(int, _NUMBER.findall(prompt)))}"
        return " ".join([total, *(f"[{one}]" for one in dict.fromkeys(_ID.findall(prompt)))][:3])
    return prompt
