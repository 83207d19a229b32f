"""What a message to a worker looks like. Whatever looks otherwise was not sent by fanout.

All that Celery and kombu read of a message is checked before they do: a header that they cannot
use ends the worker, and then the next one that takes the message. What follows from a task's
arguments, as its id, its chord and that chord's callback, must be what fanout would have sent.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from fanout import broker
from fanout.queue_names import QUEUES
from fanout.refusals import MALFORMED

__all__ = ["LONGEST_WAIT_S", "fault"]

# When a task that is tried again begins: after half a minute at most, and clocks may be wrong.
LONGEST_WAIT_S = 3_600

_MOST = 1_000_000_000
_RunId = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}\Z")]
_Number = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Model = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Name = Annotated[str, msgspec.Meta(max_length=200)]
_Shown = Annotated[str, msgspec.Meta(max_length=2_000)]
_Retries = Annotated[int, msgspec.Meta(ge=0, le=100)]
_Moment = Annotated[str, msgspec.Meta(max_length=40)]
_Empty = Annotated[list[Any], msgspec.Meta(max_length=0)]
_NoStamps = Annotated[dict[str, Any], msgspec.Meta(max_length=0)]
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class _Headers(msgspec.Struct, forbid_unknown_fields=True):
    """What Celery relies on; each further header would become an attribute of its request."""

    id: Annotated[_Name, msgspec.Meta(min_length=1)]
    task: _Name
    root_id: _Name
    lang: Literal["py"] = "py"
    parent_id: _Name | None = None
    group: _Name | None = None
    group_index: _Number | None = None
    retries: _Retries = 0
    eta: _Moment | None = None
    argsrepr: _Shown | None = None
    kwargsrepr: _Shown | None = None
    origin: _Name | None = None
    ignore_result: Literal[True] | None = None
    replaced_task_nesting: Literal[0] = 0
    redelivered: bool | None = None
    wire: _Number | None = None
    sent_at: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    # None of these is ever set.
    shadow: None = None
    expires: None = None
    timelimit: tuple[None, None] | None = None
    stamped_headers: _Empty | None = None
    stamps: _NoStamps | None = None


class _Delivery(msgspec.Struct, forbid_unknown_fields=True):
    """Where kombu and Celery put the message when it is tried again."""

    routing_key: str
    exchange: Literal[""] = ""
    priority: Literal[0] | None = None
    redelivered: bool | None = None


class _Properties(msgspec.Struct, forbid_unknown_fields=True):
    delivery_info: _Delivery
    delivery_tag: _Name
    body_encoding: Literal["base64"]
    correlation_id: _Name | None = None
    # Where the message was sent again.
    origin: _Name | None = None
    reply_to: _Name | None = None
    delivery_mode: Literal[1, 2] | None = None
    priority: Literal[0] | None = None


class _Embedded(msgspec.Struct, forbid_unknown_fields=True):
    """What the body says beside the arguments. The first three would run further tasks."""

    callbacks: _Empty | None = None
    errbacks: _Empty | None = None
    chain: _Empty | None = None
    chord: _Signature | None = None


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    queue: str
    root_id: str
    task_id: str
    group_id: str | None = None
    group_index: int | None = None
    chord: _Signature | None = None
    ignore_result: bool | None = None
    headers: dict[Literal["wire"], int] | None = None


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    """A chord's callback, as Celery writes it."""

    task: str
    args: _Empty
    kwargs: dict[str, str | int]
    options: _Options
    subtask_type: None = None
    immutable: bool = False


# What the tasks of workers.tasks take.
class _OfStage(msgspec.Struct, forbid_unknown_fields=True):
    run_id: _RunId
    stage: _Number


class _OfShard(_OfStage, forbid_unknown_fields=True):
    shard: _Number


class _Expand(_OfShard, forbid_unknown_fields=True):
    lanes: _Number


class _Branch(_OfShard, forbid_unknown_fields=True):
    position: _Number
    feed: _Number


class _Preflight(msgspec.Struct, forbid_unknown_fields=True):
    model: _Model
    note: _RunId


# By position, and by name. Callbacks are given what the members of their chord returned.
_NONE: Any = tuple[()]
_RESULTS: Any = tuple[list[dict[str, _Shown | int | None] | None]]
_ARGUMENTS: dict[str, tuple[Any, Any]] = {
    broker.EXPAND: (_NONE, _Expand),
    broker.BRANCH: (_NONE, _Branch),
    broker.COLLECT: (_RESULTS, _OfShard),
    broker.SEAL: (_NONE, _OfStage),
    broker.AGGREGATE: (_RESULTS, _OfStage),
    broker.PREFLIGHT: (_NONE, _Preflight),
}


