"""What replaces a step of a library's, as each branch has it, does what the library does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from celery import Celery, states
from celery.events.dispatcher import EventDispatcher
from celery.worker import state
from redis.connection import HiredisRespSerializer
from redis.exceptions import DataError

from fanout.broker.result_backend import TaskFault, TolerantRedisBackend
from fanout.llm.deadline import Deadline
from fanout.stores.connection import PACKER
from workers.branch.execution import BranchFailed
from workers.telemetry.events import Dispatcher

EVENTS = [
    ("task-received", {"name": "fanout.branch", "args": "()", "retries": 0, "eta": None}),
    ("task-started", {}),
    ("task-succeeded", {"result": "None", "runtime": 0.5}),
    ("task-failed", {"exception": "BranchFailed('timeout')", "traceback": ""}),
]


@pytest.fixture
def app():
    with Celery(broker="memory://", set_as_current=False) as app:
        yield app


def sent(kind, app, **options):
    """What a dispatcher keeps for the next batch, and how often it says so."""
    heard = []
    with app.connection_for_write() as connection:
        dispatcher = kind(
            connection,
            hostname="w@test",
            app=app,
            on_send_buffered=lambda: heard.append(1),
            **options,
        )
        for type_, fields in EVENTS:
            dispatcher.send(type_, uuid="r1/0/0/1", **fields)
        dispatcher.send("worker-online", freq=5)
        kept = [dict(event) for event in dispatcher._group_buffer["task"]]
        dispatcher.flush()
        assert dispatcher._group_buffer["task"] == []
    moments = [(event.pop("timestamp"), event.pop("clock")) for event in kept]
    assert moments == sorted(moments)
    assert len(set(moments)) == len(moments)
    return kept, len(heard)


@pytest.mark.parametrize(
    ("options", "many"),
    [
        ({"buffer_group": {"task"}}, len(EVENTS)),
        ({"buffer_group": {"task"}, "groups": ["worker"]}, 0),
        ({"buffer_group": {"task"}, "enabled": False}, 0),
        ({}, 0),
    ],
)
def test_the_events_of_tasks_are_those_of_celery(app, options, many):
    ours = sent(Dispatcher, app, **options)
    assert ours == sent(EventDispatcher, app, **options)
    assert len(ours[0]) == ours[1] == many


def test_as_many_events_as_a_batch_has_are_sent_at_once(app, monkeypatch):
    batches = []
    monkeypatch.setattr(Dispatcher, "_publish", lambda _self, events, *_a: batches.append(events))
    with app.connection_for_write() as connection:
        dispatcher = Dispatcher(connection, hostname="w", app=app, buffer_group={"task"})
        dispatcher.buffer_limit = 3
        for number in range(7):
            dispatcher.send("task-started", uuid=str(number))
    assert [[event["uuid"] for event in batch] for batch in batches] == [list("012"), list("345")]


@pytest.mark.parametrize(
    ("result", "is_told"),
    [
        (None, None),
        (BranchFailed("timeout"), None),
        (TaskFault("ValueError at workers.reduce.stages:7"), "ValueError"),
    ],
)
def test_a_member_of_a_chord_is_written_as_celery_writes_it(app, result, is_told):
    app.conf.broker_transport_options = {"run_keys": "fanout:run:"}
    backend = TolerantRedisBackend(app=app, url="redis://127.0.0.1:1/0")
    written = []
    backend.__dict__["_members_script"] = lambda keys, args: written.append(args)
    task_state = states.SUCCESS if result is None else states.FAILURE
    request = SimpleNamespace(id="r1/0/0/1", group_index=1)
    backend._write_members("r1/0/0", [(request, task_state, result)])
    [[place, task_id, entry]] = written
    assert (place, task_id) == (1, "r1/0/0/1")
    of_celery = backend.encode([1, task_id, task_state, backend.encode_result(result, task_state)])
    assert entry == of_celery
    record = backend._unpack_chord_result(entry, backend.decode)
    assert (record and record["error"]) == is_told


def test_what_has_succeeded_is_remembered_by_nobody(monkeypatch):
    """Its message is gone, so Celery has no use for it."""
    from workers.consumer.task_requests import BranchRequest

    request = object.__new__(BranchRequest)
    request.id, request._eventer = "r1/0/0/1", None
    state.task_reserved(request)
    before = len(state.successful_requests)
    request.on_settled(None)
    assert request.id not in state.requests
    assert request not in state.reserved_requests
    assert len(state.successful_requests) == before


class AsAsyncio:
    """asyncio's own, in the form of ours."""

    def __init__(self, seconds):
        self._timeout = asyncio.timeout(seconds)

    def __enter__(self):
        with pytest.raises(StopIteration):
            self._timeout.__aenter__().send(None)

    def __exit__(self, *raised):
        try:
            self._timeout.__aexit__(*raised).send(None)
        except StopIteration as ended:
            return ended.value


async def within(deadline, *, seconds, takes_s, raises=False, is_cancelled=False):
    """How a task ends that waits within a deadline, and what it is left with."""
    ends = []

    async def wait():
        try:
            with deadline(seconds):
                await asyncio.sleep(takes_s)
                assert not raises
        except BaseException as error:
            ends.append(type(error).__name__)
            ends.append(type(error.__cause__).__name__)
            raise
        finally:
            ends.append(asyncio.current_task().cancelling())

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    if is_cancelled:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return *ends, task.cancelled()


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"seconds": 60, "takes_s": 0}, (0, False)),
        ({"seconds": 0.01, "takes_s": 60}, ("TimeoutError", "CancelledError", 0, False)),
        ({"seconds": 0, "takes_s": 60}, ("TimeoutError", "CancelledError", 0, False)),
        (
            {"seconds": 60, "takes_s": 60, "is_cancelled": True},
            ("CancelledError", "NoneType", 1, True),
        ),
        ({"seconds": 60, "takes_s": 0, "raises": True}, ("AssertionError", "NoneType", 0, False)),
    ],
)
def test_a_deadline_ends_what_asyncios_would(given, ends):
    assert asyncio.run(within(AsAsyncio, **given)) == ends
    assert asyncio.run(within(Deadline, **given)) == ends


def test_a_deadline_leaves_to_others_what_they_cancel_as_well():
    async def main():
        async def wait():
            with Deadline(0.01):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    asyncio.current_task().cancel()
                    raise

        task = asyncio.get_running_loop().create_task(wait())
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert asyncio.run(main())


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("FCALL", "f", 1, b"\xff\x00", "ä", 2.5, -3),
        ("CONFIG GET", "maxmemory"),
        (b"CONFIG GET", "maxmemory"),
        ("SET", "k", bytearray(b"v")),
        ("SET", "k", memoryview(b"v")),
        ("SET", "k", ""),
    ],
)
def test_a_command_is_sent_as_redis_py_sends_it(command):
    assert b"".join(PACKER.pack(*command)) == b"".join(HiredisRespSerializer().pack(*command))


@pytest.mark.parametrize("argument", [None, [1], object()])
def test_what_is_no_argument_of_a_command_is_said_as_by_redis_py(argument):
    with pytest.raises(DataError):
        PACKER.pack("SET", "k", argument)
