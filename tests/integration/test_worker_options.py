"""What a worker is called, what it takes, and how it scales."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from fanout.core.spec import make_spec

from .conftest import wait_for

OFTEN = {"workers.consumer.presence:_EVERY_S": 0.1}


def submit(client, count, latency_s):
    spec = make_spec(model=f"fake?latency_s={latency_s}", prompt="{input}")
    return client.submit(spec, [f"text {i}" for i in range(count)])


def test_two_workers_that_nobody_has_named_do_not_hide_each_other(client, start_worker):
    """Celery's own default name is the same for both."""
    nameless = f"celery@{socket.gethostname()}"
    workers = [start_worker("--hostname", nameless, is_refused=True) for _ in range(2)]
    wait_for(lambda: len(client.workers()) == 2, "both are known")
    for name in client.workers():
        assert name.startswith("fanout-")
        assert name.endswith(f"@{socket.gethostname()}")
    workers[0].stop()
    assert len(client.workers()) == 1


def test_two_workers_with_the_same_name_are_told(start_worker):
    patches = {**OFTEN, "workers.consumer.presence:_CHECK_NAME_AT_BEAT": 5}
    first = start_worker(patches=patches)
    second = start_worker("--hostname", first.name, patches=patches, is_refused=True)
    words = f"another worker is called {first.name}, too"
    wait_for(lambda: words in second.log.read_text(), "it is said")


def test_a_prefork_pool_scales_with_its_load_and_loses_nothing(client, start_worker):
    """Celery's own command starts it, as with all its options."""
    worker = start_worker(
        "--pool", "prefork", "--autoscale", "3,1",
        program=("-m", "celery"), FANOUT_POOL="prefork", AUTOSCALE_KEEPALIVE="1",
    )  # fmt: skip
    [name] = client.workers()
    assert client.workers() == {name: 3}, "what it can come to hold counts"
    assert len(worker.children()) == 1
    # Long enough for it to be seen on a busy machine.
    run = submit(client, 60, 0.2)
    wait_for(lambda: len(worker.children()) == 3, "it has grown")
    assert run.wait(120).succeeded == 60
    assert run.status().usage.calls == 60
    wait_for(lambda: len(worker.children()) == 1, "it has shrunk")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--autoscale", "4,1", "--pool", "threads"], "--autoscale: works with the prefork pool"),
        (["--queues", "branches,typo"], "--queues: no queue is called 'typo'; allowed are control"),
    ],
)
def test_celerys_own_command_refuses_what_would_be_ignored(broker_url, options, words):
    celery = [sys.executable, "-m", "celery", "-b", broker_url, "-A", "workers.app", "worker"]
    done = subprocess.run([*celery, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
