"""One call for identical branches on several workers, also when its worker is killed."""

from __future__ import annotations

import threading

from fanout.core.spec import make_spec
from tests.scripted_provider import openai_reply

from .conftest import wait_for

BRANCHES = 120


def test_identical_branches_make_one_call_and_two_if_its_worker_is_killed(
    client, start_worker, provider
):
    may_answer = threading.Event()

    def respond(_headers, request):
        if request is not None:
            may_answer.wait(120)
        return 200, openai_reply("yes")

    provider.respond = respond
    workers = [
        start_worker(
            *("--concurrency", "8"),
            OPENAI_BASE_URL=f"{provider.url}/v1",
            OPENAI_API_KEY=f"k{number}",
            FANOUT_VISIBILITY_TIMEOUT_S="6",
        )
        for number in range(2)
    ]

    def calls():
        return [headers["authorization"] for _, headers, body in provider.requests if body]

    def submit(prompt):
        provider.requests.clear()
        provider.callers.clear()
        spec = make_spec(model="openai/m", prompt=f"{prompt} {{input}}", reduce="none")
        return client.submit(spec, ["text"] * BRANCHES)

    # Distinct branches go on meanwhile: those that wait hold no place.
    run = submit("one")
    wait_for(calls, "a call is in flight")
    other = client.submit(
        make_spec(model="fake", prompt="{input}", reduce="none"), [f"t{n}" for n in range(50)]
    )
    assert other.wait(120).succeeded == 50
    may_answer.set()
    status = run.wait(120)
    assert (status.succeeded, len(calls()), status.saved.calls) == (BRANCHES, 1, BRANCHES - 1)

    # The worker with the call is killed.
    may_answer.clear()
    run = submit("two")
    wait_for(calls, "a call is in flight")
    keys = calls()
    workers[0 if keys == ["Bearer k0"] else 1].kill()
    wait_for(lambda: len(calls()) == 2, "another branch asks", 120)
    may_answer.set()
    status = run.wait(120)
    assert (status.succeeded, len(calls())) == (BRANCHES, 2)
    assert status.saved.calls >= BRANCHES - 1
