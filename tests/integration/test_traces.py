"""Spans on their way from real workers to a collector."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port

from fanout import ParallelCalls, RunStatus
from fanout.core.spec import make_spec
from tests.collector import Collector

FANOUT = Path(sys.executable).parent / "fanout"
CANARY = "canary-5d1e"


@pytest.fixture
def collector():
    running = Collector()
    yield running
    running.close()


def submit(client, count, **fields):
    fields = {"model": "fake", "prompt": f"{CANARY} {{input}}", **fields}
    run = client.submit(make_spec(**fields), [f"{CANARY} {i}" for i in range(count)])
    run.wait(120)
    return run


def assert_one_tree(collector, branches, calls=None):
    """All is there once, in one trace, and each span's parent is of the kind it should be."""
    above = {"fanout.run": "", "fanout.shard": "fanout.run", "fanout.branch": "fanout.shard"}
    names = {span.span_id: span.name for span in collector.spans}
    assert len(names) == len(collector.spans), "an id twice"
    assert len({span.trace_id for span in collector.spans}) == 1
    for span in collector.spans:
        assert names.get(span.parent_id, "") == above.get(span.name, "fanout.branch")
    assert len(collector.named("fanout.run")) == 1
    assert len(collector.named("fanout.branch")) == branches
    assert len([n for n in names.values() if n.startswith("chat ")]) == (calls or branches)
    assert CANARY.encode() not in collector.raw


def test_two_workers_write_one_tree(collector, start_worker, client):
    workers = [
        start_worker(
            "--concurrency",
            "8",
            OTEL_RESOURCE_ATTRIBUTES=f"service.instance.id=w{number}",
            **collector.env,
        )
        for number in range(2)
    ]
    model = "fake?latency_s=0.05&fail_rate=0.1&flaky_rate=0.1"
    run = submit(
        client, 520, model=model, retries={"max_attempts": 2, "base_wait_s": 0.001}, reduce="none"
    )
    for worker in workers:
        worker.stop()
    status = run.status()
    assert 0 < status.failed < 100
    assert_one_tree(collector, 520, calls=status.usage.calls)
    by = {(span.name, span.worker) for span in collector.named("fanout.branch")}
    assert len(by) == 2, "both workers took part"
    failed = [s for s in collector.named("fanout.branch") if "error.type" in s.attributes]
    assert len(failed) == status.failed
    assert len(collector.named("fanout.shard")) == 2


def test_prefork_children_send_their_spans_when_they_end(collector, start_worker, client):
    worker = start_worker("--concurrency", "2", FANOUT_POOL="prefork", **collector.env)
    submit(client, 12, reduce="none")
    worker.stop()
    assert_one_tree(collector, 12)


def test_an_embedded_worker_sends_its_spans_before_it_is_ended(collector, tmp_path, monkeypatch):
    for name, value in collector.env.items():
        monkeypatch.setenv(name, value)
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{CANARY} {n}\n" for n in range(9)))
    command = [FANOUT, "run", source, "--split", "lines"]
    command += ["--model", "fake", "--prompt", f"{CANARY} {{input}}", "--reduce", "none"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=120)
    branches = len(collector.named("fanout.branch"))
    assert branches > 1
    assert_one_tree(collector, branches)


def test_a_worker_in_this_process_sends_its_spans(collector, monkeypatch):
    for name, value in collector.env.items():
        monkeypatch.setenv(name, value)
    with ParallelCalls(llm=lambda prompt: prompt.upper()) as runner:
        result = runner.run([CANARY, "b"], "{input}")
    assert result.status is RunStatus.SUCCEEDED
    assert_one_tree(collector, 2)


def test_a_collector_that_is_away_costs_a_worker_seconds_at_its_end(start_worker, client):
    nobody = f"http://127.0.0.1:{free_port()}"
    worker = start_worker(
        "--concurrency",
        "8",
        FANOUT_TRACES="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=nobody,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    run = submit(client, 300, reduce="none")
    assert run.status().status is RunStatus.SUCCEEDED
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 50
    log = worker.log.read_text()
    assert log.count("while exporting") + log.count("Failed to export") == 1
    assert "Traceback" not in log
