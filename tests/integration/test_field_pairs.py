"""Every pair of fields that cost money, with each operation on a run, in mixed fleets.

The runs of a fleet are small and go on at the same time. Each has texts of its own, by which the provider's
calls and bills are told apart.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import pytest

from fanout import Client
from fanout.core.errors import UnknownRunError
from fanout.core.records import RunStatus, total_usage
from fanout.core.spec import make_spec
from tests.batch_provider import BatchProvider
from tests.integration.conftest import BUCKET, wait_for
from tests.scripted_provider import openai_reply

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

_END_S = 90.0
_KEEN = {
    "FANOUT_REAPER_INTERVAL_S": "0.25",
    "FANOUT_BATCH_WAIT_S": "0.2",
    "FANOUT_BATCH_POLL_S": "0.2",
    "FANOUT_BATCH_CALLS": "40",
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_STALL_S": "1",
    "FANOUT_GRACE_S": "1",
}
_FIRST, _SECOND = "openai/gpt-5-mini", "openai/gpt-5-nano"
_CLAUDE = "anthropic/claude-haiku-4-5"
# By model: dollars of a million tokens of the prompt and of the answer, by the list.
_LISTED = {"gpt-5-mini": (0.25, 2.0), "gpt-5-nano": (0.05, 0.4), "claude-haiku-4-5": (1.0, 5.0)}
_OWN = {"input_mtok": 3.0, "output_mtok": 7.0, "flex": 0.5, "batch": 0.5}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_PROMPT = "Sum up {tag}: {input}"
_SUM = {
    "reduce": "llm", "context_tokens": 320, "aggregate_max_tokens": 32, "aggregate_prompt": _PROMPT,
}  # fmt: skip
_SEVERAL = [
    {"name": "sum", "llm": _PROMPT, "aggregate_max_tokens": 32},
    {"name": "each", "llm": f"Each: {_PROMPT}", "group_by": "document", "aggregate_max_tokens": 32},
    {"name": "all", "concat": None},
]
_TEXTS = 3
# The values of each field; one that is a dictionary has several fields. `{tag}` names the run.
_FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    "lane": {
        "realtime": {},
        "flex": {"lane": "flex"},
        "batch": {"lane": "batch"},
        "auto": {"lane": "auto", "deadline_s": 600},
    },
    "price": {"listed": {}, "own": {"price": _OWN}},
    "budget": {
        "none": {},
        "large": {"budget": {"usd": 9, "calls": 9_000, "tokens": 9_000_000}},
        "small": {"budget": {"calls": 2}},
    },
    "cache": {"on": {}, "off": {"cache": False}},
    "prompt_order": {
        "auto": {},
        "written": {"prompt_order": "as_written"},
        "document": {"prompt_order": "document_first"},
    },
    "tokenizer": {"none": {}, "bytes": {"tokenizer": "bytes/3", "split": "tokens"}},
    "prompts": {
        "one": {"prompt": "Say {input}"},
        "two": {"aspects": {"one": "First of {input}", "two": "Second of {input}"}},
    },
    "answers": {
        "one": {},
        "samples": {"samples": 2},
        "models": {"models": (_FIRST, _SECOND)},
        "certain": {"samples": 3, "certainty": 0.9},
    },
    "outcome": {
        "plain": {},
        "fallback": {"fallback": (_CLAUDE,)},
        "schema": {"schema": _SCHEMA},
    },
    "reduce": {
        "none": {},
        "calls": _SUM,
        "groups": {**_SUM, "group_by": "document"},
        "cluster": {**_SUM, "fold": "cluster"},
        "several": {"context_tokens": 320, "reduce": _SEVERAL},
    },
    "max_workers": {"none": {}, "one": {"max_workers": 1}},
    "priority": {"none": {}, "four": {"priority": 4.0}},
    "operation": {name: {} for name in ("run", "pause", "cancel", "retry", "delete", "trial")},
}
_WORDS = {"plain": "fine", "fallback": "refuse", "schema": "odd"}


def pairs_of(row: dict[str, str]) -> set[tuple[tuple[str, str], ...]]:
    return set(combinations(row.items(), 2))


def covering(fields: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return jobs that have each pair of values of two fields at least once."""
    rng = random.Random(15)
    missing = {
        ((one, a), (two, b))
        for one, two in combinations(fields, 2)
        for a, b in product(fields[one], fields[two])
    }
    rows = []
    while missing:
        seed = dict(min(missing))
        tries = [
            {name: seed.get(name) or rng.choice(values) for name, values in fields.items()}
            for _ in range(25)
        ]
        rows.append(max(tries, key=lambda row: len(missing & pairs_of(row))))
        missing -= pairs_of(rows[-1])
    return rows


