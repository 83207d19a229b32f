"""`fanout worker`, as an operator starts and stops it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest
import redis

from fanout import Client
from fanout.broker import app as broker
from fanout.stores import RedisStore
from tests.integration.conftest import wait_for

from .conftest import FANOUT

COMMAND = ["-A", "workers.app", "worker"]


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
    assert worker.wait(120) == 0
    with Client(broker_url) as client:
        assert client.workers() == {}
    log = (here / "worker.log").read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_a_worker_starts_again_on_sighup_as_the_same_process(here, worker, broker_url):
    log = here / "worker.log"
    wait_for(lambda: log.read_text().count(" ready.\n") == 1, "it is ready")
    worker.send_signal(signal.SIGHUP)
    wait_for(lambda: log.read_text().count(" ready.\n") == 2, "it is ready again")
    with Client(broker_url) as client:
        wait_for(lambda: client.workers() == {"w@test": 3}, "it has its options still")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 0


@pytest.mark.parametrize(
    "words", [[], ["worker"], ["-A", "other.app", "worker"], ["-b", "x", *COMMAND]]
)
def test_the_program_of_a_worker_is_for_that_and_nothing_else(words):
    done = subprocess.run(
        [sys.executable, "-m", "workers", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m workers")


def test_a_worker_whose_starter_is_gone_looks_for_no_other_server():
    command = [sys.executable, "-m", "workers", "--broker-url-from-stdin", *COMMAND]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "fanout: no broker's URL came from standard input\n"


def test_a_worker_without_a_broker_says_so_at_once(fanout):
    done = fanout("worker", "--broker-url", "redis://127.0.0.1:1")
    assert done.status == 1
    assert done.stderr.startswith("fanout: no broker answers at 127.0.0.1:1")


def test_a_sentinel_url_that_names_no_master_is_wrong_usage(fanout):
    done = fanout("worker", "--broker-url", "sentinel://:hunter2@127.0.0.1:1/0")
    assert done.status == 2
    assert done.stderr.startswith("fanout: --broker-url: names no master")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["-c", "0"], ["-c", "many"], ["--pool", "fibers"], ["-l", "loud"]]
)
def test_wrong_usage_is_reported(fanout, arguments):
    done = fanout("worker", *arguments)
    assert done.status == 2
    assert done.stderr.startswith("fanout: Invalid value")


def test_what_traces_need_is_said_at_once(fanout, broker_url):
    wrong = {"FANOUT_TRACES": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    done = fanout("worker", "--broker-url", broker_url, **wrong)
    assert done.status == 2
    assert done.stderr.startswith("fanout: OTEL_EXPORTER_OTLP_PROTOCOL: workers speak")
    done = fanout("worker", "--broker-url", broker_url, FANOUT_TRACES="jaeger")
    assert done.status == 2
    assert done.stderr.startswith("fanout: FANOUT_TRACES: ")


@pytest.fixture
def json_worker(monkeypatch, request):
    monkeypatch.setenv("FANOUT_LOG_FORMAT", "json")
    return request.getfixturevalue("worker")


def test_a_json_log_has_one_object_a_line_and_no_contents(fanout, here, json_worker, broker_url):
    (here / "a.txt").write_text("".join(f"canary-3b {n}\n" for n in range(40)))
    job = ["run", "a.txt", "--split", "lines", "-p", "canary-3b {input}"]
    job += ["-m", "fake?fail_rate=0.3", "--max-attempts", "1", "--reduce", "none"]
    fanout(*job, FANOUT_BROKER_URL=broker_url)
    json_worker.send_signal(signal.SIGTERM)
    json_worker.wait(120)
    log = (here / "worker.log").read_text()
    assert "canary" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    # What Celery says past all logs, of stopping and of root, begins otherwise.
    rest = [line for line in log.splitlines() if line.startswith(("[", "Traceback"))]
    assert rest == []
    (end,) = [line for line in lines if line["message"].startswith(f"run {lines[-1]['run_id']} ")]
    assert end["level"] == "INFO"
    assert " failed (server_error " in end["message"]
    branches = [line for line in lines if "position" in line]
    assert len(branches) == 1, "of the many that failed, one line"
    assert branches[0]["message"] == "failed: server_error"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-Q", "typo"], "--queues: no queue is called 'typo'; allowed are control, branches"),
        (["--autoscale", "4,1"], "--autoscale: works with the prefork pool only"),
        (["-P", "prefork", "--autoscale", "1,4"], "--autoscale: must be MAX,MIN"),
        (["--name", "a b"], "--name: must be letters"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(fanout, arguments, words):
    done = fanout("worker", *arguments)
    assert done.status == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_option_of_a_worker_names_its_variable(fanout):
    shown = fanout("worker", "--help").stdout
    for name in ("concurrency", "queues", "worker_name", "pool", "autoscale", "loglevel"):
        assert f"$FANOUT_{name.upper()}" in shown


def test_a_worker_of_another_version_says_so_and_does_not_start(here, broker_url):
    with redis.Redis.from_url(broker_url) as server:
        RedisStore(server).claim_wire(broker.WIRE_VERSION, holder="of the fleet", ttl_s=60)
    patched = (
        "from fanout.broker import app; from fanout.cli import main; app.WIRE_VERSION += 1; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", patched, "worker", "--broker-url", broker_url],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("fanout: this worker has a newer fanout than the fleet: it speaks ")
    assert "install the fleet's fanout here" in line


def test_a_worker_makes_room_for_its_open_files_or_refuses_what_does_not_fit(here, broker_url):
    limited = ["sh", "-c", 'ulimit -Sn 256 && ulimit -Hn 1000 && exec "$@"', "sh"]
    command = [*limited, FANOUT, "worker", "--broker-url", broker_url, "--hostname", "w@files"]
    refused = subprocess.run(
        [*command, "-c", "900"], capture_output=True, text=True, check=False, timeout=120
    )
    assert refused.returncode == 2
    assert "900 branches in flight need 1,028 open files" in refused.stderr
    assert "lower --concurrency (FANOUT_CONCURRENCY) to 872" in refused.stderr
    assert "Traceback" not in refused.stderr
    with (here / "worker.log").open("wb") as log:
        process = subprocess.Popen([*command, "-c", "500"], stdout=log, stderr=log)
    with Client(broker_url) as client:
        wait_for(lambda: client.workers().get("w@files") == 500, "the worker consumes")
    assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE) == (628, 1_000)
    process.kill()
    process.wait()
