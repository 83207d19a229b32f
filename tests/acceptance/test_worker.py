"""`fanout worker`, as an operator starts and stops it."""

from __future__ import annotations

import signal
import subprocess

import pytest

from fanout import Client
from tests.integration.conftest import wait_for

from .conftest import FANOUT


@pytest.fixture
def worker(here, broker_url):
    with (here / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [FANOUT, "worker", "--broker-url", broker_url, "-c", "3", "--hostname", "w@test"],
            stdout=log, stderr=log,
        )  # fmt: skip
    with Client(broker_url) as client:
        wait_for(lambda: client.workers() == {"w@test": 3}, "the worker consumes")
    yield process
    process.kill()
    process.wait()


def test_a_worker_serves_a_fleet_and_ends_on_sigterm(fanout, here, worker, broker_url):
    (here / "a.txt").write_text("x")
    job = ("run", "a.txt", "-m", "fake", "-p", "{input}", "--reduce", "concat")
    done = fanout(*job, FANOUT_BROKER_URL=broker_url)
    assert done.status == 0
    assert done.stdout.startswith("fake answer")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    with Client(broker_url) as client:
        assert client.workers() == {}
    log = (here / "worker.log").read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_a_worker_without_a_broker_says_so_at_once(fanout):
    done = fanout("worker", "--broker-url", "redis://127.0.0.1:1")
    assert done.status == 1
    assert done.stderr.startswith("fanout: no broker answers at 127.0.0.1:1")


def test_a_sentinel_url_that_names_no_master_is_wrong_usage(fanout):
    done = fanout("worker", "--broker-url", "sentinel://:hunter2@127.0.0.1:1/0")
    assert done.status == 2
    assert done.stderr.startswith("fanout: FANOUT_BROKER_URL: names no master")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("arguments", [["-c", "0"], ["-c", "many"], ["--pool", "fibers"]])
def test_wrong_usage_is_said(fanout, arguments):
    done = fanout("worker", *arguments)
    assert done.status == 2
    assert "Error: Invalid value" in done.stderr
