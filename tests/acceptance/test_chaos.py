"""Nothing is lost, and no call is repeated for no reason, if any process dies; with a tree that has begun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
# Small, and the calls long, so that each fault strikes some.
OPTIONS = {
    "--schedules": "1",
    "--faults": "8",
    "--branches": "120",
    "--shard-branches": "40",
    "--workers": "3",
    "--concurrency": "4",
    "--latency": "1",
    "--jitter": "3",
    "--gap": "2",
    "--trickle": "4",
    "--bound": "45",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [11])
def test_a_run_survives_a_schedule_of_faults(tmp_path, seed):
    out = tmp_path / "report.json"
    words = [word for option in OPTIONS.items() for word in option]
    words += ["--seed", str(seed), "--out", str(out), "--folder", str(tmp_path / "kept")]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words, "--tree", "--no-namespaces"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert out.exists(), done.stderr
    report = json.loads(out.read_text())
    total, schedule = report["totals"], report["schedules"][0]
    evidence = json.dumps({**total, **schedule["evidence"]}, indent=1)
    assert schedule["faults"] >= 6, evidence
    assert total["hung"] == 0, json.dumps(schedule["diagnostics"], indent=1)
    assert total["outcomes"] == total["branches"] == 120, evidence
    assert total["lost"] == 0, evidence
    assert total["duplicated"] == 0, evidence
    assert total["aggregate_wrong"] == 0, evidence
    assert total["other"] == 0, evidence
