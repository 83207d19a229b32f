"""Measures the branches that an outage of the provider costs, with fanout's default settings.

    python benchmarks/outages.py [--branches 3000] [--lasts 120] [--at-once 3] [--sort 500] ...

Each kind of outage begins some seconds after the first call of its own run, with its own fleet and
mock provider. The result is benchmarks/results/outages.json: the number of failed branches and of
failed calls, and the seconds from the end of the outage to the next answer. Failed calls are told apart by
the breaker of the fleet: those until it opened, those until each worker had heard of that, and those since
then, which are probes if no call can succeed.
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
_MODEL = "openai/mock"
# A worker hears of the breaker within half a second, and a call takes a moment to its provider.
_HEARS_S = 1.0


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
        spec = RunSpec(model=_MODEL, prompt="{input}")
        run = fleet.client.submit(spec, documents(given.branches))
        while run.status().succeeded == 0:
            time.sleep(_LOOK_S)
        time.sleep(_BEGINS_S)
        # Calls of the same length begin and end together.
        in_flight = max(_in_flight(provider) for _ in range(round(given.latency / _LOOK_S)))
        began_at = time.time()
        provider.fail(sort, given.lasts)
        ended, before, opened_s = time.monotonic() + given.lasts, 0, None
        while time.monotonic() < ended:
            before = run.status().succeeded
            if opened_s is None and (opened_at := _opened_at(fleet)) is not None:
                opened_s = opened_at - began_at
            time.sleep(_LOOK_S)
        while not run.status().status.has_ended and run.status().succeeded <= before:
            time.sleep(_LOOK_S)
        back_s = time.monotonic() - ended
        status = run.wait(_BOUND_S)
        struck_s = provider.stats()["struck_s"]
    result = {
        "sort": sort,
        "what": SORTS[sort],
        "lasts_s": given.lasts,
        "branches": given.branches,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "calls_in_vain": status.usage.calls - status.succeeded,
        "in_flight": in_flight,
        "breaker_after_s": None if opened_s is None else rounded(opened_s),
        **_parts(struck_s, opened_s),
        "back_s": rounded(back_s),
        "seconds": rounded(status.elapsed_s),
    }
    print(result, file=sys.stderr, flush=True)
    return result


def _in_flight(provider: Provider) -> int:
    time.sleep(_LOOK_S)
    return int(provider.stats()["in_flight"])


def _opened_at(fleet: Fleet) -> float | None:
    """Return when the fleet's breaker opened, in seconds since the epoch; None if it has not."""
    store = fleet.client._connected().store  # noqa: SLF001 - to ask for it would count as a probe
    opened_at: Any = store._redis.hget(store._limits, f"o:{_MODEL}")  # noqa: SLF001 - see there
    return None if opened_at is None else float(opened_at)


def _parts(struck_s: list[float], opened_s: float | None) -> dict[str, int]:
    """Tell the struck requests apart; those of refused connections are not known."""
    opened_s = float("inf") if opened_s is None else opened_s
    heard_s = opened_s + _HEARS_S
    return {
        "until_open": sum(one <= opened_s for one in struck_s),
        "until_heard": sum(opened_s < one <= heard_s for one in struck_s),
        "since": sum(one > heard_s for one in struck_s),
    }


def main() -> None:
    given = parsed()
    with ThreadPoolExecutor(given.at_once) as threads:
        found = list(threads.map(partial(once, given=given), given.sort or SORTS))
    settings = {name: value for name, value in vars(given).items() if name != "sort"}
    save(RESULTS / "outages.json", {"machine": machine(), "settings": settings, "outages": found})


if __name__ == "__main__":
    main()