class Provider(BatchProvider):
    """Refuses, answers wrongly and fails by the words of a text, and bills all that it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: set[str] = set()
        self.polls = 1
        self.item = self.single = self._fate
        # Asked again, the last message is another one.
        self.reply = lambda prompt: '{"a": "no"}' if "odd" in prompt else '{"a": 1}'

    def _fate(self, prompt: str) -> tuple[int, Any] | None:
        is_bad = "bad" in prompt and not any(tag in prompt for tag in self.opened)
        return (400, {"error": {"message": "bad"}}) if is_bad else None

    def completion(self, api: str, body: dict[str, Any], lane: str = "batch") -> dict[str, Any]:
        reply = super().completion(api, body, lane)
        if body["model"] != "claude-haiku-4-5" and "refuse" in json.dumps(body["messages"]):
            refusal = openai_reply(None, "content_filter", refusal="no")
            return {**reply, "choices": refusal["choices"]}
        return reply

    def bought(self, tag: str) -> list[str]:
        """The calls of a run that were answered."""
        return [text for one in list(self.bills) if tag in (text := json.dumps(one.body))]

    def bill(self, tag: str, price: dict[str, float]) -> float:
        """What the answers to a run's calls cost."""
        usd = 0.0
        for bill in [one for one in self.bills if tag in json.dumps(one.body)]:
            listed = _LISTED[bill.body["model"]]
            dear = (price["input_mtok"], price["output_mtok"]) if price else listed
            share = 1.0 if bill.lane == "realtime" else 0.5
            usd += share * (bill.taken * dear[0] + bill.given * dear[1]) / 1_000_000
        return usd

    def count(self, tag: str) -> tuple[int, int]:
        """How many calls of a run were in batches, and by themselves."""
        gathered = [body for batch in list(self.batches) for _, body in batch.items]
        of_batches, single = (
            sum(tag in json.dumps(body) for body in bodies) for bodies in (gathered, self.singles)
        )
        return of_batches, single


class Job:
    """A run with the values of a row, and an operation on it."""

    def __init__(self, client: Client, provider: Provider, row: dict[str, str], tag: str) -> None:
        self._client = client
        self._provider = provider
        self.row = row
        self._tag = tag
        fields: dict[str, Any] = {
            "model": _FIRST,
            "max_tokens": 20,
            "retries": {"base_wait_s": 0.05},
        }
        for name, value in row.items():
            fields |= _FIELDS[name][value]
        if "models" in fields:
            fields["model"] = fields.pop("models")
        fields = json.loads(json.dumps(fields).replace("{tag}", tag))
        self._fields = fields
        spec = make_spec(**fields)
        self._price = fields.get("price", {})
        self._total = _TEXTS * spec.branches_per_chunk
        words = [_WORDS[row["outcome"]]] * _TEXTS
        if row["operation"] == "retry":
            words[:2] = ["bad", "bad"]
        texts = [f"{word} {tag} {at};" for at, word in enumerate(words)]
        # The runs of the job: beside its own, that of a trial.
        self.runs = []
        if row["operation"] == "trial":
            self.runs.append(client.run(client.trial(spec, texts, size=2).run_id))
        self.run = client.submit(spec, texts)
        self.runs.append(self.run)

    def carry_out(self, moment: float) -> None:
        run, operation = self.run, self.row["operation"]
        if operation in {"pause", "cancel", "delete"}:
            time.sleep(moment)
        if operation == "pause":
            run.pause()
            time.sleep(0.3)
            run.unpause()
        elif operation == "cancel":
            run.cancel()
            assert run.wait(_END_S).done == self._total
            run.retry_failed()
        elif operation == "retry":
            run.wait(_END_S)
            self._provider.opened.add(self._tag)
            larger: dict[str, Any] = (
                {"budget": {"calls": 9_000}} if "budget" in self._fields else {}
            )
            run.retry_failed(**larger)
        elif operation == "delete":
            run.delete()

    def check(self, *, is_killed: bool) -> None:
        """Compare the run with what the provider has been asked, and bills."""
        operation = self.row["operation"]
        if operation == "delete":
            return
        status = self.run.wait(_END_S)
        assert [one.index for one in self.run.outcomes()] == list(range(self._total))
        assert status.done == self._total == status.succeeded + status.failed
        is_small = self.row["budget"] == "small" and operation != "retry"
        allowed = {"budget"} if is_small else set()
        if is_small and operation == "cancel":
            # Its retry processes nothing if the budget has no room for any call.
            allowed.add("cancelled")
        assert {kind.value for kind in status.errors} <= allowed
        assert status.status is RunStatus.SUCCEEDED or is_small, status.error
        in_batches, single = self._provider.count(self._tag)
        usage = total_usage([run.status().usage for run in self.runs])
        usd = self._provider.bill(self._tag, self._price)
        is_batch = self.row["lane"] in {"batch", "auto"}
        assert not (is_batch and single)
        if is_batch and self.row["cache"] == "on" and operation in {"run", "pause", "trial"}:
            bought = Counter(self._provider.bought(self._tag))
            # A refusal is not kept for the next run.
            asking = len(self.runs) if self.row["outcome"] == "fallback" else 1
            most = self._fields.get("samples", 1) * asking
            assert max(bought.values(), default=0) <= most
        if is_killed or operation == "cancel":
            assert usage.known("cost_usd") <= usd + 1e-9
        else:
            assert usage.calls == in_batches + single
            assert usage.cost_usd == pytest.approx(usd, abs=1e-9)
        budget = status.budget
        if budget is not None:
            assert (budget.reserved.usd, budget.reserved.calls, budget.reserved.tokens) == (0, 0, 0)
            assert budget.limit.calls is None or budget.spent.calls <= budget.limit.calls


