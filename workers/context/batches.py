"""Batches and caches of blocking steps, which run in threads for coroutines.

A round trip to the server costs far more than what it carries. So requests that arrive during one
round trip share the next: the busier a worker is, the more its branches share.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from fanout.core.errors import BrokerError
from fanout.core.exhaustion import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from concurrent.futures import Executor

__all__ = ["Batches", "LoadingCache", "until_ended"]

_Asked = TypeVar("_Asked")
_Given = TypeVar("_Given")
_Key = TypeVar("_Key", bound="Hashable")
_Value = TypeVar("_Value")

# Seconds until a step is retried that lacked a thread, a descriptor or memory.
_AGAIN_S = 1.0
# A cache keeps so many values, however heavy they are.
_LEAST_KEPT = 4

_log = logging.getLogger(__name__)


class Batches(Generic[_Asked, _Given]):
    """Carries out one kind of step in batches, for the coroutines of one event loop.

    Each caller gets the result or the error of its own step.

    Args:
        carry_out: Carries out a batch in a thread; returns one result per request. A request may be
            carried out twice: if a batch raises, each request is repeated alone, so that one does
            not fail the others; if the process lacks a resource, the batch is repeated.
        threads: The threads that call it, one at a time.
        linger_s: Returns how many seconds a first request waits for others.
        abandoned: Called on the loop with a request whose caller was cancelled during the step. The
            step may have been done, and no caller is left to undo it.
    """

    def __init__(
        self,
        carry_out: Callable[[list[_Asked]], Sequence[_Given]],
        threads: Executor | None,
        linger_s: Callable[[], float] = lambda: 0.0,
        abandoned: Callable[[_Asked], None] | None = None,
    ) -> None:
        self._carry_out = carry_out
        self._abandoned = abandoned
        self._threads = threads
        self._linger_s = linger_s
        self._waiting: list[tuple[_Asked, asyncio.Future[_Given]]] = []
        self._is_busy = False

    def __call__(self, asked: _Asked) -> asyncio.Future[_Given]:
        """Carry out the step for one request; return the future of its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Given] = loop.create_future()
        self._waiting.append((asked, future))
        if not self._is_busy:
            self._is_busy = True
            # Later: other coroutines that are ready now join the batch.
            loop.call_later(self._linger_s(), self._start)
        return future

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        self._try([asked for asked, _ in batch], [future for _, future in batch])

    def _try(self, asked: list[_Asked], futures: list[asyncio.Future[_Given]]) -> None:
        try:
            loop = asyncio.get_running_loop()
            step = loop.run_in_executor(self._threads, self._carried_out, asked)
        except Exception as error:  # noqa: BLE001 - the pool has ended, or no thread can be started
            self._end(asked, futures, error)
            return
        step.add_done_callback(lambda done: self._end(asked, futures, _ended(done)))

    def _try_again(self, asked: list[_Asked], futures: list[asyncio.Future[_Given]]) -> None:
        # A request without a caller must not hold up later ones.
        left = [pair for pair in zip(asked, futures, strict=True) if not pair[1].done()]
        self._try([asked for asked, _ in left], [future for _, future in left])

    def _carried_out(self, asked: list[_Asked]) -> list[tuple[_Given | None, Exception | None]]:
        """Return a result or an error per request. Raises if the batch should be repeated."""
        try:
            given = self._carry_out(asked)
            return [(each, None) for each in _one_for_each(given, asked)]
        except Exception as error:
            if is_exhausted(error):
                raise
            is_away = isinstance(error, BrokerError) and error.is_passing
            if len(asked) == 1 or is_away:
                return [(None, error)] * len(asked)
        return [self._carried_out([each])[0] for each in asked]

    def _end(
        self,
        asked: list[_Asked],
        futures: list[asyncio.Future[_Given]],
        ended: Sequence[tuple[_Given | None, Exception | None]] | BaseException,
    ) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(ended, BaseException) and is_exhausted(ended):
            _log.warning("%s: it is tried again", ended)
            loop.call_later(_AGAIN_S, self._try_again, asked, futures)
            return
        if self._waiting:
            loop.call_later(self._linger_s(), self._start)
        else:
            self._is_busy = False
        each = [(None, ended)] * len(asked) if isinstance(ended, BaseException) else ended
        for one, future, (given, error) in zip(asked, futures, each, strict=True):
            if future.done():
                # The caller was cancelled.
                if self._abandoned is not None:
                    self._abandoned(one)
            elif error is None:
                future.set_result(cast("_Given", given))
            else:
                future.set_exception(error)