def fault(message: Any) -> str | None:
    """Return what is wrong with a message, without its content, or None.

    Its body is decoded here, once: Celery uses what is kept of it.
    """
    raw = message.headers
    if not isinstance(raw, dict) or "task" not in raw:
        return "names no task"
    task = raw["task"]
    arguments = _ARGUMENTS.get(task) if isinstance(task, str) else None
    if arguments is None:
        return "names a task that is not fanout's"
    try:
        headers = msgspec.convert(raw, _Headers)
        properties = msgspec.convert(message.properties, _Properties)
    except MALFORMED:
        return "has the wrong headers"
    found = _fault_of_envelope(message, headers, properties)
    return found or _fault_of_body(message, headers, arguments)


def _fault_of_envelope(message: Any, headers: _Headers, properties: _Properties) -> str | None:
    if properties.delivery_info.routing_key not in QUEUES:
        return "is for a queue that is not fanout's"
    if headers.eta is not None and not _is_moment(headers.eta):
        return "has a time that is none"
    if (message.content_type, message.content_encoding) != ("application/json", "utf-8"):
        return "is not JSON"
    return None


def _is_moment(text: str) -> bool:
    """Say whether a time can be reckoned with, in any time zone. How far it is, is seen later."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.tzinfo is not None and _EARLIEST < moment < _LATEST


def _fault_of_body(message: Any, headers: _Headers, arguments: tuple[Any, Any]) -> str | None:
    try:
        args, kwargs, rest = message.payload
        msgspec.convert(args, arguments[0])
        asked = msgspec.convert(kwargs, arguments[1])
        embedded = msgspec.convert(rest, _Embedded)
    except Exception:  # noqa: BLE001 - whatever its sender made kombu's decoders raise
        return "has the wrong arguments"
    expected = _expected(headers.task, asked)
    place = None if headers.task == broker.SEAL else headers.group_index
    if (headers.id, headers.group, place, headers.root_id) != expected.ids:
        return "is not what its arguments say"
    if headers.task == broker.SEAL and headers.group_index is None:
        return "is not what its arguments say"
    if embedded.chord is not None:
        _forget_versions(embedded.chord)
    if embedded.chord != expected.chord:
        return "asks for more than its task"
    return None


def _forget_versions(callback: _Signature) -> None:
    """Take out what may differ: which versions of the wire format they were written for."""
    following: _Signature | None = callback
    while following is not None:
        following.options.headers = None
        following = following.options.chord


class _Expected(msgspec.Struct, frozen=True):
    """What follows from a task's arguments: its id, group, place there and root; its callback."""

    ids: tuple[str, str | None, int | None, str]
    chord: _Signature | None = None


def _expected(task: str, asked: Any) -> _Expected:
    if isinstance(asked, _Preflight):
        return _Expected((asked.note, None, None, asked.note))
    run, stage = asked.run_id, asked.stage
    root = broker.stage_group(run, stage)
    match task:
        case broker.BRANCH:
            shard, place = asked.shard, asked.position
            ids = (
                broker.branch_id(run, stage, shard, place),
                broker.shard_group(run, stage, shard),
            )
            return _Expected((*ids, place, run), _collect(run, stage, shard))
        case broker.COLLECT:
            member = (broker.collect_id(run, stage, asked.shard), root, asked.shard, run)
            return _Expected(member, _aggregate(run, stage))
        case broker.EXPAND:
            return _Expected((broker.expand_id(run, stage, asked.shard), None, None, run))
        case broker.AGGREGATE:
            return _Expected((broker.aggregate_id(run, stage), None, None, run))
    # The last member of the root chord: how many there are before it, only its publisher knows.
    return _Expected((broker.seal_id(run, stage), root, None, run), _aggregate(run, stage))


@lru_cache(maxsize=256)
def _collect(run: str, stage: int, shard: int) -> _Signature:
    return _Signature(
        task=broker.COLLECT,
        args=[],
        kwargs={"run_id": run, "stage": stage, "shard": shard},
        options=_Options(
            queue=broker.CONTROL_QUEUE,
            root_id=run,
            task_id=broker.collect_id(run, stage, shard),
            group_id=broker.stage_group(run, stage),
            group_index=shard,
            chord=_aggregate(run, stage),
            ignore_result=True,
        ),
    )


@lru_cache(maxsize=256)
def _aggregate(run: str, stage: int) -> _Signature:
    return _Signature(
        task=broker.AGGREGATE,
        args=[],
        kwargs={"run_id": run, "stage": stage},
        options=_Options(
            queue=broker.CONTROL_QUEUE,
            root_id=run,
            task_id=broker.aggregate_id(run, stage),
            ignore_result=True,
        ),
    )
