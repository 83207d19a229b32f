"""What it takes to write the table of a run: seconds, peak memory and size, for each format.

Each format is written in a process of its own, from branches that are made as they are written: the
memory is that of writing. ``--rows`` may be several: flat memory shows as equal figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout.core.records import Usage
from fanout.runs.branch_output import Output
from fanout.runs.rows import RowLayout
from fanout.runs.tables.formats import FORMATS
from fanout.runs.tables.output_file import OutputFile

if TYPE_CHECKING:
    from collections.abc import Iterator

_USAGE = Usage(calls=1, input_tokens=120, output_tokens=30, cost_usd=0.00042)
_TEXT = "The delivery was late, and nobody answered the phone, so I sent it back. " * 3
_ANSWER = "The customer is unhappy with the delivery and the support. "
_MB = 2**20


def branches(count: int) -> Iterator[Output]:
    """Yield branches of rows with an id, a score and a text."""
    for number in range(count):
        yield Output(
            index=number, document=f"reviews.csv:{number + 2}", document_index=number, chunk=number,
            position=0, start=0, end=len(_TEXT), aspect=None, sample=0,
            output=f"{_ANSWER}{number}", kind=None, message=None, attempts=1, usage=_USAGE,
            elapsed_s=0.5, columns={"id": f"{number:07d}", "score": number % 5}, text_at=2,
            text_column="text", text=_TEXT,
        )  # fmt: skip


def write_one(suffix: str, count: int, folder: Path) -> dict[str, Any]:
    """Write a file in this process; return what it took."""
    path = folder / f"out{suffix}"
    began = time.monotonic()
    with OutputFile(path, RowLayout()) as file:
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        file.write(branches(count))
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "format": suffix,
        "rows": count,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": round(peak_kb / 1024),
        "before_mb": round(before_kb / 1024),
        "file_mb": round(path.stat().st_size / _MB, 1),
    }


def measured(suffix: str, count: int, folder: Path) -> dict[str, Any]:
    """Write a file in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", suffix, "--rows", str(count), "--folder", str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the figures of each format as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--one", choices=FORMATS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(write_one(given.one, given.rows[0], given.folder)))
        return
    for suffix in FORMATS:
        for count in given.rows:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                print(json.dumps(measured(suffix, count, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
