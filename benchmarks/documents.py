"""Measures how documents and rows are read, without models: text found, time, memory.

    python benchmarks/documents.py [--suite formats] [--files 1000] [--rounds 3] [--quick]

The suites:

    formats   1,000 files of eleven formats with known text (``corpus/``), beside markitdown
    scale     the same files on one core and on two
    memory    the client's memory over a PDF of 1,000 pages, 100,000 text files, 10,000 HTML files
              and a Parquet file of 1,000,000 rows
    rows      rows a second of JSONL and CSV, and the ratio to an older checkout (--before)

Each measurement is a process of its own, on one core (``scale``: on two as well). Seconds have no
imports in them. Memory is that of the process and of its children together, at the highest, and in
``memory`` that of the client alone. Results go to benchmarks/results/documents-SUITE.json; with
--quick, a mere trial, to build/benchmarks. What the files are made with is installed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import peers
from corpus.words import found_chars
from measure import RESULTS, MemoryPeak, machine, ratios, save, spread, versions

if TYPE_CHECKING:
    from collections.abc import Iterable

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
_BUILD = _ROOT / "build/documents"
_TOOLS = ("fanout", "markitdown")
_SAMPLE_S = 0.05
_ROWS = 100_000
_TEXT = "We the People of the United States, in Order to form a more perfect Union"


class Reading(NamedTuple):
    """What ``corpus/read.py`` told, and the peak of its memory, children included."""

    told: dict[str, Any]
    peak_mb: float

    @property
    def seconds(self) -> float:
        """Seconds that the reading took."""
        return float(self.told["seconds"])


def _read(tool: str, path: Path, *, cores: int, texts: Path | None = None,
          checkout: Path = _ROOT) -> Reading:  # fmt: skip
    python = peers.DOCUMENTS_PYTHON if tool == "markitdown" else Path(sys.executable)
    command = [str(python), str(_HERE / "corpus/read.py"), tool, str(path)]
    command += ["--texts", str(texts)] if texts is not None else []
    command += ["--cores", str(cores)]
    source = {} if tool == "markitdown" else {"PYTHONPATH": str(checkout)}
    out = subprocess.PIPE
    with (
        subprocess.Popen(command, env=os.environ | source, stdout=out, stderr=out) as process,
        MemoryPeak(process.pid, every_s=_SAMPLE_S) as peak,
    ):
        told, said = process.communicate()
    if process.returncode:
        sys.exit(f"{tool} failed on {path}: {said.decode()[-2_000:]}")
    return Reading(json.loads(told), peak.pss_mb)


def _corpus(files: int) -> Path:
    """Return the folder of the corpus, made if it is missing."""
    folder = _BUILD / f"corpus-{files}"
    if not (folder / "made").exists():
        print(f"making {files:,} files", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, "--files", str(files))
        (folder / "made").touch()
    return folder


def _make(folder: Path, *options: str) -> None:
    command = [str(peers.DOCUMENTS_PYTHON), str(_HERE / "corpus/make.py"), str(folder), *options]
    subprocess.run(command, check=True)


def _formats(corpus: Path) -> list[str]:
    return sorted(path.name for path in corpus.iterdir()
                  if path.is_dir() and path.name != "reference")  # fmt: skip


def formats(files: int, rounds: int) -> dict[str, Any]:
    """Read each format with each tool, in turns."""
    corpus = _corpus(files)
    result: dict[str, Any] = {}
    for kind in _formats(corpus):
        paths = sorted((corpus / kind).iterdir())
        result[kind] = {"files": len(paths)}
        trials: dict[str, list[Reading]] = {tool: [] for tool in _TOOLS}
        for number in range(rounds):
            for tool in _TOOLS[:: 1 if number % 2 == 0 else -1]:
                texts = _BUILD / "texts" / tool / kind
                texts.mkdir(parents=True, exist_ok=True)
                trials[tool].append(_read(tool, corpus / kind, cores=1, texts=texts))
        for tool, readings in trials.items():
            each = [reading.seconds / len(paths) for reading in readings]
            result[kind][tool] = {
                **_recall(corpus, paths, _BUILD / "texts" / tool / kind),
                "failed": readings[-1].told["failed"],
                "seconds_per_file": spread(each),
                "peak_mb": spread([reading.peak_mb for reading in readings]),
            }
        figures = result[kind]
        print(kind, *(f"{tool}: {figures[tool]['found_share']:.2%}" for tool in _TOOLS),
              file=sys.stderr)  # fmt: skip
    return {"formats": result}


def _recall(corpus: Path, paths: Iterable[Path], texts: Path) -> dict[str, float]:
    """Return the shares of the references' characters that were found, and that are more."""
    size = found = more = without = 0
    for path in paths:
        reference = (corpus / f"reference/{path.suffix[1:]}-{path.stem}.txt").read_text()
        text = texts / f"{path.name}.txt"
        one = found_chars(reference, text.read_text() if text.exists() else "")
        size, found, more = size + one[0], found + one[1], more + one[2]
        without += one[1] == 0
    return {"found_share": found / size, "more_share": more / size, "files_without_text": without}


def scale(files: int, rounds: int) -> dict[str, Any]:
    """Read the formats whose parsing takes time on one core, and on two."""
    corpus = _corpus(files)
    result: dict[str, Any] = {}
    for kind in ("pdf", "docx", "all"):
        path = _mixed(corpus) if kind == "all" else corpus / kind
        by_cores: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for cores, seconds in by_cores.items():
                seconds.append(_read("fanout", path, cores=cores).seconds)
        faster = [one / two for one, two in zip(by_cores[1], by_cores[2], strict=True)]
        result[kind] = {
            "one_core_s": spread(by_cores[1]), "two_cores_s": spread(by_cores[2]),
            "times_faster": spread(faster),
        }  # fmt: skip
    return {"scale": result}


