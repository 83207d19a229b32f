"""What a message to a worker looks like. Whatever looks otherwise was not sent by fanout."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from fanout import broker

__all__ = ["fault"]

_RunId = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
_Number = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
_Model = Annotated[str, msgspec.Meta(max_length=512)]
_Name = Annotated[str, msgspec.Meta(max_length=200)]
_Shown = Annotated[str, msgspec.Meta(max_length=2_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Headers(msgspec.Struct):
    """What Celery relies on, and would fail at where it is something else."""

    id: Annotated[_Name, msgspec.Meta(min_length=1)]
    task: _Name
    shadow: _Name | None = None
    root_id: _Name | None = None
    parent_id: _Name | None = None
    group: _Name | None = None
    group_index: _Number | None = None
    retries: _Number | None = None
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    eta: _Name | None = None
    expires: _Name | None = None
    argsrepr: _Shown | None = None
    kwargsrepr: _Shown | None = None
    ignore_result: bool | None = None
    stamped_headers: Annotated[list[str], msgspec.Meta(max_length=0)] | None = None
    replaced_task_nesting: _Number = 0


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
_RESULTS: Any = tuple[list[Any]]
_ARGUMENTS: dict[str, tuple[Any, Any]] = {
    broker.EXPAND: (_NONE, _Expand),
    broker.BRANCH: (_NONE, _Branch),
    broker.COLLECT: (_RESULTS, _OfShard),
    broker.SEAL: (_NONE, _OfStage),
    broker.AGGREGATE: (_RESULTS, _OfStage),
    broker.PREFLIGHT: (_NONE, _Preflight),
}

# Not of ours: they would run further tasks.
_FOREIGN = ("callbacks", "errbacks", "chain")


def fault(message: Any) -> str | None:
    """Return what is wrong with a message, without its content, or None.

    Its body is decoded here, once: Celery uses what is kept of it.
    """
    headers = message.headers
    if not isinstance(headers, dict) or "task" not in headers:
        return "names no task"
    task = headers["task"]
    arguments = _ARGUMENTS.get(task) if isinstance(task, str) else None
    if arguments is None:
        return "names a task that is not fanout's"
    try:
        msgspec.convert(headers, _Headers)
    except msgspec.ValidationError:
        return "has the wrong headers"
    if message.content_type != "application/json":
        return "is not JSON"
    return _fault_of_body(message, arguments)


def _fault_of_body(message: Any, arguments: tuple[Any, Any]) -> str | None:
    try:
        args, kwargs, embedded = message.payload
        msgspec.convert(args, arguments[0])
        msgspec.convert(kwargs, arguments[1])
    except Exception:  # noqa: BLE001 - whatever its sender made kombu's decoders raise
        return "has the wrong arguments"
    if not isinstance(embedded, dict) or any(embedded.get(key) for key in _FOREIGN):
        return "asks for more than its task"
    return None
