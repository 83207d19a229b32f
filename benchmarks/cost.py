"""Measures what jobs cost, in dollars, against a mock that bills as OpenAI and Anthropic do.

    python benchmarks/cost.py [--suite job] [--documents 2000] [--tokens 2000] [--workers 2]
    python benchmarks/cost.py --suite aspects [--documents 50] [--tokens 4000]
    python benchmarks/cost.py --ways batch     # only these, in the results that there are

``job``: three aspects over documents, of which 10 % are there twice; then the same again after 1 % of
them have changed. A plain loop sends each prompt as it is written. fanout runs the job in each lane on
a fleet of its own. ``aspects``: three aspects over documents, once with prompts in the order in which
they are written, and once as fanout orders them.

All dollars are those of the mock's own ledger (billing_provider.py); beside them stands what fanout
counts. A lane in which no call was billed is left out. The results are
benchmarks/results/cost-SUITE.json, from which benchmarks/tables.py writes docs/cost.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, TCPConnector
from billing_provider import BillingProvider
from fleet import Fleet
from measure import RESULTS, machine, rounded, save, versions

from fanout import RunSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ASPECTS", "MODELS", "aspects", "job", "texts"]

MODELS = {"openai": "gpt-5-mini", "anthropic": "claude-sonnet-4-5"}
ASPECTS = {
    name: f"You read documents with care. In one or two sentences, say {what}:\n\n{{input}}"
    for name, what in {
        "topic": "what this document is about",
        "mood": "in what mood this document was written, and how one can see that",
        "people": "who is named in this document, and in what role",
    }.items()
}
_LANES = {"openai": ("realtime", "flex", "batch"), "anthropic": ("realtime", "batch")}
_DUPLICATES, _CHANGED = 0.10, 0.01
_TEXT = (
    "the report says that a river of this region has more water in spring than towns along it can use "
    "while farmers ask for a share and the council will decide on the matter before the summer"
)
_WORDS = _TEXT.split()
_BYTES_PER_TOKEN = 4
_BOUND_S = 3_600.0
_PACKAGES = ("fanout-llm", "genai-prices")


def texts(count: int, tokens: int, *, seed: int = 1) -> list[str]:
    """Return distinct documents of a length in the mock's tokens."""
    draw = random.Random(seed)  # noqa: S311 - repeatable
    size = tokens * _BYTES_PER_TOKEN
    made = []
    for number in range(count):
        words = [f"Document {seed}-{number}:"]
        words += draw.choices(_WORDS, k=size // 4)
        made.append(" ".join(words)[:size])
    return made


def _with_duplicates(documents: Sequence[str]) -> list[str]:
    """Return as many documents, the last tenth of them copies of others."""
    copies = round(len(documents) * _DUPLICATES)
    kept = list(documents[: len(documents) - copies])
    return kept + random.Random(2).sample(kept, copies)  # noqa: S311 - repeatable


def _changed(documents: Sequence[str]) -> list[str]:
    """Return the documents, one in a hundred of them changed."""
    count = max(1, round(len(documents) * _CHANGED))
    places = set(random.Random(3).sample(range(len(documents)), count))  # noqa: S311 - repeatable
    return [f"Changed. {text}" if place in places else text for place, text in enumerate(documents)]


def job(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of the standard job, for each provider and way to run it."""
    first = _with_duplicates(texts(options.documents, options.tokens))
    passes = [first, _changed(first)]
    rows = []
    for provider, model in MODELS.items():
        with BillingProvider(latency=options.latency) as mock:
            if "loop" in options.ways:
                rows.append(_row(provider, "loop", _loop_costs(mock, provider, model, passes)))
            for lane in _LANES[provider]:
                if lane not in options.ways:
                    continue
                fields = {"model": f"{provider}/{model}", "lane": lane}
                costs = _fleet_costs(mock, options, passes, fields)
                if not costs[0]["calls"].get(lane):
                    print(f"{provider}: no call was billed as {lane}", file=sys.stderr)
                    continue
                rows.append(_row(provider, lane, costs))
    return rows


def aspects(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of three aspects, with prompts as written and as fanout orders them."""
    documents = texts(options.documents, options.tokens)
    rows = []
    for provider, model in MODELS.items():
        with BillingProvider(latency=options.latency) as mock:
            for order in options.ways:
                fields = {"model": f"{provider}/{model}", "prompt_order": order}
                costs = _fleet_costs(mock, options, [documents], fields)
                rows.append(_row(provider, order, costs))
    return rows


def _row(provider: str, way: str, costs: list[dict[str, Any]]) -> dict[str, Any]:
    row = {"provider": provider, "way": way, "passes": costs}
    shown = [f"{cost['usd']:.4f}" for cost in costs]
    print(f"{provider:9} {way:10} ${' + $'.join(shown)}", file=sys.stderr, flush=True)
    return row


def _fleet_costs(
    mock: BillingProvider,
    options: argparse.Namespace,
    passes: Sequence[Sequence[str]],
    fields: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return what runs over documents cost on a new fleet, one after the other."""
    mock.reset()
    spec = RunSpec(aspects=ASPECTS, reduce="none", **fields)
    costs = []
    with (
        tempfile.TemporaryDirectory(prefix="fanout-cost-") as folder,
        Fleet(
            folder,
            workers=options.workers,
            concurrency=options.concurrency,
            env=mock.environment,
        ) as fleet,
    ):
        for documents in passes:
            started = time.perf_counter()
            status = fleet.client.submit(spec, documents).wait(_BOUND_S)
            if status.succeeded != len(documents) * len(ASPECTS):
                raise RuntimeError(f"{status.succeeded} branches succeeded: {status.error}")
            cost = {**mock.ledger(), "counted_usd": status.usage.cost_usd}
            costs.append({**cost, "wall_s": rounded(time.perf_counter() - started)})
            # What a provider has cached is gone when the job is run again some day.
            mock.reset()
    return costs


def _loop_costs(
    mock: BillingProvider, provider: str, model: str, passes: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    costs = []
    for documents in passes:
        mock.reset()
        asyncio.run(_loop(mock.url, provider, model, documents))
        costs.append(mock.ledger())
    return costs


async def _loop(url: str, provider: str, model: str, documents: Sequence[str]) -> None:
    """Send each prompt as it is written, some at a time."""
    path = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[provider]
    turns = asyncio.Semaphore(32)

    async def call(session: ClientSession, prompt: str) -> None:
        body = {"model": model, "max_tokens": 1_000, "messages": [_user(prompt)]}
        async with turns, session.post(url + path, json=body) as reply:
            reply.raise_for_status()
            json.loads(await reply.read())

    async with ClientSession(connector=TCPConnector(limit=64)) as session:
        prompts = [
            template.replace("{input}", text) for text in documents for template in ASPECTS.values()
        ]
        await asyncio.gather(*(call(session, prompt) for prompt in prompts))


def _user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


_SUITES = {"job": (job, 2_000, 2_000), "aspects": (aspects, 50, 4_000)}
_WAYS = {"job": ("loop", "realtime", "flex", "batch"), "aspects": ("as_written", "auto")}


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=_SUITES, default="job")
    parser.add_argument("--documents", type=int, help="default: 2,000; of aspects, 50")
    parser.add_argument(
        "--tokens", type=int, help="of a document; default: 2,000; of aspects, 4,000"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=16, help="of each worker")
    parser.add_argument("--latency", default="lognormal:0.05:0.5", help="as for provider.py")
    parser.add_argument(
        "--ways", help="some of loop,realtime,flex,batch: only these rows are made anew"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.ways = options.ways.split(",") if options.ways else list(_WAYS[options.suite])
    if unknown := set(options.ways) - set(_WAYS[options.suite]):
        parser.error(
            f"--ways: {', '.join(sorted(unknown))} is none of {', '.join(_WAYS[options.suite])}"
        )
    _, documents, tokens = _SUITES[options.suite]
    options.documents = options.documents or documents
    options.tokens = options.tokens or tokens
    options.out = options.out or RESULTS / f"cost-{options.suite}.json"
    return options


def _merged(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return new rows in the place of those before, and those that were not made anew."""
    if set(options.ways) == set(_WAYS[options.suite]) or not options.out.exists():
        return rows
    new = {(row["provider"], row["way"]): row for row in rows}
    before = json.loads(options.out.read_text())["rows"]
    return [new.get((row["provider"], row["way"]), row) for row in before]


def main() -> None:
    options = _parsed()
    rows = _merged(_SUITES[options.suite][0](options), options)
    told = {name: value for name, value in vars(options).items() if name not in {"out", "ways"}}
    about = {"options": told, "machine": machine(), "versions": versions(_PACKAGES)}
    save(options.out, {**about, "rows": rows})


if __name__ == "__main__":
    main()
