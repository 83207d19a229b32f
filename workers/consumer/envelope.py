"""Checks the envelope of a message: fanout sent no message that has another form.

The checks cover all that Celery and kombu read of a message, and run before Celery and kombu do: a
bad header would end the worker, and then the next worker that takes the message. The id of a task,
its chord and the callback of that chord follow from its arguments; they must be those that fanout
sends.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from fanout.broker import app as broker
from fanout.broker.dropped import MALFORMED
from fanout.core.ids import BranchId, PartitionId, ShardId, StageId
from fanout.core.queue_names import QUEUES

__all__ = ["LONGEST_WAIT_S", "find_fault"]

# The longest wait of a retried task. fanout uses half a minute at most, but clocks may be wrong.
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
    """The headers that Celery reads; it makes each further header an attribute of its request."""

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
    # fanout never sets these.
    shadow: None = None
    expires: None = None
    timelimit: tuple[None, None] | None = None
    stamped_headers: _Empty | None = None
    stamps: _NoStamps | None = None


class _Delivery(msgspec.Struct, forbid_unknown_fields=True):
    """Where kombu and Celery publish the message when they retry it."""

    routing_key: str
    exchange: Literal[""] = ""
    priority: Literal[0] | None = None
    redelivered: bool | None = None


class _Properties(msgspec.Struct, forbid_unknown_fields=True):
    delivery_info: _Delivery
    delivery_tag: _Name
    body_encoding: Literal["base64"]
    correlation_id: _Name | None = None
    # Set when the message was published again.
    origin: _Name | None = None
    reply_to: _Name | None = None
    delivery_mode: Literal[1, 2] | None = None
    priority: Literal[0] | None = None


class _Embedded(msgspec.Struct, forbid_unknown_fields=True):
    """The embedded part of a body, after the arguments. The first three would run further tasks."""

    callbacks: _Empty | None = None
    errbacks: _Empty | None = None
    chain: _Empty | None = None
    # Raw, as messages with the same chord share one decoded value.
    chord: msgspec.Raw = msgspec.Raw(b"null")


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
    """The callback of a chord, as Celery serializes it."""

    task: str
    args: _Empty
    kwargs: dict[str, str | int]
    options: _Options
    subtask_type: None = None
    immutable: bool = False


# The arguments of the tasks in workers.tasks.
class _StageArguments(msgspec.Struct, forbid_unknown_fields=True):
    run_id: _RunId
    stage: _Number


class _ShardArguments(_StageArguments, forbid_unknown_fields=True):
    shard: _Number


class _BranchArguments(_ShardArguments, forbid_unknown_fields=True):
    position: _Number


class _PartitionArguments(_StageArguments, forbid_unknown_fields=True):
    reduce: _Number
    partition: _Number


class _PreflightArguments(msgspec.Struct, forbid_unknown_fields=True):
    model: _Model
    note: _RunId
    batches: bool = False


# Positional arguments, and keyword arguments. A callback gets the results of its chord's members.
_NONE: Any = tuple[()]
_RESULTS: Any = tuple[list[dict[str, _Shown | int | None] | None]]


def _decoder(by_position: Any, by_name: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(tuple[by_position, by_name, _Embedded])


_BODIES = {
    broker.EXPAND: _decoder(_NONE, _ShardArguments),
    broker.BRANCH: _decoder(_NONE, _BranchArguments),
    broker.COLLECT: _decoder(_RESULTS, _ShardArguments),
    broker.SEAL: _decoder(_NONE, _StageArguments),
    broker.AGGREGATE: _decoder(_RESULTS, _StageArguments),
    broker.PACK: _decoder(_NONE, _PartitionArguments),
    broker.PREFLIGHT: _decoder(_NONE, _PreflightArguments),
}
_callback_decoder = msgspec.json.Decoder(_Signature | None)
# The embedded values of a checked body, besides its chord.
_NO_MORE = {"callbacks": None, "errbacks": None, "chain": None}
_Ids = tuple[str, str | None, int | None, str]


def find_fault(message: Any) -> str | None:
    """Return why a message is invalid, without its content, or None.

    Decodes the body once: the message keeps the result for Celery.
    """
    raw = message.headers
    if not isinstance(raw, dict) or "task" not in raw:
        return "names no task"
    task = raw["task"]
    decoder = _BODIES.get(task) if isinstance(task, str) else None
    if decoder is None:
        return "names a task that is not fanout's"
    try:
        headers = msgspec.convert(raw, _Headers)
        properties = msgspec.convert(message.properties, _Properties)
    except MALFORMED:
        return "has the wrong headers"
    fault = _fault_of_envelope(message, headers, properties)
    return fault or _fault_of_body(message, headers, decoder)


def _fault_of_envelope(message: Any, headers: _Headers, properties: _Properties) -> str | None:
    if properties.delivery_info.routing_key not in QUEUES:
        return "is for a queue that is not fanout's"
    if headers.eta is not None and not _is_moment(headers.eta):
        return "has a time that is none"
    if (message.content_type, message.content_encoding) != ("application/json", "utf-8"):
        return "is not JSON"
    return None


def _is_moment(text: str) -> bool:
    """Return whether a text is a usable time with a time zone. The wait is checked later."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.tzinfo is not None and _EARLIEST < moment < _LATEST


