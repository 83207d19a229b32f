"""How many cores a process has, and how many threads the local model gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fanout.system import resources
from fanout.system.resources import model_threads, quota_cores, usable_cores


@pytest.mark.parametrize(("has", "threads"), [(1, 1), (2, 1), (3, 2), (64, 63)])
def test_a_model_leaves_one_core_to_others(has, threads):
    assert model_threads(has) == threads


@pytest.fixture
def groups(tmp_path):
    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, [2.0]),
        ("0::/\n", {}, []),
        ("0::/\n", {"cpu.max": "garbage"}, []),
        (
            "3:cpuset:/\n2:cpu,cpuacct:/docker/x\n",
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            [4.0],
        ),
        # In a container the group's own folder is the root of what is mounted.
        (
            "2:cpu:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            [],
        ),
        (
            "2:cpu:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            [0.5],
        ),
    ],
)
def test_quotas_are_those_of_a_group_and_all_above_it(groups, own, files, quotas):
    assert sorted(set(quota_cores(own, groups(files)))) == quotas


@pytest.mark.parametrize(
    ("allowed", "limit", "has"),
    [
        (8, "max 100000", 8),
        (8, "250000 100000", 2),
        (2, "800000 100000", 2),
        (4, "50000 100000", 1),
    ],
)
def test_cores_are_the_fewest_that_anything_allows(groups, monkeypatch, allowed, limit, has):
    root = groups({"cpu.max": limit, "own": "0::/\n"})
    monkeypatch.setattr(resources, "_CGROUPS", root)
    monkeypatch.setattr(resources, "_OWN", root / "own")
    monkeypatch.setattr(resources, "_allowed_cores", lambda: allowed)
    assert usable_cores() == has


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_that_is_tied_to_one_core_has_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from fanout.system.resources import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"1\n"
