"""`fanout probe`, as a container's health check runs it."""

from __future__ import annotations

import resource
import signal
import time

import pytest

from fanout import Client
from fanout.broker.app import make_app
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from tests.integration.conftest import wait_for
from tests.servers import ServerProcess

# A worker that speaks of itself so often is known to be stuck within seconds.
OFTEN = {"workers.consumer.presence:_EVERY_S": 0.1, "workers.consumer.liveness:_CHECK_S": 0.1}
WITHIN_S = 2

# Its polls are answered no more once the first ones were; everything else of it goes on.
STUCK = """
from kombu.transport.redis import Channel
start, starts = Channel._brpop_start, []
def stuck(self, timeout=None):
    starts.append(1)
    if len(starts) <= 2:
        return start(self, timeout)
    self._in_poll = self.client.connection
Channel._brpop_start = stuck
"""


@pytest.fixture
def probe(fanout, broker_url):
    def run(*options):
        return fanout("probe", "--within", str(WITHIN_S), "--broker-url", broker_url, *options)

    return run


def test_a_worker_is_well_idle_and_full_and_is_not_when_it_is_stopped(
    probe, start_worker, client, broker_url
):
    worker = start_worker("--concurrency", "1", patches=OFTEN)
    wait_for(lambda: probe().status == 0, "it consumes")
    assert probe("--name", worker.name).status == 0
    spec = make_spec(model="fake?latency_s=60", prompt="{input}")
    run = client.submit(spec, ["a"])
    wait_for(lambda: client.fleet().in_flight == 1, "its only slot is taken")
    full_at = time.monotonic()
    wait_for(lambda: time.monotonic() > full_at + WITHIN_S, "it could not look for so long")
    assert probe().status == 0
    worker.signal(signal.SIGSTOP)
    # Its last record may first show that it looks for no messages.
    silent = f"fanout: worker {worker.name} has sent no record for "
    wait_for(lambda: probe().stderr.startswith(silent), "it is noticed that it has stopped")
    assert probe().status == 1
    worker.signal(signal.SIGCONT)
    wait_for(lambda: probe().status == 0, "it goes on")
    run.cancel()


def test_a_worker_that_answers_pings_but_takes_no_messages_is_not_well(
    probe, start_worker, broker_url
):
    worker = start_worker(patches={**OFTEN, "exec": STUCK})
    wait_for(lambda: probe().status == 1, "it is noticed that it takes nothing")
    said = []

    def is_stuck():
        said.append(probe().stderr)
        return f"{worker.name} is alive, but has not looked for messages for" in said[-1]

    wait_for(is_stuck, "the reason is given")
    assert len(said[-1].splitlines()) == 1
    # Connections of the pool may be those of a test that broke them.
    with make_app(load_settings(broker_url=broker_url)) as app, app.connection() as connection:
        answers = app.control.ping(
            destination=[worker.name], timeout=60, limit=1, connection=connection
        )
    assert answers == [{worker.name: {"ok": "pong"}}]
    # It would wait for its poll.
    worker.kill()


def test_a_machine_without_a_worker_is_not_well_and_finding_out_is_cheap(probe, broker_url):
    with Client(broker_url):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = probe()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("fanout: no live worker on ")
    assert probe("--name", "w1@%h").stderr.startswith("fanout: no live worker w1@")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_server_that_is_away_or_hangs_is_said_in_one_line(fanout, tmp_path):
    done = fanout("probe", "--broker-url", "redis://127.0.0.1:1/0")
    assert done.status == 1
    assert done.stderr.startswith("fanout: no broker answers at 127.0.0.1:1")
    assert len(done.stderr.splitlines()) == 1
    done = fanout("probe", "--broker-url", "sentinel://127.0.0.1:1/0?master=fleet")
    assert done.status == 1
    assert "127.0.0.1:1 (No master found for 'fleet'); start a Redis server" in done.stderr
    server = ServerProcess(tmp_path / "server")
    server.signal(signal.SIGSTOP)
    try:
        done = fanout("probe", "--broker-url", server.url, timeout_s=20)
    finally:
        server.kill()
    assert done.status == 1
    assert f"no broker answers at 127.0.0.1:{server.port}" in done.stderr


def test_wrong_usage_is_reported(fanout):
    assert fanout("probe", "--within", "0").status == 2
