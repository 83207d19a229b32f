"""Result backends whose chords tolerate failed header tasks and an unreachable server."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from celery import states
from celery.backends.redis import CHORD_PART_RETURN_LUA, RedisBackend, SentinelBackend

from fanout.core.exhaustion import is_exhausted
from fanout.core.ids import run_of
from fanout.stores.connection import PACKER, SOCKET_OPTIONS, MasterConnection, TolerantRetry
from fanout.stores.connection_pool import FastPool
from fanout.stores.functions import FunctionsClient
from fanout.stores.redis.chord_scripts import ADD_MEMBERS, SET_SIZE, count_of_run
from fanout.stores.retrying import call_with_retries, is_recoverable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["TaskFault", "TolerantRedisBackend", "TolerantSentinelBackend"]

# About 20 s: a failover takes less, and the reaper heals chords after longer outages.
_RETRIES = 25

# After this time the reaper heals the chord.
_PATIENCE_S = 3_600.0


def _call_patiently(step: Callable[[], object]) -> None:
    """Do the last step of a finished task; wait while the server is unreachable or refuses."""
    call_with_retries(
        step,
        patience_s=_PATIENCE_S,
        is_worth=lambda error: is_recoverable(error) or is_exhausted(error),
    )


class TaskFault(Exception):  # noqa: N818 - Flower shows the name
    """A task ended with an unexpected error; the message is the error's type and place."""


class _TolerantChords:
    """The changes that both backends make to Celery's.

    Stock Celery raises ChordError at the first failed member and skips the callback
    (celery#1881). Here the callback receives a record of that member:
    ``{"task_id": ..., "state": ..., "error": the exception's type, "reason": ...}``, and nothing
    if the store has its outcome, as for a member that succeeded. The failed task itself stays
    FAILURE, for Flower and metrics. The exception's message is left out, as it may quote a
    document; ``reason`` is only Celery's own message about a revoked task.

    Nothing is written for a chord whose run is deleted: see ``fanout.stores.redis.chord_scripts``.
    """

    app: Any
    chord_expires: int
    connparams: dict[str, Any]
    client: Any
    encode: Callable[[Any], Any]
    encode_result: Callable[[Any, str], Any]
    get_key_for_group: Callable[[str, str], Any]
    group_keyprefix: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Celery has no setting for these. A member that returns twice is counted once, so a
        # return may be sent again.
        if "path" not in self.connparams:
            options = SOCKET_OPTIONS["socket_keepalive_options"]
            self.connparams["socket_keepalive_options"] = options
        self.connparams["retry"] = TolerantRetry(_RETRIES)
        self.connparams["command_packer"] = PACKER

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Set the size of a chord, and forget that it has completed, in one step."""
        keys = [self.get_key_for_group(group_id, part) for part in (".s", ".c")]
        run = self._run_key(keys[0])
        self._size_script(keys=[run], args=[*keys, chord_size, self.chord_expires])

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a member of a chord; wait as long as the server is unreachable.

        Stock Celery fails the task, whose work is done, and the chord never completes. A member is
        counted once however often it returns, so the return may be repeated.
        """
        count = super().on_chord_part_return  # type: ignore[misc]
        _call_patiently(lambda: count(request, state, result, **kwargs))

    def on_chord_parts_return(self, parts: Iterable[tuple[Any, str, BaseException | None]]) -> None:
        """Count several members, of any chords, each as ``on_chord_part_return`` does.

        All members of a chord but one are written in one step; with the last one Celery counts
        them all, and runs the callback if the chord is complete.

        Args:
            parts: The request of each member, its state, and its error if it failed.
        """
        groups: defaultdict[str, list[tuple[Any, str, BaseException | None]]] = defaultdict(list)
        for part in parts:
            groups[part[0].group].append(part)
        for group, members in groups.items():
            if len(members) > 1:
                self._write_members(group, members[:-1])
            request, state, error = members[-1]
            self.on_chord_part_return(request.context, state, error)

    def _write_members(
        self, group: str, members: Sequence[tuple[Any, str, BaseException | None]]
    ) -> None:
        keys = [self.get_key_for_group(group, part) for part in (".j", ".d", ".c")]
        keys.append(self._run_key(keys[0]))
        args: list[Any] = []
        for request, state, error in members:
            args += [request.group_index, request.id, self._entry(request.id, state, error)]
        _call_patiently(lambda: self._members_script(keys=keys, args=args))

    def _entry(self, task_id: str, state: str, error: BaseException | None) -> Any:
        """Return Celery's entry for a member. A repeated write must write the same bytes."""
        if error is None:
            # Celery's encode() takes forty times as long. JSON escapes no character of an id.
            return f'[1, "{task_id}", "{state}", null]'
        return self.encode([1, task_id, state, self.encode_result(error, state)])

    def _get_client(self) -> type[FunctionsClient]:
        return FunctionsClient

    def _run_key(self, key: Any) -> str:
        """Return the key of the run that a key of a chord belongs to."""
        group_id = key.removeprefix(self.group_keyprefix).decode()
        return f"{self._run_keys}{run_of(group_id)}"

    @cached_property
    def _run_keys(self) -> str:
        run_keys: str = self.app.conf.broker_transport_options["run_keys"]
        return run_keys

    @cached_property
    def _chord_part_return_script(self) -> Callable[..., Any]:
        script = self.client.register_script(count_of_run(CHORD_PART_RETURN_LUA))

        def call(keys: list[Any], args: list[Any], client: Any) -> Any:
            return script(keys=[*keys, self._run_key(keys[0])], args=args, client=client)

        return call

    @cached_property
    def _size_script(self) -> Any:
        return self.client.register_script(SET_SIZE)

    @cached_property
    def _members_script(self) -> Any:
        return self.client.register_script(ADD_MEMBERS)

    def _unpack_chord_result(self, tup: bytes, *_: Callable[[bytes], Any] | frozenset[str]) -> Any:
        # An entry has only JSON's own types, also if Celery wrote it.
        _, task_id, state, result = msgspec.json.decode(tup)
        error = result if isinstance(result, dict) else {}
        kind = error.get("exc_type")
        if state not in states.EXCEPTION_STATES or kind == "BranchFailed":
            # The store has the outcome, and LimitedAMQP removes this entry from the message.
            return None
        if kind == TaskFault.__name__:
            # The original error's type is the first word of its message.
            kind = str(next(iter(error.get("exc_message") or ()), kind)).split(" ")[0]
        record = {"task_id": task_id, "state": state, "error": kind}
        if state == states.REVOKED:
            record["reason"] = str(error.get("exc_message"))
        return record


class TolerantRedisBackend(_TolerantChords, RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend, but the callback of a chord runs although header tasks failed."""

    def _get_pool(self, **params: Any) -> FastPool:
        """Return a pool of the connections that Celery's own one would make."""
        return FastPool(**params)


class TolerantSentinelBackend(_TolerantChords, SentinelBackend):  # type: ignore[misc]
    """The same, on a server that Redis Sentinel watches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connparams["connection_class"] = MasterConnection
