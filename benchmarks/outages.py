"""Measures the branches that an outage of the provider costs, with fanout's default settings.

    python benchmarks/outages.py [--branches 3000] [--lasts 120] [--at-once 3] [--sort 500] ...

Each kind of outage begins some seconds after the first call of its own run, with its own fleet and
mock provider. The result is benchmarks/results/outages.json: the number of failed branches and of
failed calls, and the seconds from the end of the outage to the next answer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save
from provider import Provider
from provider_outages import SORTS

from fanout import RunSpec

_BEGINS_S = 5.0
_LOOK_S = 0.1
_BOUND_S = 3_000.0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=3_000)
    parser.add_argument("--lasts", type=float, default=120.0, help="seconds of each outage")
    parser.add_argument("--latency", type=float, default=1.0, help="of a call, in seconds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=3, help="sorts that are tried side by side")
    parser.add_argument("--sort", action="append", choices=SORTS, help="default: each")
    return parser.parse_args()


def once(sort: str, given: argparse.Namespace) -> dict[str, Any]:
    """Cause one outage; return its costs."""
    latency = f"constant:{given.latency:g}"
    with (
        tempfile.TemporaryDirectory(prefix="fanout-outage-") as folder,
        Provider(latency=latency) as provider,
        Fleet(folder, workers=given.workers, base_url=provider.base_url) as fleet,
    ):
        spec = RunSpec(model="openai/mock", prompt="{input}")
        run = fleet.client.submit(spec, documents(given.branches))
        while run.status().succeeded == 0:
            time.sleep(_LOOK_S)
        time.sleep(_BEGINS_S)
        provider.fail(sort, given.lasts)
        ended, before = time.monotonic() + given.lasts, 0
        while time.monotonic() < ended:
            before = run.status().succeeded
            time.sleep(_LOOK_S)
        while not run.status().status.has_ended and run.status().succeeded <= before:
            time.sleep(_LOOK_S)
        back_s = time.monotonic() - ended
        status = run.wait(_BOUND_S)
    result = {
        "sort": sort,
        "what": SORTS[sort],
        "lasts_s": given.lasts,
        "branches": given.branches,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "calls_in_vain": status.usage.calls - status.succeeded,
        "back_s": rounded(back_s),
        "seconds": rounded(status.elapsed_s),
    }
    print(result, file=sys.stderr, flush=True)
    return result


def main() -> None:
    given = parsed()
    with ThreadPoolExecutor(given.at_once) as threads:
        found = list(threads.map(partial(once, given=given), given.sort or SORTS))
    settings = {name: value for name, value in vars(given).items() if name != "sort"}
    save(RESULTS / "outages.json", {"machine": machine(), "settings": settings, "outages": found})


if __name__ == "__main__":
    main()
