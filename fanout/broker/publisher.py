"""A stage as two levels of Celery chords, and how their messages get onto the wire.

* The shard chord: its header is the shard's branch tasks, its callback is ``collect``.
* The root chord: its header is all ``collect`` tasks and one ``seal``, its callback is
  ``aggregate``. The seal is published when the number of shards is known, and after the chord's
  size was set: the member that returns last finds the size and runs the callback, so a stage can
  be processed while it is still being written.

These are ordinary chords, counted by Celery's own result backend. Only the publishing differs:
Celery's ``chord(...)()`` publishes one message per round trip and subscribes to every result.
"""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec
from kombu.exceptions import BatchPublishError, OperationalError
from msgspec.structs import asdict
from redis.exceptions import RedisError

from fanout.broker import app as broker
from fanout.broker.inspection import drop_messages
from fanout.core.errors import BrokerError
from fanout.core.exhaustion import is_exhausted
from fanout.core.ids import StageId
from fanout.stores.retrying import call_with_retries, is_recoverable, is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery import Celery, Signature

    from fanout.core.ids import BranchId, PartitionId, ShardId

__all__ = ["Publisher"]

# Messages of a header in one pipelined write: 1.2 KB each.
_BATCH = 500
# A restart of the server takes seconds, a failover half a minute.
_PATIENCE_S = 60.0
# Kombu's errors for an unreachable server.
_AWAY = (BatchPublishError, OperationalError)
_FROM_BROKER = (*_AWAY, RedisError)


