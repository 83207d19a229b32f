"""What an operator can do while the server is full: look at everything, pause, stop and delete."""

from __future__ import annotations

import json

import pytest
import redis

from tests.integration.conftest import wait_for

JOB = ("x.jsonl", "--prompt", "{input}", "--max-attempts", "1")


@pytest.fixture
def full(fanout, here, broker_url, client, start_worker, monkeypatch):
    """A fleet with an ended run and one under way, whose server takes nothing more."""
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    (here / "x.jsonl").write_text("".join(f'{{"text": "text {i}"}}\n' for i in range(20)))
    start_worker("--concurrency", "4", FANOUT_GRACE_S="1")
    ended = fanout("submit", *JOB, "--model", "fake?fail_rate=0.3").stdout.strip()
    client.run(ended).wait(120)
    slow = fanout("submit", *JOB, "--model", "fake?latency_s=600").stdout.strip()
    wait_for(lambda: client.fleet().leases.taken >= 4, "calls are in flight")
    with redis.Redis.from_url(broker_url) as server:
        server.config_set("maxmemory", server.info("memory")["used_memory"] // 2)
        try:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                server.set("x", "y")
            yield ended, slow
        finally:
            # Other tests have the same server.
            server.config_set("maxmemory", 0)


def test_a_full_server_can_be_looked_at_and_steered(full, fanout, here, client):
    ended, slow = full

    def say(*words):
        done = fanout(*words)
        assert done.status == 0, (words, done.stderr)
        return done.stdout

    assert json.loads(say("status", ended, "--json"))["done"] == 20
    assert len(say("runs").splitlines()) == 2
    assert say("results", ended)
    assert say("errors", ended)
    say("report", ended, "--out", "page.html")
    assert (here / "page.html").exists()
    say("watch", ended)
    say("heal")
    # What is wrong is that it is full; the rest is found out all the same.
    found = json.loads(fanout("doctor", "--json").stdout)["findings"]
    assert {"memory", "workers", "queues", "runs"} <= {each["check"] for each in found}

    assert "is paused" in say("pause", slow)
    assert json.loads(say("status", slow, "--json"))["status"] == "paused"
    assert "goes on" in say("unpause", slow)
    assert "is stopped" in say("cancel", slow)

    # What would take room is refused, and in plain words.
    for words in (["submit", *JOB, "--model", "fake"], ["retry", ended]):
        done = fanout(*words)
        assert done.status == 1
        assert "is full (maxmemory is reached)" in done.stderr
        assert "fanout delete" in done.stderr

    # Workers still say that they live, long after they last could write anything else.
    sent_at = client.fleet().workers[0].sent_at
    wait_for(lambda: client.fleet().workers[0].sent_at > sent_at, "a worker says that it lives")
    assert "1 · " in say("workers")
    say("delete", ended)
    say("delete", slow)
    assert say("runs") == ""
