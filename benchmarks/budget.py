"""Measures whether a budget is kept, and how much of it is used: many seeded trials on a real server.

    python benchmarks/budget.py [--trials 100] [--branches 10000] [--in-flight 1000] [--workers 8]

Each trial has its own seed, prices, answer lengths and budget (a third to two thirds of what all
branches would cost). The processes are accounts as workers have them (workers.context.budget_account),
all on one loop; the server decides by its script. Some branches call several times, and of some calls
nothing becomes known. The result is benchmarks/results/budget.json: the largest share of the budget
that was ever spent or reserved, and the smallest share that was used in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from measure import RESULTS, machine, rounded, save
from services import Processes, Valkey

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits, nano_usd_of
from fanout.core.errors import LLMError
from fanout.core.records import Usage
from fanout.policy.budgets import most_of_call, used_by_call
from fanout.policy.pricing import Price
from fanout.stores import RedisStore
from workers.context.budget_account import BudgetAccount
from workers.context.inflight import InFlight

_DIES_AFTER_S = 15.0
_UNKNOWN_SHARE = 0.002
_AGAIN_SHARE = 0.05
_WELL_USED = 0.99


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--branches", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.02, help="the longest call, in seconds")
    parser.add_argument("--out", default=str(RESULTS / "budget.json"))
    return parser.parse_args()


class Trial:
    """One run with its budget; its branches are shared out among the processes."""

    def __init__(self, store: RedisStore, seed: int, given: argparse.Namespace) -> None:
        self._rand = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self._given = given
        self._run_id = f"trial{seed:03}"
        self._price = Price(
            input_mtok=self._rand.uniform(0.1, 3.0), output_mtok=self._rand.uniform(1.0, 15.0)
        )
        self._longest = self._rand.randint(100, 1_000)
        self._answers = [
            (self._rand.randint(100, 4_000), self._answer()) for _ in range(given.branches)
        ]
        whole = sum(self._used(*one).nano_usd for one in self._answers)
        self._limit = int(whole * self._rand.uniform(1 / 3, 2 / 3))
        limits = BudgetLimits(nano_usd=self._limit)
        store.create_run(self._run_id, spec="{}", created_at=time.time(), budget=(limits, limits))
        self._store = store
        in_flight = InFlight(store)
        self._accounts = [
            BudgetAccount(
                self._report,
                process=str(number),
                in_flight=in_flight,
                dies_after_s=_DIES_AFTER_S,
            )
            for number in range(given.workers)
        ]
        self._reports = 0
        self._most_booked = 0
        self._made = self._billed = 0

    def _answer(self) -> int:
        return min(self._longest, int(self._rand.lognormvariate(0, 1) * self._longest / 5) + 1)

    def _used(self, prompt_tokens: int, answer_tokens: int) -> Amounts:
        usage = Usage(calls=1, input_tokens=prompt_tokens, output_tokens=answer_tokens)
        cost = self._price.cost(usage)
        return Amounts(nano_usd=nano_usd_of(cost or 0.0), calls=1)

    def _report(self, report: Any) -> Any:
        reply = self._store.report_budget(self._run_id, report, dies_after_s=_DIES_AFTER_S)
        booked = reply.state.used + reply.state.held
        self._most_booked = max(self._most_booked, booked.nano_usd)
        self._reports += 1
        return reply

    async def _call(self, account: BudgetAccount, prompt_tokens: int, answer_tokens: int) -> bool:
        # The bytes of a prompt are some four times its tokens.
        most = most_of_call(4 * prompt_tokens, self._longest, price=self._price)
        try:
            await account.take(most, is_reduce=False)
        except LLMError:
            return False
        await asyncio.sleep(self._rand.random() * self._given.latency)
        used = self._used(prompt_tokens, answer_tokens)
        self._made += 1
        # What the provider bills, also where its answer is lost.
        self._billed += used.nano_usd
        is_unknown = self._rand.random() < _UNKNOWN_SHARE
        account.settle(most, used_by_call(Usage(calls=1), most) if is_unknown else used)
        return True

    async def _branch(self, number: int) -> None:
        account = self._accounts[number % len(self._accounts)]
        account.opens()
        again = True
        while again and await self._call(account, *self._answers[number]):
            again = self._rand.random() < _AGAIN_SHARE
        account.closes()

    async def run(self) -> dict[str, Any]:
        """Process the branches; return what was spent and reserved, as shares of the budget."""
        began = time.monotonic()
        numbers = iter(range(len(self._answers)))

        async def work() -> None:
            for number in numbers:
                await self._branch(number)

        await asyncio.gather(*(work() for _ in range(self._given.in_flight)))
        for account in self._accounts:
            await account.aclose()
        state = self._store.budget(self._run_id)
        if state.held != NO_AMOUNTS or state.unsure != NO_AMOUNTS:
            raise RuntimeError(f"something is still reserved: {state}")
        return {
            "run": self._run_id,
            "calls": self._made,
            "reports": self._reports,
            "billed_share": rounded(self._billed / self._limit),
            "spent_share": rounded(state.spent.nano_usd / self._limit),
            "booked_share": rounded(self._most_booked / self._limit),
            "is_passed": max(self._billed, self._most_booked) > self._limit,
            "took_s": rounded(time.monotonic() - began),
        }


def main() -> int:
    given = parsed()
    trials = []
    with tempfile.TemporaryDirectory() as folder, closing(Processes(folder)) as processes:
        url = Valkey(processes).url
        store = RedisStore(redis.Redis.from_url(url))
        for seed in range(given.first_seed, given.first_seed + given.trials):
            trial = asyncio.run(Trial(store, seed, given).run())
            print(trial, file=sys.stderr, flush=True)
            trials.append(trial)
    result = {
        "trials": len(trials),
        "branches": given.branches,
        "in_flight": given.in_flight,
        "workers": given.workers,
        "passed": sum(one["is_passed"] for one in trials),
        "most_booked_share": max(one["booked_share"] for one in trials),
        "least_spent_share": min(one["spent_share"] for one in trials),
        "under_99_percent": sum(one["spent_share"] < _WELL_USED for one in trials),
        "machine": machine(),
        "each": trials,
    }
    save(Path(given.out), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
