"""Breaks things: carries a schedule out on a fleet, and replaces what has died."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import psutil
import redis

from fanout.core.errors import BrokerError
from faults.ledger import Injury
from faults.model_outages import OUTAGES, begin, end
from faults.nodes import (
    Worker,
    client_process,
    host_name,
    no_threads,
    storage,
    wait_until_up,
)
from faults.refusals import refusing
from faults.schedule import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hosts import Hosts, Process

    from fanout import Client
    from faults.nodes import Server
    from faults.schedule import Fault, FleetShape

__all__ = ["ClientKeeper", "Injector", "Slot"]

_UP_S = 60.0
_LOOK_S = 0.1


class Slot:
    """A place in the fleet: at each time one worker, under a new name each time it is replaced."""

    def __init__(self, number: int, pool: str, start: Callable[[str, Slot], Worker]) -> None:
        self.number = number
        self.pool = pool
        # Held while its worker is struck, or replaced.
        self.busy = threading.Lock()
        self._start = start
        self._count = 0
        self.worker = self._next()

    def _next(self) -> Worker:
        self._count += 1
        return self._start(f"w{self.number}.{self._count}", self)

    def replace(self) -> None:
        """Start another worker."""
        self.worker = self._next()


class ClientKeeper:
    """Keeps a client process: one that dies, by a fault or by itself, is followed by another."""

    def __init__(self, folder: Path, plan: Path) -> None:
        self._folder = folder
        self._plan = plan
        self._count = 0
        self._killed: set[int] = set()
        self._is_closing = False
        self.failures = 0
        self.process = self._started()
        self._thread = threading.Thread(target=self._keep, name="client-keeper")
        self._thread.start()

    def _started(self) -> Process:
        self._count += 1
        return client_process(self._folder, self._count, plan=self._plan)

    def _keep(self) -> None:
        while not self._is_closing:
            status = self.process.status
            if status == 0:
                return
            if status is not None:
                self.failures += self.process.pid not in self._killed
                time.sleep(0.5)
                self.process = self._started()
            time.sleep(_LOOK_S)

    def strike(self) -> bool:
        """Kill it; say whether there was one to kill."""
        process = self.process
        if process.status is not None:
            return False
        self._killed.add(process.pid)
        process.kill()
        return True

    def close(self, timeout_s: float) -> bool:
        """Wait until the client has ended well; say whether it did."""
        self._thread.join(timeout_s)
        self._is_closing = True
        self._thread.join()
        has_ended = self.process.status == 0
        self.process.kill()
        return has_ended


class Injector:
    """Carries faults out.

    Attributes:
        injuries: What was done, in the order in which it was over.
        deaths: Workers that died although no fault struck them.
    """

    def __init__(
        self,
        fleet: FleetShape,
        server: Server,
        clients: ClientKeeper,
        watcher: Client,
        hosts: Hosts | None,
        start_worker: Callable[[str, Slot], Worker],
    ) -> None:
        self._server = server
        self._server_busy = threading.Lock()
        self._storage_busy = threading.Lock()
        self._provider_busy = threading.Lock()
        self._clients = clients
        self._watcher = watcher
        self._hosts = hosts
        self.has_ended = threading.Event()
        self._is_closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self.injuries: list[Injury] = []
        self.deaths: list[str] = []
        threads = fleet.workers - fleet.prefork
        pools = ["asyncio"] * threads + ["prefork"] * fleet.prefork
        self.slots = [Slot(number, pool, start_worker) for number, pool in enumerate(pools)]
        self._kinds: dict[str, Callable[[Fault, Injury], None]] = {
            "kill_worker": self._kill_worker,
            "kill_child": self._kill_child,
            "terminate_worker": self._terminate_worker,
            "stop_short": self._stop_worker,
            "stop_long": self._stop_worker,
            "cut_network": self._cut_network,
            "restart_server": self._restart_server,
            "kill_server": self._restart_server,
            "pause_server": self._pause_server,
            "reset_connections": self._reset_connections,
            "kill_client": self._kill_client,
            "no_threads": self._no_threads,
            "no_descriptors": self._no_descriptors,
            "unmount_storage": self._unmount_storage,
            **dict.fromkeys(REFUSALS, self._refuse_writes),
            **dict.fromkeys(OUTAGES, self._fail_provider),
        }

    def wait_until_up(self) -> None:
        """Wait until all workers are known. Raises RuntimeError where one does not come."""
        self._wait_until_up([slot.worker for slot in self.slots])

    def _wait_until_up(self, workers: list[Worker]) -> None:
        until = time.monotonic() + _UP_S
        while not wait_until_up(workers, self._known()):
            if time.monotonic() > until or self._is_closing.is_set():
                raise RuntimeError(f"a worker is not up: see {workers[0].log.parent}")
            time.sleep(_LOOK_S)

    def _known(self) -> dict[str, int]:
        try:
            return self._watcher.workers()
        except BrokerError:
            return {}

    def carry_out(self, schedule: list[Fault]) -> None:
        """Carry a schedule out; all that died has been replaced when this returns."""
        begun = time.monotonic()
        self._threads = [threading.Thread(target=self._strike, args=(f, begun)) for f in schedule]
        for thread in self._threads:
            thread.start()
        while any(thread.is_alive() for thread in self._threads):
            self.keep()
            time.sleep(_LOOK_S)

    def close(self) -> None:
        """End all workers, also half-way through a schedule."""
        self.has_ended.set()
        self._is_closing.set()
        for thread in self._threads:
            thread.join()
        for slot in self.slots:
            slot.worker.kill()

    def keep(self) -> None:
        """Replace workers that have died by themselves, as any supervisor does."""
        for slot in self.slots:
            if slot.busy.acquire(blocking=False):
                try:
                    if slot.worker.status is not None:
                        self.deaths.append(slot.worker.name)
                        slot.replace()
                finally:
                    slot.busy.release()

    def _strike(self, fault: Fault, begun: float) -> None:
        self.has_ended.wait(max(0.0, begun + fault.at_s - time.monotonic()))
        injury = Injury(number=fault.number, kind=fault.kind, at=time.time())
        self.injuries.append(injury)
        if self.has_ended.is_set():
            injury.skipped = "the run had ended"
            return
        self._kinds[fault.kind](fault, injury)

    def _take(self, fault: Fault, injury: Injury) -> Slot | None:
        """Return the slot that a fault strikes, or the next that is not struck already."""
        first = fault.slot or 0
        for slot in [*self.slots[first:], *self.slots[:first]]:
            is_fit = fault.kind != "kill_child" or slot.pool == "prefork"
            if is_fit and slot.busy.acquire(blocking=False):
                injury.at = time.time()
                injury.worker = slot.worker.name
                return slot
        injury.skipped = "all such workers were struck already"
        return None

    def _replace(self, slot: Slot, fault: Fault) -> None:
        if not self._is_closing.wait(fault.replaced_s):
            slot.replace()
        # One that does not come is taken care of by ``keep``.
        with contextlib.suppress(RuntimeError):
            self._wait_until_up([slot.worker])
        slot.busy.release()

    def _kill_worker(self, fault: Fault, injury: Injury) -> None:
        if (slot := self._take(fault, injury)) is None:
            return
        slot.worker.kill()
        injury.dead_at = time.time()
        injury.excuses = True
        self._replace(slot, fault)

    def _terminate_worker(self, fault: Fault, injury: Injury) -> None:
        if (slot := self._take(fault, injury)) is None:
            return
        slot.worker.signal(signal.SIGTERM)
        slot.worker.wait(fault.lasts_s)
        slot.worker.kill()
        injury.dead_at = time.time()
        injury.excuses = True
        self._replace(slot, fault)

    def _kill_child(self, fault: Fault, injury: Injury) -> None:
        if (slot := self._take(fault, injury)) is None:
            return
        injury.worker = None
        children = slot.worker.children()
        if children:
            injury.pid = children[fault.pick % len(children)]
            _kill_pid(injury.pid)
            injury.dead_at = time.time()
            injury.excuses = True
        else:
            injury.skipped = "it had no children"
        slot.busy.release()

    def _stop_worker(self, fault: Fault, injury: Injury) -> None:
        if (slot := self._take(fault, injury)) is None:
            return
        slot.worker.signal_all(signal.SIGSTOP)
        time.sleep(fault.lasts_s)
        slot.worker.signal_all(signal.SIGCONT)
        injury.until = time.time()
        injury.excuses = fault.kind == "stop_long"
        slot.busy.release()

    def _cut_network(self, fault: Fault, injury: Injury) -> None:
        if self._hosts is None:
            injury.skipped = "there are no network namespaces"
            return
        if (slot := self._take(fault, injury)) is None:
            return
        host = self._hosts[host_name(slot.number)]
        host.cut()
        time.sleep(fault.lasts_s)
        host.mend()
        # What was sent meanwhile is sent again after as long once more: TCP doubles its waits.
        injury.until = time.time() + fault.lasts_s
        injury.excuses = True
        slot.busy.release()

    def _take_server(self, injury: Injury) -> bool:
        if self._server_busy.acquire(blocking=False):
            injury.at = time.time()
            injury.is_server = True
            return True
        injury.skipped = "the server was struck already"
        return False

    def _restart_server(self, fault: Fault, injury: Injury) -> None:
        if not self._take_server(injury):
            return
        is_kill = fault.kind == "kill_server"
        self._server.process.signal(signal.SIGKILL if is_kill else signal.SIGTERM)
        self._server.process.wait(_UP_S)
        time.sleep(fault.lasts_s)
        self._server.start()
        injury.until = time.time()
        self._server_busy.release()

    def _pause_server(self, fault: Fault, injury: Injury) -> None:
        if not self._take_server(injury):
            return
        self._server.process.signal(signal.SIGSTOP)
        time.sleep(fault.lasts_s)
        self._server.process.signal(signal.SIGCONT)
        injury.until = time.time()
        self._server_busy.release()

    def _reset_connections(self, _fault: Fault, injury: Injury) -> None:
        if not self._take_server(injury):
            return
        try:
            for kind in ("normal", "pubsub"):
                self._server.client.client_kill_filter(_type=kind)
        except redis.RedisError as error:
            injury.skipped = f"the server was away ({type(error).__name__})"
        injury.until = time.time()
        self._server_busy.release()

    def _refuse_writes(self, fault: Fault, injury: Injury) -> None:
        if not self._take_server(injury):
            return
        says, _ = REFUSALS[fault.kind]
        with refusing(says, port=self._server.port, folder=self._server.folder):
            time.sleep(fault.lasts_s)
        injury.until = time.time()
        self._server_busy.release()

    def _no_threads(self, fault: Fault, injury: Injury) -> None:
        if (slot := self._take(fault, injury)) is None:
            return
        limit = no_threads(slot.worker.log.parent, slot.worker.name)
        limit.touch()
        time.sleep(fault.lasts_s)
        limit.unlink()
        injury.until = time.time()
        slot.busy.release()

    def _no_descriptors(self, fault: Fault, injury: Injury) -> None:
        if (slot := self._take(fault, injury)) is None:
            return
        limits = _descriptor_limits([slot.worker.pid, *slot.worker.children()])
        for process, (_, hard) in limits.items():
            # Fewer than are open: those stay, and no other can be opened although some are closed.
            _limit_descriptors(process, (process.num_fds() // 2, hard))
        time.sleep(fault.lasts_s)
        for process, before in limits.items():
            _limit_descriptors(process, before)
        injury.until = time.time()
        slot.busy.release()

    def _unmount_storage(self, fault: Fault, injury: Injury) -> None:
        if not self._storage_busy.acquire(blocking=False):
            injury.skipped = "the storage was struck already"
            return
        injury.at = time.time()
        mounted = storage(self.slots[0].worker.log.parent)
        away = mounted.rename(mounted.with_name("unmounted"))
        mounted.mkdir()
        time.sleep(fault.lasts_s)
        # Not empty, where somebody took it for the right one: that raises.
        mounted.rmdir()
        away.rename(mounted)
        injury.until = time.time()
        self._storage_busy.release()

    def _fail_provider(self, fault: Fault, injury: Injury) -> None:
        if not self._provider_busy.acquire(blocking=False):
            injury.skipped = "the provider was down already"
            return
        injury.at = time.time()
        folder = self.slots[0].worker.log.parent
        begin(folder, fault.kind)
        time.sleep(fault.lasts_s)
        end(folder)
        injury.until = time.time()
        self._provider_busy.release()

    def _kill_client(self, _fault: Fault, injury: Injury) -> None:
        if not self._clients.strike():
            injury.skipped = "the client had ended"
        injury.until = time.time()


def _descriptor_limits(pids: list[int]) -> dict[psutil.Process, tuple[int, int]]:
    limits = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            limits[process] = process.rlimit(psutil.RLIMIT_NOFILE)
    return limits


def _limit_descriptors(process: psutil.Process, limits: tuple[int, int]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.rlimit(psutil.RLIMIT_NOFILE, limits)


def _kill_pid(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
