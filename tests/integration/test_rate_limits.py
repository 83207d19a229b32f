"""One rate limit for a whole fleet: two real workers, and how long their calls take."""

from __future__ import annotations

import time

import pytest
from provider import Provider

from tests.integration.conftest import wait_for

pytestmark = pytest.mark.integration

CALLS = 24


def test_two_workers_and_two_runs_share_a_rate(client, start_worker):
    for _ in range(2):
        start_worker("--concurrency", "8")
    job = {"model": "fake", "prompt": "{input}", "rate": {"requests_per_minute": 300}}
    began = time.monotonic()
    runs = [client.submit(job, [f"t{n}" for n in range(CALLS // 2)]) for _ in range(2)]
    for run in runs:
        assert run.wait(120).succeeded == CALLS // 2
    # Five a second, and the five of an idle second at once: (24 - 6) / 5 s at least.
    assert time.monotonic() - began >= 3.6


def test_a_provider_that_refuses_is_left_alone_by_all(client, start_worker):
    for _ in range(2):
        start_worker("--concurrency", "4")
    model = "fake?fail_rate=0.3&fail_kind=rate_limited&retry_after_s=0.2"
    run = client.submit({"model": model, "prompt": "{input}"}, [f"t{n}" for n in range(20)])
    status = run.wait(120)
    assert status.succeeded + status.failed == 20
    assert client.fleet().totals.pauses == status.usage.calls - status.succeeded
    assert client.fleet().totals.pauses > 0


@pytest.mark.parametrize("tells", ["headers", "wait"])
def test_limits_that_nobody_told_are_learnt_by_all_workers(client, start_worker, tells):
    """A bucket of 10 requests a second: 32 calls at once are too many."""
    with Provider(
        latency="constant:0.1", rpm=600, limit_kind="second", limit_tells=tells
    ) as provider:
        for _ in range(2):
            start_worker("--concurrency", "16", OPENAI_BASE_URL=provider.base_url)
        job = {"model": "openai/mock", "prompt": "{input}"}
        learning = client.submit(job, [f"t{n}" for n in range(40)]).wait(120)
        assert (learning.succeeded, learning.failed) == (40, 0)
        wait_for(lambda: "openai/mock" in client.fleet().limits, "its limit is reported")
        limit = client.fleet().limits["openai/mock"]
        assert provider.stats()["by_status"]["429"] > 0
        if tells == "wait":
            assert limit.calls_at_once is not None
            return
        assert limit.learnt.requests_per_minute == 600
        before = provider.stats()["by_status"]["429"]
        learnt = client.submit(job, [f"u{n}" for n in range(40)]).wait(120)
        assert (learnt.succeeded, learnt.failed) == (40, 0)
        assert provider.stats()["by_status"]["429"] - before <= 3
        # The workers kept to it: half of a burst, and then ten a second.
        assert learnt.elapsed_s > 2


@pytest.mark.parametrize("known", ["headers", "told"])
def test_a_run_that_waits_for_its_limit_keeps_no_place_from_others(client, start_worker, known):
    """One call a second beside calls of a tenth of a second, on the same 8 places."""
    told = {"rate": {"requests_per_minute": 60}} if known == "told" else {}
    tells = "headers" if known == "headers" else "nothing"
    with Provider(latency="constant:0.02", rpm=60, limit_tells=tells) as provider:
        start_worker("--concurrency", "8", OPENAI_BASE_URL=provider.base_url)
        limited = client.submit(
            {"model": "openai/mock", "prompt": "{input}", "retries": {"max_attempts": 9}, **told},
            [f"slow{n}" for n in range(200)],
        )
        # It has used up half of the limit, and waits.
        least = 35 if known == "headers" else 2
        wait_for(lambda: limited.status().done >= least, "it waits for its limit")
        before = provider.stats()["served"]
        free = client.submit(
            {"model": "fake?latency_s=0.1", "prompt": "{input}"}, list("abcdefgh") * 20
        )
        assert free.wait(120).succeeded == 160
        # Alone the other run takes 2 s, and more on a busy machine; the limited one makes a call a second.
        assert provider.stats()["served"] - before <= 30
        assert limited.status().failed == 0
        limited.cancel()
