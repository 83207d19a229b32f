"""How many cores a process has, and how many threads the local model gets."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from fanout.system import resources
from fanout.system.resources import (
    model_threads,
    quota_cores,
    share_free_memory,
    usable_cores,
)


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


def threads_keep_mb(setting):
    """Return the memory that a process keeps after twenty threads have had 30 MB each, one by one."""
    code = (
        "import re, sys, threading\n"
        "from fanout.system.resources import share_free_memory\n"
        "if sys.argv[1] == 'shared': assert share_free_memory()\n"
        "def use():\n"
        "    held = [bytes(5_000) for _ in range(6_000)]\n"
        "    kept.append(held[-1])\n"
        "kept, waits = [], threading.Barrier(21)\n"
        "def run(): use(); waits.wait()\n"
        "threads = []\n"
        "for at in range(20):\n"
        "    threads.append(threading.Thread(target=run)); threads[-1].start()\n"
        "    while len(kept) <= at: pass\n"
        "waits.wait()\n"
        "print(re.search('VmRSS: *\\t*([0-9 ]+) kB', open('/proc/self/status').read())[1])\n"
    )
    words = [sys.executable, "-c", code, setting]
    return int(subprocess.run(words, capture_output=True, check=True, text=True).stdout) / 1_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no pools")
def test_threads_share_the_memory_that_is_free(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    alone, shared = threads_keep_mb("alone"), threads_keep_mb("shared")
    assert shared < alone / 2
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert not share_free_memory()
