"""Checks broadcasts to workers: the part of Celery's remote control that fanout allows.

Celery passes the arguments of a broadcast to its commands unchecked. An error there closes the
channel. Some commands do more than a client that can only publish should be able to do: match a
worker's name by a regular expression, publish a reply into any queue, consume from any queue, or
inspect all objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from celery.worker.consumer.control import Control

from fanout.broker.dropped import MALFORMED, dropped_messages
from fanout.core.queue_names import QUEUES
from fanout.core.settings import MAX_CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker.consumer import Consumer

__all__ = ["drop_invalid_broadcasts", "fault_of_broadcast"]

_Name = Annotated[str, msgspec.Meta(max_length=200)]
_TaskId = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
# Each id costs a round trip, during which the worker takes no message.
_TaskIds = _TaskId | Annotated[list[_TaskId], msgspec.Meta(max_length=1_000)]
_Slots = Annotated[int, msgspec.Meta(ge=0, le=MAX_CONCURRENCY)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Signal = Annotated[str, msgspec.Meta(pattern=r"^(SIG)?(TERM|KILL|INT|QUIT|HUP|USR1|USR2)\Z")]
_Rate = (
    Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    | Annotated[str, msgspec.Meta(pattern=r"^[0-9]{0,7}(/[smh])?\Z")]
)
_Task = Annotated[
    str, msgspec.Meta(pattern=r"^fanout\.(expand|branch|collect|seal|aggregate|preflight)\Z")
]
_Queue = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(map(re.escape, QUEUES))})\Z")]


class _NoArguments(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Conf(msgspec.Struct, forbid_unknown_fields=True):
    with_defaults: bool = False


class _Listing(msgspec.Struct, forbid_unknown_fields=True):
    safe: bool = False


class _Registered(msgspec.Struct, forbid_unknown_fields=True):
    taskinfoitems: Annotated[list[_Name], msgspec.Meta(max_length=20)] | None = None
    builtins: bool = False


class _Query(msgspec.Struct, forbid_unknown_fields=True):
    ids: _TaskIds


class _Revoke(msgspec.Struct, forbid_unknown_fields=True):
    task_id: _TaskIds
    terminate: bool | None = None
    signal: _Signal | None = None


class _Terminate(msgspec.Struct, forbid_unknown_fields=True):
    task_id: _TaskIds
    signal: _Signal


class _RateLimit(msgspec.Struct, forbid_unknown_fields=True):
    task_name: _Task
    rate_limit: _Rate


class _TimeLimit(msgspec.Struct, forbid_unknown_fields=True):
    task_name: _Task
    hard: _Seconds | None = None
    soft: _Seconds | None = None


class _Resize(msgspec.Struct, forbid_unknown_fields=True):
    n: _Slots = 1


class _Autoscale(msgspec.Struct, forbid_unknown_fields=True):
    max: _Slots | None = None
    min: _Slots | None = None


class _Restart(msgspec.Struct, forbid_unknown_fields=True):
    """Allows no modules: Celery would import any module that the sender names."""

    modules: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
    reload: bool = False
    reloader: None = None


class _Shutdown(msgspec.Struct, forbid_unknown_fields=True):
    msg: _Name = ""


class _AddConsumer(msgspec.Struct, forbid_unknown_fields=True):
    queue: _Queue
    exchange: None = None
    exchange_type: Literal["direct"] | None = None
    routing_key: None = None


class _CancelConsumer(msgspec.Struct, forbid_unknown_fields=True):
    queue: _Queue


_COMMANDS: dict[str, type[msgspec.Struct]] = {
    **dict.fromkeys(
        ("ping", "stats", "clock", "report", "revoked", "dump_revoked", "active_queues",
         "heartbeat", "enable_events", "disable_events"), _NoArguments
    ),
    **dict.fromkeys(("conf", "dump_conf"), _Conf),
    **dict.fromkeys(
        ("active", "dump_active", "reserved", "dump_reserved", "scheduled", "dump_schedule"),
        _Listing,
    ),
    **dict.fromkeys(("registered", "dump_tasks"), _Registered),
    **dict.fromkeys(("pool_grow", "pool_shrink"), _Resize),
    "query_task": _Query,
    "revoke": _Revoke,
    "terminate": _Terminate,
    "rate_limit": _RateLimit,
    "time_limit": _TimeLimit,
    "autoscale": _Autoscale,
    "pool_restart": _Restart,
    "shutdown": _Shutdown,
    "add_consumer": _AddConsumer,
    "cancel_consumer": _CancelConsumer,
}  # fmt: skip


class _ReplyTo(msgspec.Struct, forbid_unknown_fields=True):
    """Where the reply goes: into the reply queue of the sender, and no other queue."""

    exchange: Literal["reply.celery.pidbox"]
    routing_key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{1,64}\Z")]


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    arguments: dict[str, Any] | None = None
    destination: Annotated[list[_Name], msgspec.Meta(max_length=10_000)] | None = None
    # Only full names: with a pattern, the worker would run the sender's regular expression.
    pattern: None = None
    matcher: None = None
    ticket: _Name | None = None
    reply_to: _ReplyTo | None = None


class _Headers(msgspec.Struct):
    # All workers adjust their logical clocks to this value.
    clock: Annotated[int, msgspec.Meta(ge=0, le=2**48)] | None = None


def fault_of_broadcast(body: Any, headers: Any) -> str | None:
    """Return why a broadcast is invalid, without its content, or None."""
    try:
        broadcast = msgspec.convert(body, _Command)
        msgspec.convert(headers, _Headers)
        command = _COMMANDS.get(broadcast.method)
        if command is None:
            return "is a command that workers do not accept"
        msgspec.convert(broadcast.arguments or {}, command)
    except MALFORMED:
        return "is not a valid command"
    return None


def drop_invalid_broadcasts(consumer: Consumer) -> None:
    """Make a consumer drop and count invalid broadcasts."""
    for step in consumer.steps:
        if isinstance(step, Control):
            step.box.on_message = _checked(step.box.on_message)


def _checked(handle: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def on_message(body: Any, message: Any) -> None:
        fault = fault_of_broadcast(body, message.headers)
        if fault is not None:
            dropped_messages.add(fault)
            return
        handle(body, message)

    return on_message