async def until_ended(step: asyncio.Future[Any]) -> None:
    """Wait until a step has ended, well or not; it goes on if this wait is cancelled."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_step: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    step.add_done_callback(wake)
    await waiter


def _one_for_each(given: Sequence[_Given], asked: list[_Asked]) -> Sequence[_Given]:
    if len(given) != len(asked):
        msg = f"{len(given)} answers to {len(asked)} steps"
        raise RuntimeError(msg)
    return given


def _ended(done: asyncio.Future[Any]) -> Any:
    """Return the result of a step, or its error."""
    if done.cancelled():
        return RuntimeError("the step was cancelled: this process is about to end")
    return done.exception() or done.result()


class LoadingCache(Generic[_Key, _Value]):
    """Keeps the most recently used values; coroutines that ask for the same key share one loading.

    Args:
        load: Returns the value of a key; it may block.
        threads: The threads that call it for coroutines.
        size: How many values to keep.
        weigh: Returns the weight of a value, where some are much larger than others.
        most_weight: The most weight of all together; a few are kept however heavy they are.
    """

    def __init__(
        self,
        load: Callable[[_Key], _Value],
        threads: Executor,
        *,
        size: int,
        weigh: Callable[[_Value], int] | None = None,
        most_weight: int = 0,
    ) -> None:
        self._load = load
        self._threads = threads
        self._size = size
        self._weigh = weigh
        self._most_weight = most_weight
        self._weights: dict[_Key, int] = {}
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._loading: dict[_Key, asyncio.Future[_Value]] = {}

    def get(self, key: _Key) -> _Value:
        """Return the value of ``key``; this thread loads it if need be. Raises what ``load`` raises."""
        try:
            value = self._values[key]
            self._values.move_to_end(key)
        except KeyError:
            value = self._load(key)
            with self._lock:
                self._values[key] = value
                if self._weigh is not None:
                    self._weights[key] = self._weigh(value)
                self._shrink()
        return value

    def _shrink(self) -> None:
        """Forget the values that were not used for longest."""
        while len(self._values) > self._size or (
            sum(self._weights.values()) > self._most_weight and len(self._values) > _LEAST_KEPT
        ):
            key, _ = self._values.popitem(last=False)
            self._weights.pop(key, None)

    def known(self, key: _Key) -> _Value | None:
        """Return the value of ``key`` if it is loaded; this is no use that keeps it."""
        return self._values.get(key)

    def ready(self, key: _Key) -> _Value | None:
        """Return the value of ``key`` for use if it is loaded; faster than to await it."""
        values = self._values
        try:
            values.move_to_end(key)
            return values[key]
        except KeyError:
            return None

    async def __call__(self, key: _Key) -> _Value:
        """Return the value of ``key``. Raises what ``load`` raises."""
        value = self.ready(key)
        if value is not None:
            return value
        future = self._loading.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._loading[key] = loop.run_in_executor(self._threads, self.get, key)
            future.add_done_callback(lambda done: self._loaded(key, done))
        # A caller that is cancelled must not cancel the loading for the others.
        return await asyncio.shield(future)

    def _loaded(self, key: _Key, done: asyncio.Future[_Value]) -> None:
        del self._loading[key]
        if not done.cancelled():
            # If all callers were cancelled, nothing else retrieves the error.
            done.exception()
