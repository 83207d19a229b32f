"""docs/operations.md: what it has people type gives them a working fleet."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from ports import free_port

from tests.needs import needs

from .conftest import FANOUT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def ready(log, what):
    """A shell's way to wait until a line is in a file: who types is slower than that."""
    return f'until grep -q "{what}" {log} 2> /dev/null; do sleep 0.05; done\n'


@pytest.mark.timeout(300)
def test_a_fleet_by_hand_from_top_to_bottom(tmp_path):
    needs("redis-server", "openssl")
    for name in ("ops", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    secrets, setup, workers, watchers, run = BLOCKS
    # The server reads its files of appended commands before anybody types the next line.
    script = secrets + ready("fleet/redis.log", "Ready to accept connections")
    script += (
        setup
        + workers
        + ready("fleet/worker-1.log", "ready.")
        + ready("fleet/worker-2.log", "ready.")
    )
    script += watchers + ready("fleet/flower.log", "Connected to\\|Visit me") + run
    for port in ("6379", "5555", "9808"):
        script = script.replace(port, str(free_port()))
    environment = {**os.environ, "PATH": f"{Path(FANOUT).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as shell:  # fmt: skip
        try:
            # What stays in the background holds the pipes open: the shell's own end counts.
            status = shell.wait(240)
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
        out, said = shell.communicate(timeout=120)
    assert status == 0, said
    assert " fail " not in out
    assert re.search(r"^workers +2\b.* 0 of 32 ", out, re.MULTILINE)
    assert "succeeded: 27 of 27 branches (100.0%)" in said
    assert (tmp_path / "results" / "run.json").exists()
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