class Publisher:
    """Publishes the tasks of runs. Safe to share between threads.

    Args:
        app: The application.
        patience_s: Seconds to wait for a server that is unreachable or refuses. None: a minute. A
            worker sets more, and then also waits for missing rights, as it holds branches.
    """

    def __init__(self, app: Celery, *, patience_s: float | None = None) -> None:
        self._app = app
        self._patience_s = _PATIENCE_S if patience_s is None else patience_s
        self._waits = is_transient if patience_s is None else is_recoverable
        # Made now: Celery has no lock, so two threads would make one each, and lose one.
        self._backend = app.backend
        self._backend.client  # noqa: B018 - a cached property

    def close(self) -> None:
        """Close the backend's connections: Celery leaves them open until the process exits."""
        self._backend.client.connection_pool.disconnect()

    def preflight(self, model: str, note: str, *, batches: bool = False) -> None:
        """Ask a worker to check ``model``, perhaps its batches, and to write its answer as ``note``."""
        check: dict[str, Any] = {"model": model, "note": note}
        if batches:
            # Workers of an earlier version know no such argument.
            check["batches"] = True
        self._publish([self._signature(broker.PREFLIGHT, check, root_id=note, task_id=note)])

    def expand(self, stage_id: StageId, shards: Iterable[int]) -> None:
        """Ask workers to publish the chords of these shards."""
        self._publish(self._expand(stage_id.shard(shard)) for shard in shards)

    def shard_chord(self, shard_id: ShardId, positions: Sequence[int]) -> None:
        """Publish a shard's chord, whose header is the branches at ``positions``."""
        self._set_size(shard_id.group_id, len(positions))
        self.branches(shard_id, positions)

    def mixed_branches(self, branches: Iterable[BranchId]) -> None:
        """Publish branches of any shards."""
        shards: defaultdict[ShardId, list[int]] = defaultdict(list)
        for branch_id in branches:
            shards[branch_id.shard_id].append(branch_id.position)
        for shard_id, positions in shards.items():
            self.branches(shard_id, positions)

    def collect(self, shard_id: ShardId) -> None:
        """Publish a shard's callback by itself: the chord has no header."""
        self._publish([self._collect(shard_id).clone(args=([],))])

    def aggregate(self, stage_id: StageId) -> None:
        """Publish a stage's callback by itself: its root chord will not publish it."""
        self._publish([self._aggregate(stage_id).clone(args=([],))])

    def pack(self, partitions: Iterable[PartitionId], *, wait_s: float = 0.0) -> None:
        """Ask workers to pack what has ended of partitions of groups, after ``wait_s`` seconds."""
        later = {"countdown": wait_s} if wait_s else {}
        self._publish(
            self._signature(broker.PACK, asdict(one), task_id=one.pack_task_id, **later)
            for one in partitions
        )

    def seal(self, stage_id: StageId, *, shards: int) -> None:
        """Set the size of a stage's root chord, and publish the last member of its header."""
        self._set_size(stage_id.group_id, shards + 1)
        seal = self._signature(
            broker.SEAL,
            asdict(stage_id),
            task_id=stage_id.seal_task_id,
            group_id=stage_id.group_id,
            group_index=shards,
            chord=self._aggregate(stage_id),
        )
        self._publish([seal])

    def _set_size(self, group: str, size: int) -> None:
        set_size = self._backend.set_chord_size
        self._patiently(lambda: set_size(group, size))

    def forget_chord(self, of: StageId | ShardId) -> None:
        """Forget which members of a chord have returned, and that it has completed, for a retry.

        Otherwise the former members would count, and the mark of completion would reject the new
        members that return before the chord's size is set again.
        """
        self._forget(of.group_id)

    def forget_run(self, run_id: str, shards: Sequence[int]) -> None:
        """Forget the chords and the messages of a run that was deleted.

        Args:
            run_id: The run.
            shards: How many shards each of its stages has.
        """
        try:
            drop_messages(self._backend.client, run_id)
            for stage, count in enumerate(shards):
                stage_id = StageId(run_id, stage)
                groups = (stage_id.shard(shard).group_id for shard in range(count))
                self._forget(stage_id.group_id, *groups)
        except RedisError as error:
            raise BrokerError(f"what is left of run {run_id} cannot be deleted: {error}") from error

    def _forget(self, *groups: str) -> None:
        backend = self._backend
        keys = [
            backend.get_key_for_group(group, part)
            for group in groups
            for part in (".c", ".d", ".j", ".s", ".t")
        ]
        for start in range(0, len(keys), _BATCH):
            backend.client.delete(*keys[start : start + _BATCH])

    def branches(self, shard_id: ShardId, positions: Iterable[int]) -> None:
        """Publish branches of a shard's chord whose size is set already.

        Celery makes the first message, and the others are copies.
        """
        numbers = sorted(positions)
        if not numbers:
            return
        callback = self._collect(shard_id)

        def signature(branch_id: BranchId) -> Signature:
            return self._signature(
                broker.BRANCH,
                asdict(branch_id),
                queue=broker.BRANCHES_QUEUE,
                task_id=branch_id.task_id,
                group_id=shard_id.group_id,
                group_index=branch_id.position,
                chord=callback,
            )

        def publish() -> None:
            with self._app.producer_pool.acquire(block=True) as producer:
                channel = producer.channel
                with channel.recording() as recorded:
                    self._send(signature(shard_id.branch(numbers[0])), producer)
                ((queue, message),) = recorded
                members = _HeaderMessages(message, shard_id)
                for start in range(0, len(numbers), _BATCH):
                    some = numbers[start : start + _BATCH]
                    messages = [members.at(each) for each in some]
                    channel.put_all(queue, shard_id.run_id, messages, are_nodes=shard_id.stage > 0)

        self._patiently(publish)

    def _expand(self, shard_id: ShardId) -> Signature:
        return self._signature(broker.EXPAND, asdict(shard_id), task_id=shard_id.expand_task_id)

    def _collect(self, shard_id: ShardId) -> Signature:
        stage_id = shard_id.stage_id
        return self._signature(
            broker.COLLECT,
            asdict(shard_id),
            task_id=shard_id.collect_task_id,
            group_id=stage_id.group_id,
            group_index=shard_id.shard,
            chord=self._aggregate(stage_id),
        )

    def _aggregate(self, stage_id: StageId) -> Signature:
        task_id = stage_id.aggregate_task_id
        return self._signature(broker.AGGREGATE, asdict(stage_id), task_id=task_id)

    def _signature(self, task: str, kwargs: dict[str, Any], **options: Any) -> Signature:
        # Arguments by name: monitors show them, and find tasks by them. The task by its name, so a
        # client needs no task code. The store has the results: Celery neither keeps one nor
        # subscribes to it. The run is the root of all its tasks. Each message has its wire version,
        # also that of a callback, which Celery publishes.
        common = {"root_id": kwargs.get("run_id"), "headers": {"wire": broker.WIRE_VERSION}}
        options = {"queue": broker.CONTROL_QUEUE, **common, **options}
        return self._app.signature(task, kwargs=kwargs, options={**options, "ignore_result": True})

    def _publish(self, signatures: Iterable[Signature]) -> None:
        messages = list(signatures)
        self._patiently(lambda: self._publish_once(messages))

    def _patiently(self, publish: Callable[[], None]) -> None:
        try:
            # Repeat the whole batch, not single messages as Celery would: a copy of a branch that is
            # being processed, or has an outcome, makes no call.
            call_with_retries(publish, patience_s=self._patience_s, is_worth=self._is_worth)
        except _FROM_BROKER as error:
            is_passing = isinstance(error, _AWAY) or is_transient(error)
            raise BrokerError(
                f"the broker takes no messages: {error}", is_passing=is_passing
            ) from error

    def _is_worth(self, error: BaseException) -> bool:
        return isinstance(error, _AWAY) or self._waits(error) or is_exhausted(error)

    def _publish_once(self, signatures: list[Signature]) -> None:
        with self._app.producer_pool.acquire(block=True) as producer:
            if not producer.supports_batch_publish:
                raise BrokerError("a retry* option of the broker URL rules out batches: remove it")
            with producer.batch(max_size=_BATCH):
                for signature in signatures:
                    self._send(signature, producer)

    def _send(self, signature: Signature, producer: Any) -> None:
        options = dict(signature.options)
        headers = {**options.pop("headers"), "sent_at": round(time.time(), 3)}
        self._app.send_task(
            signature.task,
            args=signature.args,
            kwargs=signature.kwargs,
            producer=producer,
            retry=False,
            add_to_parent=False,
            headers=headers,
            **options,
        )


