"""Reads files, and tells how: a process of ``benchmarks/documents.py``, one for each measurement.

    python benchmarks/corpus/read.py fanout|markitdown PATH [--cores 1] [--texts FOLDER]

Prints one JSON object: documents, seconds (without those of the imports), what failed, and the
memory of this process while it read. ``--texts`` is where the text of each file is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_SAMPLES = 500
_PAGE_KB = 4


class Read(NamedTuple):
    """A file or row that was read, or why it was not."""

    name: str
    text: str
    error: str | None = None


def _by_fanout(path: Path) -> Iterator[Read]:
    from fanout.core.spec import make_spec
    from fanout.inputs.intake import checked_documents

    spec = make_spec(inputs=str(path), model="fake", prompt="{input}")
    for document in checked_documents(spec, None, notify=lambda _notice: None):
        yield Read(document.name, document.text, document.error)


def _by_markitdown(folder: Path) -> Iterator[Read]:
    from markitdown import MarkItDown

    reader = MarkItDown()
    for path in sorted(folder.iterdir()):
        try:
            yield Read(str(path), reader.convert(str(path)).text_content)
        except Exception as error:  # noqa: BLE001 - whatever fails costs its file
            yield Read(str(path), "", f"{type(error).__name__}: {error}"[:200])


_READERS = {"fanout": _by_fanout, "markitdown": _by_markitdown}


def _import(tool: str) -> None:
    if tool == "markitdown":
        import markitdown  # noqa: F401 - so that it is not part of what is measured
    else:
        import fanout.inputs.intake  # noqa: F401 - as above


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * _PAGE_KB / 1_000


def read(tool: str, path: Path, texts: Path | None) -> dict[str, object]:
    """Read all of it; return what there is to tell."""
    documents = chars = 0
    failed: dict[str, str] = {}
    memory: list[tuple[float, int, float]] = []
    began = sampled = time.perf_counter()
    every_s = 0.05
    for one in _READERS[tool](path):
        documents += 1
        chars += len(one.text)
        if one.error is not None:
            failed[Path(one.name).name] = one.error
        if texts is not None:
            (texts / f"{Path(one.name).name}.txt").write_text(one.text, encoding="utf-8")
        if time.perf_counter() - sampled >= every_s:
            sampled = time.perf_counter()
            memory.append((round(sampled - began, 2), documents, round(_rss_mb(), 1)))
            if len(memory) >= _SAMPLES:
                # Half as many, half as often: a long run has no more samples than a short one.
                memory, every_s = memory[::2], every_s * 2
    seconds = time.perf_counter() - began
    memory.append((round(seconds, 2), documents, round(_rss_mb(), 1)))
    return {"documents": documents, "chars": chars, "seconds": seconds, "failed": failed,
            "memory": memory}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=_READERS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--cores", type=int, default=1)
    options = parser.parse_args()
    # Inherited by children: as many parsers run as there are cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    _import(options.tool)
    json.dump(read(options.tool, options.path, options.texts), sys.stdout)


if __name__ == "__main__":
    main()
