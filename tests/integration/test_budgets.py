"""Budgets with real workers on a real server, of which one is killed with calls in flight."""

from __future__ import annotations

from html import unescape

import pytest

from fanout.cli.facts import capacity_lines
from fanout.cli.progress import summary
from fanout.cli.run_facts import run_rows, wait_hint
from fanout.core.records import ErrorKind, RunStatus
from fanout.observe.metrics import families

from .conftest import wait_for

pytestmark = pytest.mark.integration

# Its answers have 1 to 60 tokens, and a call costs a tenth of a cent at most.
MODEL = """
import asyncio, random
from fanout.core.records import Usage
from fanout.llm.base import LLMReply

class Model:
    async def check(self):
        pass

    async def complete(self, request):
        rand = random.Random(request.prompt)
        await asyncio.sleep(rand.random() * 0.2)
        usage = Usage(calls=1, input_tokens=10, output_tokens=rand.randint(1, 60))
        return LLMReply(text="yes", usage=usage)

    async def aclose(self):
        pass

model = Model()
"""
PRICE = {"input_mtok": 0.0, "output_mtok": 10.0}
MOST_USD = 0.001
LONGEST_USD = 0.0006
CALLS = 600


def test_a_budget_is_kept_although_a_worker_dies_and_a_retry_goes_on(
    client, start_worker, functions
):
    env = {
        "FANOUT_VISIBILITY_TIMEOUT_S": "5",
        "FANOUT_ALLOWED_CALLABLES": "functions_under_test:model",
        "PYTHONPATH": functions(MODEL),
    }
    killed, _ = (start_worker("--concurrency", "24", **env) for _ in range(2))
    job = {
        "model": "functions_under_test:model",
        "prompt": "{input}",
        "max_tokens": 100,
        "price": PRICE,
        "budget": {"usd": 0.15},
    }
    run = client.submit(job, [f"t{number}" for number in range(CALLS)])
    wait_for(lambda: run.status().succeeded >= 60, "some branches have ended")
    killed.kill()
    status = run.wait(120)
    assert status.status is RunStatus.SUCCEEDED
    assert set(status.errors) == {ErrorKind.BUDGET}
    budget = status.budget
    assert budget.spent.usd <= 0.15
    # What the dead worker had not reported when it died is there with the most that it can be.
    assert budget.unsure.calls <= 24
    assert budget.unsure.usd == pytest.approx(budget.unsure.calls * MOST_USD)
    assert budget.spent.usd > 0.15 - MOST_USD, "less than one call is left"
    known = status.usage.known("cost_usd")
    # The cost is the least that it was, in every view.
    is_least = budget.spent.calls > status.usage.calls
    assert (status.usage.cost_usd is None) is is_least
    least = f"at least ${known:.4f}".rstrip("0")
    page = unescape(run.report())
    shown = [
        summary(status),
        page,
        " ".join(word for _, row in run_rows(status, None) for word in row),
    ]
    assert [least in text for text in shown] == [is_least] * 3
    # A worker records an outcome and reports what its call has used in two steps, in any order, and may
    # die between them. So outcomes and settled calls differ by these alone: outcomes whose calls are not
    # settled (these are at their most, so the budget is never below the outcomes), and settled calls
    # without an outcome, which are made again.
    assert known <= budget.spent.usd + 1e-9
    without_outcome = budget.spent.calls - status.usage.calls
    assert 0 <= without_outcome <= 24
    settled = budget.spent.usd - budget.unsure.usd
    assert settled - without_outcome * LONGEST_USD <= known + 1e-9
    assert known <= settled + budget.unsure.calls * LONGEST_USD + 1e-9
    failed = [branch for branch in run.outcomes() if branch.kind is not None]
    assert all("budget of $0.15 has no room" in branch.message for branch in failed)

    assert run.retry_failed(budget={"usd": 5}) == status.failed
    status = run.wait(120)
    assert (status.succeeded, status.failed) == (CALLS, 0)
    assert status.budget.limit.usd == 5
    assert status.budget.reserved.usd == 0


def test_the_budget_of_a_day_holds_for_all_runs_and_is_shown(client, start_worker):
    start_worker("--concurrency", "8", FANOUT_BUDGET_CALLS_PER_DAY="fake*=7, openai/*=1")
    job = {"model": "fake", "prompt": "{input}"}
    runs = [client.submit(job, [f"t{number}" for number in range(5)]) for _ in range(2)]
    wait_for(lambda: sum(run.status().done for run in runs) == 7, "seven calls are made")

    def spent():
        return client.fleet().day_budgets["fake*"].spent.calls

    wait_for(lambda: spent() == 7, "they are settled")
    wait_for(lambda: client.fleet().day_budgets["fake*"].is_used_up, "others wait for the next day")
    now = client.fleet()
    assert set(now.day_budgets) == {"fake*", "openai/*"}
    assert now.to_dict()["day_budgets"]["fake*"]["left"] == {"calls": 0}
    lines = [line for line in capacity_lines(now) if line.startswith("budgets")]
    assert "fake*: 7 of 7 calls spent, used up: calls wait" in lines[0]

    def holds_no_place() -> bool:
        [worker] = client.fleet().workers
        return bool(worker.in_flight == worker.waiting == 3)

    wait_for(holds_no_place, "the calls that wait have left their places")
    assert now.to_dict()["day_budgets"]["fake*"]["is_used_up"]
    waiting = [run.status() for run in runs if run.status().done < 5]
    assert waiting
    for status in waiting:
        assert status.used_up == ["fake*"]
        assert wait_hint(status) == (
            "the budget of the day for fake* is used up: its calls wait until 00:00 UTC"
        )
    shown = {
        (sample.name, sample.labels.get("models")): sample.value
        for family in families(now)
        for sample in family.samples
    }
    assert shown["fanout_budget_calls_spent", "fake*"] == 7
    assert shown["fanout_budget_calls_limit", "openai/*"] == 1
    assert [run.status().failed for run in runs] == [0, 0]
    for run in runs:
        run.cancel()
        assert run.wait(120).done == 5