def _mixed(corpus: Path) -> Path:
    """Return a folder with all files of the corpus and without their references."""
    mixed = corpus.with_name(f"{corpus.name}-mixed")
    if not mixed.exists():
        mixed.mkdir()
        for kind in _formats(corpus):
            for path in (corpus / kind).iterdir():
                (mixed / path.name).hardlink_to(path)
    return mixed


def memory(part: float) -> dict[str, Any]:
    """Read large inputs; return the client's memory over the documents."""
    result = {}
    for name, make, whole in (
        ("pages", _pages, 1_000),
        ("texts", _small_texts, 100_000),
        ("html", _small_html, 10_000),
        ("parquet", _parquet, 1_000_000),
    ):
        count = max(10, int(whole * part))
        path = _BUILD / f"{name}-{count}{'.parquet' if name == 'parquet' else ''}"
        if not path.exists():
            make(path, count)
        reading = _read("fanout", path, cores=2)
        samples = reading.told["memory"]
        first = samples[len(samples) // 5]
        result[name] = {
            "count": count,
            "documents": reading.told["documents"],
            "failed": len(reading.told["failed"]),
            "seconds": reading.seconds,
            "client_mb": {"at_a_fifth": first[2], "at_the_end": samples[-1][2],
                          "most": max(sample[2] for sample in samples)},
            "peak_mb": reading.peak_mb,
            "samples": samples[:: max(1, len(samples) // 40)],
        }  # fmt: skip
        print(name, result[name]["client_mb"], file=sys.stderr)
    return {"memory": result}


def _pages(path: Path, count: int) -> None:
    _make(path, "--pages", str(count))


def _small_texts(path: Path, count: int) -> None:
    for number in range(count):
        file = path / f"{number // 1_000:03}/{number:06}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Letter {number}. {_TEXT}\n")


def _small_html(path: Path, count: int) -> None:
    for number in range(count):
        file = path / f"{number // 1_000:03}/{number:06}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<html><body><h1>Letter {number}</h1><p>{_TEXT}</p></body></html>\n")


def _parquet(path: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    step = 50_000
    schema = pa.schema([("id", pa.int64()), ("stars", pa.float64()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, step):
            ids = range(start, min(start + step, count))
            columns = [list(ids), [one % 10 / 2 for one in ids], [f"{one} {_TEXT}" for one in ids]]
            writer.write_table(pa.table(columns, schema=schema))


def rows(before: str, rounds: int, count: int) -> dict[str, Any]:
    """Read the same JSONL and CSV with this checkout and an older one, in turns."""
    older = _BUILD / f"checkout-{before}"
    if not older.exists():
        older.mkdir(parents=True)
        git = ["git", "-C", str(_ROOT), "archive", before, "fanout"]
        with subprocess.Popen(git, stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-x", "-C", str(older)], stdin=archive.stdout, check=True)  # noqa: S607
    result = {}
    for name in ("jsonl", "csv"):
        path = _BUILD / f"rows-{count}.{name}"
        if not path.exists():
            _rows(path, count)
        speeds: dict[str, dict[int, float]] = {"now": {}, "before": {}}
        for number in range(rounds):
            pair = (("now", _ROOT), ("before", older))
            for when, checkout in pair[:: 1 if number % 2 == 0 else -1]:
                reading = _read("fanout", path, cores=1, checkout=checkout)
                speeds[when][number] = reading.told["documents"] / reading.seconds
        result[name] = {
            "rows": count,
            **{f"{when}_rows_per_s": spread(list(each.values())) for when, each in speeds.items()},
            "now_over_before": spread(ratios(speeds["now"], speeds["before"])),
        }
        print(name, result[name], file=sys.stderr)
    return {"before": before, "rows": result}


def _rows(path: Path, count: int) -> None:
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("id,stars,text\n")
        for number in range(count):
            stars = number % 10 / 2
            if path.suffix == ".csv":
                file.write(f'{number},{stars},"{number} {_TEXT}"\n')
            else:
                row = {"id": number, "stars": stars, "text": f"{number} {_TEXT}"}
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = ("formats", "scale", "memory", "rows")
    parser.add_argument("--suite", choices=(*suites, "all"), default="formats")
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", default="b5a4c4d", help="the commit that rows are compared to")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    peers.install_documents()
    files, rounds, part = options.files, options.rounds, 1.0
    if options.quick:
        files, rounds, part = 66, 1, 0.01
    _BUILD.mkdir(parents=True, exist_ok=True)
    for suite in suites if options.suite == "all" else (options.suite,):
        about: dict[str, Any] = {
            "machine": machine(),
            "versions": versions(("kreuzberg", "pyarrow", "fanout-llm"))
            | versions(("markitdown",), peers.DOCUMENTS_PYTHON),
        }
        if suite == "formats":
            about |= formats(files, rounds)
        elif suite == "scale":
            about |= scale(files, rounds)
        elif suite == "memory":
            about |= memory(part)
        else:
            about |= rows(options.before, max(rounds, 5) if not options.quick else 1,
                          int(_ROWS * part))  # fmt: skip
        folder = _ROOT / "build/benchmarks" if options.quick else RESULTS
        save(folder / f"documents-{suite}.json", about)


if __name__ == "__main__":
    main()
