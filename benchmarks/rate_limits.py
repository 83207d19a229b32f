"""Measures how much of a provider's rate limit a fleet uses, and how many calls it has refused.

    python benchmarks/rate_limits.py [--rpm 1200 3000] [--tpm 60000] [--workers 1 4 8] [--at-once 4] ...

Each case has its own server, worker processes and mock provider, which counts requests and tokens as a
bucket or as windows of a minute. The limits are told to fanout (``told``), learnt from the headers of
replies (``headers``), or found out by refusals (``nothing``). What counts is the time after the first
``--learns`` seconds. The result is benchmarks/results/rate_limits.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save
from provider import Provider
from provider_limits import KINDS

from fanout import RateSpec, RunSpec

_SIZE_BYTES = 400
_BOUND_S = 120.0


class Case(NamedTuple):
    """One limit, and how fanout knows of it."""

    unit: str
    per_minute: float
    kind: str
    known: str
    workers: int


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rpm", type=float, nargs="*", default=[1_200, 3_000])
    parser.add_argument("--tpm", type=float, nargs="*", default=[300_000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=["bucket", "window"])
    parser.add_argument(
        "--known", choices=["told", "headers", "wait", "nothing"], nargs="*",
        default=["told", "headers"],
    )  # fmt: skip
    parser.add_argument("--latency", default="lognormal:1:0.3", help="see provider.py")
    parser.add_argument("--in-flight", type=int, default=256, help="places of all workers")
    parser.add_argument("--learns", type=float, default=60.0, help="seconds that do not count")
    parser.add_argument("--lasts", type=float, default=120.0, help="seconds that count")
    parser.add_argument("--at-once", type=int, default=2, help="cases that run side by side")
    return parser.parse_args()


def once(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Run one case; return the use of its limit."""
    is_tokens = case.unit == "tokens"
    limit: dict[str, Any] = {"tpm" if is_tokens else "rpm": case.per_minute}
    told = {f"{case.unit}_per_minute": case.per_minute} if case.known == "told" else {}
    tells = "nothing" if case.known == "told" else case.known
    # A request of this size has some 150 tokens with its answer.
    count = int(case.per_minute / (100 if is_tokens else 1) * (given.learns + given.lasts) / 20)
    with (
        tempfile.TemporaryDirectory(prefix="fanout-limits-") as folder,
        Provider(
            latency=given.latency, limit_kind=case.kind, limit_tells=tells, **limit
        ) as provider,
        Fleet(
            folder,
            workers=case.workers,
            concurrency=max(1, given.in_flight // case.workers),
            base_url=provider.base_url,
        ) as fleet,
    ):
        spec = RunSpec(model="openai/mock", prompt="{input}", rate=RateSpec(**told))
        run = fleet.client.submit(spec, documents(count, _SIZE_BYTES))
        while not provider.stats()["served"]:
            time.sleep(0.05)
        time.sleep(given.learns + given.lasts)
        lasts_s = int(given.learns + given.lasts)
        # Seconds without a request at the end are not in it.
        seconds = [*provider.stats()["by_second"], *([[0, 0, 0]] * lasts_s)][:lasts_s]
        found = run.status()
        run.cancel()
        run.wait(_BOUND_S)
    result = {
        **case._asdict(),
        **_use(case, seconds[int(given.learns) :], "steady"),
        "learning_refused": sum(second[1] for second in seconds[: int(given.learns)]),
        "failed": found.failed,
    }
    print(result, file=sys.stderr, flush=True)
    return result


def _use(case: Case, seconds: list[list[int]], name: str) -> dict[str, Any]:
    accepted, refused, tokens = (sum(second[n] for second in seconds) for n in range(3))
    used = tokens if case.unit == "tokens" else accepted
    return {
        f"{name}_used": rounded(used / (case.per_minute / 60 * len(seconds))),
        f"{name}_refused": rounded(refused / max(1, accepted + refused)),
        f"{name}_calls": accepted + refused,
    }


def main() -> None:
    given = parsed()
    limits = [("requests", rpm) for rpm in given.rpm] + [("tokens", tpm) for tpm in given.tpm]
    cases = [
        Case(unit, per_minute, kind, known, workers)
        for (unit, per_minute), kind, known, workers in product(
            limits, given.kind, given.known, given.workers
        )
    ]
    with ThreadPoolExecutor(given.at_once) as threads:
        found = list(threads.map(partial(once, given=given), cases))
    settings = {name: getattr(given, name) for name in ("latency", "in_flight", "learns", "lasts")}
    save(RESULTS / "rate_limits.json", {"machine": machine(), "settings": settings, "cases": found})


if __name__ == "__main__":
    main()
