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
_Places = Annotated[int, msgspec.Meta(ge=0, le=MAX_CONCURRENCY)]
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


def _arguments(*fields: tuple[str, Any] | tuple[str, Any, Any]) -> type[msgspec.Struct]:
    """Return the type of a command's arguments: each has a name, a type, and a default if optional."""
    return msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True)


_COMMANDS: dict[str, type[msgspec.Struct]] = {
    **dict.fromkeys(
        ("ping", "stats", "clock", "report", "revoked", "dump_revoked", "active_queues",
         "heartbeat", "enable_events", "disable_events"), _arguments()
    ),
    **dict.fromkeys(("conf", "dump_conf"), _arguments(("with_defaults", bool, False))),
    **dict.fromkeys(
        ("active", "dump_active", "reserved", "dump_reserved", "scheduled", "dump_schedule"),
        _arguments(("safe", bool | None, None)),
    ),
    **dict.fromkeys(
        ("registered", "dump_tasks"),
        _arguments(
            ("taskinfoitems", Annotated[list[_Name], msgspec.Meta(max_length=20)] | None, None),
            ("builtins", bool, False),
        ),
    ),
    **dict.fromkeys(("pool_grow", "pool_shrink"), _arguments(("n", _Places, 1))),
    "query_task": _arguments(("ids", _TaskIds)),
    "revoke": _arguments(
        ("task_id", _TaskIds), ("terminate", bool | None, None), ("signal", _Signal | None, None)
    ),
    "terminate": _arguments(("task_id", _TaskIds), ("signal", _Signal)),
    "rate_limit": _arguments(("task_name", _Task), ("rate_limit", _Rate)),
    "time_limit": _arguments(
        ("task_name", _Task), ("hard", _Seconds | None, None), ("soft", _Seconds | None, None)
    ),
    "autoscale": _arguments(("max", _Places | None, None), ("min", _Places | None, None)),
    # No modules: Celery would import any module that the sender names.
    "pool_restart": _arguments(
        ("modules", Annotated[list[Any], msgspec.Meta(max_length=0)] | None, None),
        ("reload", bool, False),
        ("reloader", None, None),
    ),
    "shutdown": _arguments(("msg", _Name, "")),
    "add_consumer": _arguments(
        ("queue", _Queue),
        ("exchange", None, None),
        ("exchange_type", Literal["direct"] | None, None),
        ("routing_key", None, None),
    ),
    "cancel_consumer": _arguments(("queue", _Queue)),
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
