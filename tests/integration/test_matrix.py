"""Every operation on a run, with and without ``max_workers``, in each kind of fleet and storage.

All runs of a configuration are small and go on at the same time; while they do, workers are killed,
connections reset and messages lost. Each must end, with an outcome of every branch, and with the
status that its outcomes give it. Fields that cost money are in test_field_pairs.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis

from fanout import Client, ParallelCalls
from fanout.core.errors import UnknownRunError
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.core.records import ErrorKind, RunStatus
from fanout.policy.packing import pack

from .conftest import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARD = 8
_COUNTS = {"below a shard": 6, "above a shard": 20}
_CAPS = (None, 2)
_CALL_S = 0.02
_END_S = 200.0
_MARK = "FANOUT_TEST_MATRIX"
# Leases and looks so short that what was lost is back within a few seconds.
_KEEN = {
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_STALL_S": "2",
    "FANOUT_REAPER_INTERVAL_S": "0.5",
    "FANOUT_GRACE_S": "1",
}
# A function for workers in other processes: what it is asked is a word, and a file without which
# the bad ones fail.
_MODULE = f"""
import os, time
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind

def answer(prompt):
    time.sleep({_CALL_S})
    if prompt.startswith("sum:"):
        return "sum:" + ("worse1" if "worse1" in prompt else "")
    word, _, gate = prompt.partition(" ")
    if not gate or os.path.exists(gate):
        return word
    if word.startswith("bad"):
        raise LLMError(ErrorKind.BAD_REQUEST, "bad")
    if word.startswith("worse"):
        raise ValueError("worse")
    return word
"""


class Cell:
    """One operation on one run of its own, in a configuration.

    Attributes:
        expected: How many branches the run has.
    """

    def __init__(self, client: Client, model: str, gate, *, count: int, cap: int | None) -> None:
        self._client = client
        self._model = model
        self._gate = gate
        self._cap = cap
        self.count = self.expected = count
        words = ["bad", "worse", *(["fine"] * count)]
        self.texts = [f"{words[at % count]}{at}" for at in range(count)]

    def submit(self, texts=None, *, on_created=None, **fields):
        spec = {
            "model": self._model, "prompt": f"{{input}} {self._gate}", "reduce": "none",
            "max_workers": self._cap, "retries": {"max_attempts": 1}, **fields,
        }  # fmt: skip
        if "aspects" in fields:
            del spec["prompt"]
        texts = self.texts if texts is None else texts
        return self._client.submit(spec, texts, on_created=on_created)

    def open_gate(self):
        self._gate.touch()

    def after_some(self, run):
        wait_for(lambda: run.status().done >= 1, f"{run} has begun", _END_S)

    def end(self, run, status, **errors):
        """Wait for the end of a run; check status, counts and outcomes."""
        ended = run.wait(_END_S)
        outcomes = [outcome.index for outcome in run.outcomes()]
        assert ended.total == ended.done == ended.succeeded + ended.failed == self.expected
        assert outcomes == list(range(self.expected))
        assert ended.status is status, ended.error
        if errors:
            found = {kind.value: count for kind, count in ended.errors.items() if count}
            assert found == {kind: count for kind, count in errors.items() if count}
        return ended

    def retry_all(self):
        run = self.submit()
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)
        self.open_gate()
        assert run.retry_failed() == 2
        assert self.end(run, RunStatus.SUCCEEDED).failed == 0

    def retry_by_kind(self):
        run = self.submit()
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)
        self.open_gate()
        assert run.retry_failed([ErrorKind.INTERNAL]) == 1
        self.end(run, RunStatus.SUCCEEDED, bad_request=1)

    def cancel_and_retry(self):
        run = self.submit()
        self.after_some(run)
        if not run.cancel():
            return self.end(run, RunStatus.SUCCEEDED)
        self.end(run, RunStatus.CANCELLED)
        self.open_gate()
        run.retry_failed()
        assert self.end(run, RunStatus.SUCCEEDED).failed == 0
        return None

    def pause_and_go_on(self):
        run = self.submit()
        self.after_some(run)
        run.pause()
        time.sleep(0.3)
        run.unpause()
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)

    def cancel_while_paused(self):
        run = self.submit()
        run.pause()
        time.sleep(0.2)
        status = RunStatus.CANCELLED if run.cancel() else RunStatus.SUCCEEDED
        self.end(run, status)

    def resume(self):
        """Its client stops in the middle of the input; another goes on, and then it, too."""
        ids, goes_on = [], threading.Event()

        def stuck():
            yield from self.texts[: self.count - 1]
            goes_on.wait(_END_S)
            yield self.texts[-1]

        first = threading.Thread(target=lambda: self.submit(stuck(), on_created=ids.append))
        first.start()
        wait_for(lambda: bool(ids), "the run is there", _END_S)
        run = self._client.resume(ids[0], self.texts)
        goes_on.set()
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)
        first.join()

    def deadline(self):
        run = self.submit(deadline_s=1.0)
        ended = run.wait(_END_S)
        if "before the input was read" in (ended.error or ""):
            # On a machine that is slow enough; no more of it is read then.
            assert (ended.status, ended.done) == (RunStatus.FAILED, ended.total)
            return
        self.end(run, RunStatus.SUCCEEDED if ended.succeeded else RunStatus.FAILED)
        assert set(ended.errors) <= {
            ErrorKind.EXPIRED, ErrorKind.BAD_REQUEST, ErrorKind.INTERNAL
        }  # fmt: skip

    def delete(self):
        run = self.submit()
        run.delete()
        with pytest.raises(UnknownRunError):
            run.status()

    def heal(self):
        run = self.submit()
        self._client.heal()
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)

    def reduce_by_calls(self):
        run = self.submit(
            reduce="llm",
            aggregate_prompt="sum:{input}",
            context_tokens=256,
            aggregate_max_tokens=64,
        )
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)
        assert run.aggregate()[0] == "sum:"
        self.open_gate()
        run.retry_failed()
        assert self.end(run, RunStatus.SUCCEEDED).failed == 0
        assert run.aggregate()[0] == "sum:worse1"

    def group_by(self):
        run = self.submit(
            [{"text": text, "half": str(at % 2)} for at, text in enumerate(self.texts)],
            reduce="concat", group_by="half",
        )  # fmt: skip
        self.end(run, RunStatus.SUCCEEDED, bad_request=1, internal=1)
        assert set(run.aggregate()[0]) == {"0", "1"}

    def samples(self):
        self.expected = 3 * self.count
        run = self.submit(samples=3)
        self.end(run, RunStatus.SUCCEEDED, bad_request=3, internal=3)
        self.open_gate()
        assert run.retry_failed() == 6
        assert self.end(run, RunStatus.SUCCEEDED).failed == 0

    def aspects(self):
        self.expected = 2 * self.count
        prompt = f"{{input}} {self._gate}"
        run = self.submit(aspects={"one": prompt, "two": prompt}, group_by="aspect", reduce="merge")
        self.end(run, RunStatus.SUCCEEDED, bad_request=2, internal=2)


_OPERATIONS = tuple(name for name in vars(Cell) if not name.startswith("_"))
_OPERATIONS = tuple(n for n in _OPERATIONS if n not in {"submit", "open_gate", "after_some", "end"})


@contextmanager
def fleet(request, monkeypatch, functions) -> Iterator[tuple[Client, str]]:
    """Two worker processes on a server."""
    start = request.getfixturevalue("start_worker")
    path = functions(_MODULE)
    for _ in range(2):
        start("--concurrency", "8", PYTHONPATH=path, is_forked=False)  # it is found by its command
    yield request.getfixturevalue("client"), "functions_under_test:answer"


@contextmanager
def embedded(request, monkeypatch, functions) -> Iterator[tuple[Client, str]]:
    """A server and a worker process of the client's."""
    monkeypatch.syspath_prepend(functions(_MODULE))
    monkeypatch.setenv(_MARK, str(os.getpid()))
    with Client(concurrency=16) as client:
        yield client, "functions_under_test:answer"