class _HeaderMessages:
    """Encodes the messages of a shard chord's header from one that Celery made.

    Celery takes 150 microseconds for each message, and those of a header differ only in position.

    Args:
        first: The message as kombu has it before it encodes it: ``headers``, ``properties``,
            ``body`` and its ``content-*``. It is changed.
        shard_id: The shard.
    """

    def __init__(self, first: dict[str, Any], shard_id: ShardId) -> None:
        self._message = first
        self._headers = first["headers"]
        self._properties = first["properties"]
        if self._properties["body_encoding"] != "base64" or first["content-encoding"] != "utf-8":
            raise ValueError("messages are encoded in another way")
        # The arguments by name, and the rest of the task's body.
        _, self._arguments, self._rest = msgspec.json.decode(b64decode(first["body"]))
        self._shard_id = shard_id
        self._tag = self._properties["delivery_tag"]

    def at(self, position: int) -> bytes:
        """Return the message of the branch at a position, encoded."""
        task_id = self._shard_id.branch(position).task_id
        self._arguments["position"] = position
        self._headers["id"] = self._properties["correlation_id"] = task_id
        self._headers["group_index"] = position
        self._headers["kwargsrepr"] = repr(self._arguments)
        self._properties["delivery_tag"] = f"{self._tag}.{position}"
        body = msgspec.json.encode(((), self._arguments, self._rest))
        self._message["body"] = b64encode(body).decode()
        return msgspec.json.encode(self._message)
