"""`fanout run` on a folder of PDF, Word and other documents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from tests.made_documents import deep_odt, docx, eml, encrypted_pdf, pdf, pptx, zipped

from .conftest import FANOUT

FINE = {
    "a.pdf": pdf(["one", "two", "three"]),
    "b.docx": docx(["# Terms", "words"]),
    "c.pptx": pptx([("Title", "words")]),
    "d.eml": eml(b"words"),
    "e.html": b"<h1>Terms</h1><p>words",
    "f.txt": b"words",
}
SLOW = "slow.pdf"
HOSTILE = {
    "crash.odt": deep_odt,
    "secret.pdf": lambda: encrypted_pdf(b"secret"),
    SLOW: lambda: pdf([f"page {number}" for number in range(60_000)]),
    "zip.docx": lambda: zipped({"a.txt": "x"}),
}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def parsers(of):
    """The processes that parse for a command."""
    found = []
    for one in psutil.Process(of).children(recursive=True):
        # Others come and go meanwhile.
        with suppress(psutil.NoSuchProcess):
            found += [one] if any("parser_process" in word for word in one.cmdline()) else []
    return found


def test_a_folder_of_mixed_documents_is_processed_and_the_hostile_cost_themselves(fanout, here):
    (here / "in").mkdir()
    hostile = {name: make() for name, make in HOSTILE.items()}
    for name, content in {**FINE, **hostile}.items():
        (here / "in" / name).write_bytes(content)
    done = fanout(
        "run", "in", "-m", "fake", "-p", "Pages {pages}, {headings}: {input}", "--split", "tokens",
        "--parse-timeout", "2", "--out", "out", "--min-success", "0.5",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    outputs, errors = rows(here / "out" / "outputs.jsonl"), rows(here / "out" / "errors.jsonl")
    assert [row["document"] for row in outputs] == [f"in/{name}" for name in FINE]
    assert outputs[0]["pages"] == [1, 2, 3]
    assert outputs[1]["headings"] == "Terms"
    reasons = {row["document"]: row["message"] for row in errors}
    assert list(reasons) == [f"in/{name}" for name in HOSTILE]
    for name, words in {
        "crash.odt": "SIGSEGV",
        "secret.pdf": "it is encrypted",
        "slow.pdf": "took longer than 2 s",
        "zip.docx": "ZIP archive",
    }.items():
        assert words in reasons[f"in/{name}"]
    assert "4 of 10 documents (40.0%) cannot be used" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_parsers_of_a_command_that_ends_end_with_it(here, number):
    (here / SLOW).write_bytes(HOSTILE[SLOW]())
    process = subprocess.Popen(
        [FANOUT, "run", ".", "-m", "fake", "-p", "{input}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while not (found := parsers(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.wait(timeout=120)
    assert psutil.wait_procs(found, timeout=120)[1] == []
