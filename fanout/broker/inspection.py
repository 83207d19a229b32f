"""Finds the tasks that have a message in the broker, in a queue or taken by a worker."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING, cast

import msgspec
from redis.exceptions import NoPermissionError, RedisError

from fanout.core.errors import BrokerError
from fanout.core.ids import run_of
from fanout.core.queue_names import (
    BRANCHES_QUEUE,
    QUEUES,
    TURNS,
    TURNS_OF_A_RUN,
    UNACKED,
    UNACKED_INDEX,
    backlogs_of,
)
from fanout.policy.healing import BrokerMessages
from fanout.stores.redis.turn_scripts import RECOUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from fanout.core.ids import ShardId, StageId

__all__ = [
    "UNACKED",
    "UNACKED_INDEX",
    "MessageReader",
    "drop_messages",
    "messages_of_shard",
    "messages_of_stage",
]

_PAGE = 1_000
# The most messages in the queue of branches for a recount: whenever their number is wrong, and at
# every twelfth look. A recount blocks the server. Even thousands of runs have fewer than the latter.
_OFTEN_COUNTED = 2_000
_MOST_COUNTED = 20_000
_EACH = 12


class _Headers(msgspec.Struct):
    id: str


class _Message(msgspec.Struct):
    headers: _Headers


_message = msgspec.json.Decoder(_Message).decode
# A message that was taken is kept with its exchange and its routing key.
_taken = msgspec.json.Decoder(tuple[_Message, str, str]).decode


class MessageReader:
    """Reads the messages in the broker's queues, and those taken from them."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._looks = count()
        self._recount = client.register_script(RECOUNT)

    def give_turns(self) -> int:
        """Restore turns of runs that were lost with a worker. Raises BrokerError.

        Returns:
            How many.
        """
        try:
            is_due = next(self._looks) % _EACH == 0
            most = _MOST_COUNTED if is_due else _OFTEN_COUNTED
            args = [TURNS_OF_A_RUN, most, int(is_due)]
            return cast("int", self._recount(keys=[BRANCHES_QUEUE, UNACKED], args=args))
        except RedisError as error:
            raise BrokerError(f"the broker's queues cannot be read: {error}") from error

    def task_ids(self) -> dict[str, set[str]]:
        """Return the task ids of fanout's messages, by run. Raises BrokerError.

        May miss a message that moves between two places: a caller must look twice before it acts
        on a missing message.
        """
        runs: dict[str, set[str]] = defaultdict(set)
        try:
            for task_id in self._read():
                runs[run_of(task_id)].add(task_id)
        except RedisError as error:
            raise BrokerError(f"the broker's queues cannot be read: {error}") from error
        return runs

    def close(self) -> None:
        """Release connections."""
        self._redis.close()

    def _read(self) -> Iterator[str]:
        # In the order in which a message moves through them.
        runs = cast("list[bytes]", self._redis.hkeys(TURNS))
        backlogs = (backlogs_of(run.decode(errors="replace")) for run in runs)
        for queue in (*chain.from_iterable(backlogs), *QUEUES):
            start = 0
            while page := self._page(queue, start):
                yield from _ids(_message, page)
                start += _PAGE
        # Without ``no_values``: redis-py omits the values even if it is false.
        for raw in self._redis.hscan_iter(UNACKED, count=_PAGE):
            yield from _ids(lambda item: _taken(item)[0], [cast("tuple[bytes, bytes]", raw)[1]])

    def _page(self, queue: str, start: int) -> list[bytes]:
        return cast("list[bytes]", self._redis.lrange(queue, start, start + _PAGE - 1))


def drop_messages(client: redis.Redis, run_id: str) -> None:
    """Remove the messages of a deleted run from the broker.

    If the user may not do that, the workers drop the messages when they take them.
    """
    with suppress(NoPermissionError):
        for queue in QUEUES:
            _drop_queued(client, queue, run_id)
        for tag, raw in client.hscan_iter(UNACKED, count=_PAGE):
            if _is_of(lambda item: _taken(item)[0], cast("bytes", raw), run_id):
                client.hdel(UNACKED, tag)
                client.zrem(UNACKED_INDEX, tag)


def _drop_queued(client: redis.Redis, queue: str, run_id: str) -> None:
    start = 0
    while page := cast("list[bytes]", client.lrange(queue, start, start + _PAGE - 1)):
        found = [raw for raw in page if _is_of(_message, raw, run_id)]
        for raw in found:
            client.lrem(queue, 1, cast("str", raw))
        # Later messages have moved forward.
        start += len(page) - len(found)


def _is_of(decode: Callable[[bytes], _Message], raw: bytes, run_id: str) -> bool:
    # Cheaper than decoding, as most messages belong to other runs.
    if run_id.encode() not in raw:
        return False
    return any(run_of(each) == run_id for each in _ids(decode, [raw]))


def _ids(decode: Callable[[bytes], _Message], items: list[bytes]) -> Iterator[str]:
    for item in items:
        try:
            yield decode(item).headers.id
        except (msgspec.MsgspecError, RecursionError):
            # Not one of fanout's messages: a worker will drop it.
            continue


def messages_of_shard(task_ids: set[str], shard_id: ShardId) -> BrokerMessages:
    """Return which tasks of a shard are among the task ids of its run."""
    return BrokerMessages(
        branches=shard_id.positions(task_ids),
        expand=shard_id.expand_task_id in task_ids,
        collect=shard_id.collect_task_id in task_ids,
    )


def messages_of_stage(task_ids: set[str], stage_id: StageId) -> BrokerMessages:
    """Return whether a task that ends a stage is among the task ids of its run."""
    return BrokerMessages(closing=any(map(stage_id.is_ended_by, task_ids)))
