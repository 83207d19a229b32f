"""One call ahead of its siblings: it fills a provider's prompt cache, from which the others read.

A provider caches a prefix once it has processed the first prompt with it. Calls that are made at the
same time all pay for it in full. So the first branch with a prefix calls, and its siblings wait until it
has an answer. They wait before they take a place, a permit or a claim. The processes of a fleet agree
by a key at the server that lapses: if it is unreachable, each process has a call ahead of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Literal

from fanout.core.errors import BrokerError
from workers.context.admission import AdmissionClosedError
from workers.context.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor
    from typing import Self

    from fanout.stores import RedisStore

__all__ = ["Lead", "Leads"]

# Providers keep a prefix for five minutes at least.
_WARM_S = 240.0
# A prompt has been processed after this time, also where its answer takes longer.
_PROCESSED_S = 15.0
# How long a branch waits in all: then it costs more time than money.
_LONGEST_S = 120.0
# How long the claim of a process lasts, and how often others look at it.
_CLAIMED_S = 30
_LOOK_S = 0.1
_REMEMBERED = 10_000

_log = logging.getLogger(__name__)


class _Family:
    """The calls of this process that share a prefix."""

    __slots__ = ("is_led", "waiting", "warm_until")

    def __init__(self) -> None:
        self.is_led = False
        self.warm_until = float("-inf")
        # The result says whether the branch leads now.
        self.waiting: deque[asyncio.Future[bool]] = deque()


class Leads:
    """Decides which calls of a process are ahead of others; used on the loop of the branches.

    Args:
        store: The server by which processes agree; it fails if that is unreachable.
        threads: The threads in which it is asked.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.

    Attributes:
        waiting: Branches that wait for a call ahead of them; for any thread.
    """

    def __init__(
        self,
        store: RedisStore,
        threads: Executor,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.waiting = 0
        self._clock = clock
        self._sleep = sleep
        self._families: OrderedDict[str, _Family] = OrderedDict()
        self._store = store
        self._threads = threads
        self._claim = Batches(self._claim_all, threads)
        self._tell = Batches(self._tell_all, threads)
        self._telling: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def enter(self, names: Sequence[str]) -> Lead:
        """Wait until a branch may call.

        Args:
            names: The prefixes of its prompt, in the same order as those of all other branches.

        Raises:
            AdmissionClosedError: The worker stops.
        """
        lead = Lead(self, names)
        try:
            for name in names:
                if await self._turn(name):
                    lead.led.append(name)
        except BaseException:
            lead.ends()
            raise
        return lead

    def close(self) -> None:
        """Let no branch wait any longer: the worker stops."""
        self._is_closed = True
        for family in self._families.values():
            for future in family.waiting:
                if not future.done():
                    future.set_exception(AdmissionClosedError())

    def end(self) -> None:
        """End the threads that ask the server."""
        self._threads.shutdown(cancel_futures=True)

    async def _turn(self, name: str) -> bool:
        """Wait for a prefix; return whether the branch leads the others of this prefix."""
        if self._is_closed:
            raise AdmissionClosedError
        family = self._family(name)
        if self._clock() < family.warm_until:
            return False
        if family.is_led:
            return await self._wait(name, family)
        family.is_led = True
        self.waiting += 1
        try:
            is_first = await self._is_first_of_fleet(name)
        except BaseException:
            self.free(name, is_claimed=False)
            raise
        finally:
            self.waiting -= 1
        if not is_first:
            self.warm(name, tells=False)
        return is_first

    async def _wait(self, name: str, family: _Family) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        family.waiting.append(future)
        self.waiting += 1
        try:
            async with asyncio.timeout(_LONGEST_S):
                return await future
        except (TimeoutError, asyncio.CancelledError) as fault:
            if _has_lead(future):
                # It was its turn at this very moment.
                self.free(name)
            if isinstance(fault, TimeoutError):
                return False
            raise
        finally:
            self.waiting -= 1
            if future in family.waiting:
                family.waiting.remove(future)

    async def _is_first_of_fleet(self, name: str) -> bool:
        key, until = _key(name), self._clock() + _LONGEST_S
        while True:
            try:
                part = await self._claim(key)
            except BrokerError as error:
                _log.debug("a call does not wait for others of the fleet: %s", error)
                return True
            if part == "first" or self._clock() > until:
                return True
            if part == "warm":
                return False
            if self._is_closed:
                raise AdmissionClosedError
            await self._sleep(_LOOK_S)

    def _family(self, name: str) -> _Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family()
            if len(self._families) > _REMEMBERED:
                _, oldest = self._families.popitem(last=False)
                for future in oldest.waiting:
                    if not future.done():
                        future.set_result(False)
        else:
            self._families.move_to_end(name)
        return family

    def warm(self, name: str, *, tells: bool = True) -> None:
        """Let all branches with a prefix call: the provider has it."""
        family = self._family(name)
        family.is_led = False
        family.warm_until = self._clock() + _WARM_S
        while family.waiting:
            future = family.waiting.popleft()
            if not future.done():
                future.set_result(False)
        if tells:
            self._note(name, is_warm=True)

    def free(self, name: str, *, is_claimed: bool = True) -> None:
        """Let another branch lead: this one has not called, or has failed."""
        family = self._family(name)
        while family.waiting:
            future = family.waiting.popleft()
            if not future.done():
                future.set_result(True)
                return
        family.is_led = False
        if is_claimed:
            self._note(name, is_warm=False)

    def _note(self, name: str, *, is_warm: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._told(_key(name), is_warm=is_warm))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _claim_all(self, keys: list[str]) -> list[Literal["first", "warm", "wait"]]:
        return self._store.claim_prefixes(keys, lasts_s=_CLAIMED_S)

    def _tell_all(self, told: list[tuple[str, bool]]) -> list[None]:
        self._store.note_prefixes(dict(told), lasts_s=int(_WARM_S))
        return [None] * len(told)

    async def _told(self, key: str, *, is_warm: bool) -> None:
        try:
            await self._tell((key, is_warm))
        except BrokerError as error:
            # The claim lapses.
            _log.debug("the fleet is not told of a prefix: %s", error)


class Lead:
    """One branch among those with its prefixes; it ends with the block.

    Attributes:
        led: The prefixes of which it is the first.
    """

    def __init__(self, leads: Leads, names: Sequence[str]) -> None:
        self._leads = leads
        self._names = names
        self._timer: asyncio.TimerHandle | None = None
        self.led: list[str] = []

    def calls(self) -> None:
        """Note that its call begins."""
        if self.led and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_PROCESSED_S, self.answered)

    def answered(self) -> None:
        """Note that its call has an answer, or has been under way for so long."""
        for name in self._names:
            self._leads.warm(name, tells=name in self.led)
        self.led.clear()

    def ends(self) -> None:
        """Note that its call has failed, or that it makes none: another one goes ahead."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for name in self.led:
            self._leads.free(name)
        self.led.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.ends()


def _has_lead(future: asyncio.Future[bool]) -> bool:
    is_answered = future.done() and not future.cancelled() and future.exception() is None
    return is_answered and future.result()


def _key(name: str) -> str:
    """Return what the server sees of a name, which has names of models and prompts."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