@contextmanager
def in_process(request, monkeypatch, functions) -> Iterator[tuple[Client, str]]:
    """A worker in a thread of the client's process."""
    names: dict[str, Any] = {}
    exec(_MODULE, names)
    with ParallelCalls(llm=names["answer"]) as runner:
        first = runner.run(["fine"], "{input}")
        yield runner.client, runner.client.run(first.run_id).spec.model


def break_things(client: Client, workers: list[psutil.Process]) -> None:
    """Kill a worker, or what comes closest where it is a thread; lose what is in the queue."""
    assert client.broker_url is not None
    with redis.Redis.from_url(client.broker_url) as server:
        if workers:
            workers[0].send_signal(signal.SIGKILL)
        else:
            server.client_kill_filter(_type="normal", skipme=True)
        server.delete(BRANCHES_QUEUE)


def worker_processes() -> list[psutil.Process]:
    """The workers of this test: of all processes those that have its mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            is_ours = process.environ().get(_MARK) == str(os.getpid())
            # The guard of an embedded worker has the command of one among its arguments.
            is_guard = "fanout.client.embedded.guard" in words
            if is_ours and not is_guard and re.search(r"(-m|-A) workers\b", words):
                found.append(process)
    return found


@pytest.mark.parametrize("storage", ["server", "folder"])
@pytest.mark.parametrize("kind", [fleet, embedded, in_process])
def test_every_operation_on_a_run_comes_to_its_end(
    request, monkeypatch, tmp_path, functions, kind, storage
):
    monkeypatch.setattr("fanout.runs.enqueue.pack", partial(pack, max_branches=_SHARD))
    monkeypatch.setenv(_MARK, str(os.getpid()))
    for name, value in _KEEN.items():
        monkeypatch.setenv(name, value)
    if storage == "folder":
        (tmp_path / "storage").mkdir()
        monkeypatch.setenv("FANOUT_STORAGE", str(tmp_path / "storage"))
    failures, ended = {}, threading.Semaphore(0)

    def carry_out(client, model, operation, count, cap):
        gate = tmp_path / f"{operation}-{count}-{cap}"
        cell = Cell(client, model, gate, count=_COUNTS[count], cap=cap)
        try:
            getattr(cell, operation)()
        except BaseException as error:  # noqa: BLE001 - all cells are told of
            failures[operation, count, cap] = repr(error)
        finally:
            ended.release()

    with kind(request, monkeypatch, functions) as (client, model):
        client.submit({"model": model, "prompt": "{input}"}, ["fine"]).wait(_END_S)
        cells = list(product(_OPERATIONS, _COUNTS, _CAPS))
        with ThreadPoolExecutor(len(cells)) as threads:
            for cell in cells:
                threads.submit(carry_out, client, model, *cell)
            for _ in range(len(cells) // 3):
                ended.acquire()
            workers = worker_processes()
            assert bool(workers) == (kind is not in_process)
            break_things(client, workers)
        assert not failures, "\n".join(f"{cell}: {error}" for cell, error in failures.items())
        assert client.broker_url is not None
        with redis.Redis.from_url(client.broker_url) as server:
            wait_for(lambda: not server.keys("fanout.branches*"), "nothing waits any more")