@pytest.fixture
def batches() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def storages(request, tmp_path):
    """Where a fleet keeps its files: its variable, and what lists them."""

    def named(kind):
        if kind == "s3":
            s3 = request.getfixturevalue("s3")
            return f"s3://{BUCKET}/pairs", lambda: s3.find(f"{BUCKET}/pairs")
        folder = tmp_path / "storage"
        folder.mkdir()
        return str(folder), lambda: [str(path) for path in folder.rglob("*")]

    return named


@pytest.mark.parametrize(
    ("storage", "pools", "every"),
    # All pairs, and of the jobs some with other storage and pools, of which a worker is killed.
    [("folder", ("asyncio", "threads"), 1), ("s3", ("prefork", "asyncio"), 3)],
)
def test_pairs_of_fields_make_the_calls_that_are_billed(
    batches, broker_url, monkeypatch, start_worker, storages, storage, pools, every
):
    root, files = storages(storage)
    for name, value in {**_KEEN, **batches.environment, "FANOUT_STORAGE": root}.items():
        monkeypatch.setenv(name, value)
    # Soon after a death in the middle of a submission its batch is made, if it was not.
    patches = {"fanout.llm.batches.base:SETTLE_S": 2.0}
    workers = [
        start_worker("--concurrency", "4", patches=patches, FANOUT_POOL=pool) for pool in pools
    ]
    is_killed = every > 1
    failures: dict[str, str] = {}
    rng = random.Random(1)
    rows = covering({name: list(values) for name, values in _FIELDS.items()})[::every]
    moments = [rng.random() for _ in rows]

    def try_out(number: int) -> None:
        row = rows[number]
        try:
            job = Job(client, batches, row, f"pair{number:03}")
            jobs.append(job)
            job.carry_out(moments[number])
            job.check(is_killed=is_killed)
        except BaseException as error:  # noqa: BLE001 - all are told of
            failures[" ".join(row.values())] = repr(error)

    jobs: list[Job] = []
    with Client(broker_url) as client:
        with ThreadPoolExecutor(len(rows)) as threads:
            done = [threads.submit(try_out, number) for number in range(len(rows))]
            if is_killed:
                wait_for(
                    lambda: sum(one.done() for one in done) > len(rows) // 3, "some ended", _END_S
                )
                workers[0].kill()
        assert not failures, "\n".join(f"{row}: {error}" for row, error in failures.items())
        assert batches.doubled == []
        runs = [run for job in jobs for run in job.runs]
        for run in runs:
            with suppress(UnknownRunError):
                run.delete()
        server = client._connections.store._redis

        def left() -> list[str]:
            keys = [key.decode() for key in server.keys("*")]
            return [one for one in (*keys, *files()) if any(run.run_id in one for run in runs)]

        wait_for(lambda: not left(), "nothing of the runs is left")
        wait_for(lambda: not server.keys("fanout:batches:batch:*"), "no batch is left")