def _fault_of_body(
    message: Any, headers: _Headers, decoder: msgspec.json.Decoder[Any]
) -> str | None:
    try:
        args, arguments, embedded = decoder.decode(message.body)
    except MALFORMED:
        return "has the wrong arguments"
    ids, completes = _expected(headers.task, arguments)
    index, is_last = headers.group_index, headers.task == broker.SEAL
    # Only the publisher knows how many members come before the last one.
    if (headers.id, headers.group, None if is_last else index, headers.root_id) != ids:
        return "is not what its arguments say"
    if is_last and index is None:
        return "is not what its arguments say"
    try:
        chord = _callback(bytes(embedded.chord), completes)
    except MALFORMED:
        return "asks for more than its task"
    message.keep(args, msgspec.structs.asdict(arguments), {**_NO_MORE, "chord": chord})
    return None


def _expected(task: str, arguments: Any) -> tuple[_Ids, ShardId | StageId | None]:
    """Return the ids that follow from a task's arguments, and the shard or stage its chord completes.

    The ids are the task's id, its group, its index in the group, and its root. The callback of a
    shard's chord is ``collect``, that of a stage's chord is ``aggregate``.
    """
    if isinstance(arguments, _PreflightArguments):
        return (arguments.note, None, None, arguments.note), None
    run, stage = arguments.run_id, arguments.stage
    match task:
        case broker.BRANCH:
            branch_id = BranchId(run, stage, arguments.shard, arguments.position)
            shard_id = branch_id.shard_id
            return (branch_id.task_id, shard_id.group_id, arguments.position, run), shard_id
        case broker.COLLECT:
            shard_id, stage_id = ShardId(run, stage, arguments.shard), StageId(run, stage)
            return (shard_id.collect_task_id, stage_id.group_id, arguments.shard, run), stage_id
        case broker.SEAL:
            # The last member of the root chord.
            stage_id = StageId(run, stage)
            return (stage_id.seal_task_id, stage_id.group_id, None, run), stage_id
    return (_id_alone(task, arguments), None, None, run), None


def _id_alone(task: str, arguments: Any) -> str:
    """Return the id of a task that is in no chord's header, by its arguments."""
    run, stage = arguments.run_id, arguments.stage
    if task == broker.EXPAND:
        return ShardId(run, stage, arguments.shard).expand_task_id
    if task == broker.PACK:
        return PartitionId(run, stage, arguments.reduce, arguments.partition).pack_task_id
    return StageId(run, stage).aggregate_task_id


@lru_cache(maxsize=256)
def _callback(raw: bytes, completes: ShardId | StageId | None) -> Any:
    """Return a chord's callback as Celery takes it. Raises ValueError if fanout did not send it."""
    callback = _callback_decoder.decode(raw)
    if callback is not None:
        _forget_versions(callback)
    if callback != (None if completes is None else _signature(completes)):
        raise ValueError("it is another callback")
    return msgspec.json.decode(raw)


def _forget_versions(callback: _Signature) -> None:
    """Remove the wire versions, which may differ between the signatures."""
    following: _Signature | None = callback
    while following is not None:
        following.options.headers = None
        following = following.options.chord


def _signature(ended: ShardId | StageId) -> _Signature:
    """Return the callback that the chord of a shard or stage runs when it is complete."""
    options = _Options(
        queue=broker.CONTROL_QUEUE, root_id=ended.run_id, task_id="", ignore_result=True
    )
    if isinstance(ended, ShardId):
        task, options.task_id = broker.COLLECT, ended.collect_task_id
        options.group_id, options.group_index = ended.stage_id.group_id, ended.shard
        options.chord = _signature(ended.stage_id)
    else:
        task, options.task_id = broker.AGGREGATE, ended.aggregate_task_id
    kwargs = msgspec.structs.asdict(ended)
    return _Signature(task=task, args=[], kwargs=kwargs, options=options)
