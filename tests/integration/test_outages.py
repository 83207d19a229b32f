"""A provider that is down, and a real worker: its branches wait, and can be steered meanwhile."""

from __future__ import annotations

import signal

import pytest

from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import wait_for
from tests.scripted_provider import openai_reply

pytestmark = pytest.mark.integration

MODEL = "openai/down"
PLACES = 6


def test_branches_wait_for_a_provider_that_is_down_and_can_be_steered(
    client, provider, start_worker
):
    is_down = True

    def respond(_headers, body):
        if body is None:
            return 200, {"data": []}
        return (503, {"error": {"message": "busy"}}) if is_down else (200, openai_reply("yes"))

    provider.respond = respond
    base = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    worker = start_worker("--concurrency", str(PLACES), **base)

    def submit(count=PLACES, **fields):
        spec = make_spec(model=MODEL, prompt="{input}", **fields)
        return client.submit(spec, [f"text {number}" for number in range(count)])

    def limit():
        return client.fleet().limits.get(MODEL)

    paused = submit()
    wait_for(lambda: limit() and limit().down_s is not None, "the breaker is open")
    assert limit().blocked_s > 0, "it is known when the next call is tried"
    # A run that is paused holds no message, although its branches were begun.
    assert paused.pause()
    wait_for(lambda: client.fleet().leases.taken == 0, "its branches are parked")
    assert paused.status().status is RunStatus.PAUSED
    cancelled = submit()
    wait_for(lambda: client.fleet().leases.taken >= PLACES, "they are taken")
    cancelled.cancel()
    assert cancelled.wait(120).errors == {ErrorKind.CANCELLED: PLACES}
    late = submit(deadline_s=3.0)
    assert late.wait(120).errors == {ErrorKind.EXPIRED: PLACES}
    assert paused.unpause()
    wait_for(lambda: client.fleet().leases.taken >= PLACES, "they are taken again")
    # A worker that is to stop does not wait for the provider.
    worker.signal(signal.SIGTERM)
    worker.process.wait(120)
    is_down = False
    start_worker("--concurrency", str(PLACES), **base)
    status = paused.wait(120)
    assert (status.succeeded, status.failed) == (PLACES, 0)
    wait_for(lambda: limit() is None or limit().down_s is None, "the breaker is closed")


def test_one_document_that_always_fails_ends_while_others_succeed(client, provider, start_worker):
    def respond(_headers, body):
        if body is None:
            return 200, {"data": []}
        is_bad = "text 7;" in body["messages"][-1]["content"]
        return (500, {"error": {"message": "no"}}) if is_bad else (200, openai_reply("yes"))

    provider.respond = respond
    provider.delay_s = 0.02
    start_worker("--concurrency", "4", OPENAI_BASE_URL=f"{provider.url}/v1", OPENAI_API_KEY="k")
    spec = make_spec(model=MODEL, prompt="{input}", retries={"base_wait_s": 0.05})
    run = client.submit(spec, [f"text {number};" for number in range(60)])
    status = run.wait(120)
    assert (status.succeeded, status.errors) == (59, {ErrorKind.SERVER_ERROR: 1})
    # A few more where no other call is there to compare with.
    assert 5 <= run.result().errors[0].attempts <= 15
