"""Real worker processes on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ports import free_port

from fanout.client.client import Client
from fanout.core.queue_names import BEHIND, BRANCHES_QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis
    import s3fs

    from tests.forked import Forked, ForkServer

BUCKET = "fanout-tests"
# The settings of a worker beside which others are killed. What a killed one has counted and not published,
# only the reaper publishes: these tests need it, and need it soon.
QUICK = {
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_REAPER_INTERVAL_S": "1",
    "FANOUT_STALL_S": "2",
}
# As images start a worker.
_MODULE = ("-m", "workers")
PATCHED = Path(__file__).with_name("patched_worker.py")


class Worker:
    """A worker process, as images start it; ``patches`` are as for patched_worker.py.

    ``program`` is what starts it otherwise: the ``celery`` command takes twice as long. Without either,
    ``forks`` may have loaded what it imports.
    """

    def __init__(
        self,
        url: str,
        log: Path,
        *options: str,
        patches: dict[str, object] | None = None,
        program: tuple[str, ...] = _MODULE,
        forks: ForkServer | None = None,
        **env: str,
    ) -> None:
        self.name = f"w{os.urandom(3).hex()}@test"
        self.log = log
        forked = "workers" if program == _MODULE else ""
        if patches is not None:
            forked, program = "patched", (str(PATCHED), json.dumps(patches))
        words = ["-A", "workers.app", "worker"]
        words += ["--hostname", self.name, "--loglevel", "INFO", *options]
        env = {
            **os.environ,
            "FANOUT_BROKER_URL": url,
            "FANOUT_ALLOWED_CALLABLES": "functions_under_test,lifecycle_models,slow_model",
            **env,
        }
        # Celery puts the working directory first on its path: not the source tree.
        cwd = log.parent
        self.process: Forked | subprocess.Popen[bytes]
        with log.open("ab") as stream, Path(os.devnull).open("rb") as nothing:
            if forks and forked:
                streams = (nothing.fileno(), stream.fileno(), stream.fileno())
                given = words if forked == "workers" else [*program, *words]
                self.process = forks.start(
                    forked, given, env=env, cwd=cwd, streams=streams, starts_session=True
                )
            else:
                self.process = subprocess.Popen(
                    [sys.executable, *program, *words],
                    env=env,
                    cwd=cwd,
                    stdin=nothing,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )

    def children(self) -> list[int]:
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As the kernel does when memory runs out: the process and its children, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    """Poll until a condition holds; fail with its name where it does not in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {timeout_s} s in vain until {what}")
        time.sleep(0.02)


def waiting(server: redis.Redis) -> int:
    """How many branches wait, in their queue and behind it."""
    return int(server.llen(BRANCHES_QUEUE)) + int(server.llen(BEHIND))


@pytest.fixture
def start_worker(
    broker_url: str, tmp_path: Path, forks: ForkServer
) -> Iterator[Callable[..., Worker]]:
    """Start workers that are known to consume; they are stopped after the test."""
    workers: list[Worker] = []

    def start(
        *options: str,
        url: str = broker_url,
        patches: dict[str, object] | None = None,
        program: tuple[str, ...] = _MODULE,
        is_refused: bool = False,
        is_forked: bool = True,
        **env: str,
    ) -> Worker:
        log = tmp_path / f"worker{len(workers)}.log"
        starter = forks if is_forked else None
        worker = Worker(url, log, *options, patches=patches, program=program, forks=starter, **env)
        workers.append(worker)
        if is_refused:
            return worker
        with Client(url) as client:
            wait_for(
                lambda: worker.process.poll() is None and worker.name in client.workers(),
                f"the worker is up; its log is {worker.log}",
            )
        return worker

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def functions(tmp_path: Path) -> Callable[..., str]:
    """A folder with modules that workers import by name; returns a writer and its PYTHONPATH."""
    folder = tmp_path / "functions"
    folder.mkdir()

    def write(source: str, name: str = "functions_under_test") -> str:
        (folder / f"{name}.py").write_text(source)
        return str(folder)

    return write


@pytest.fixture
def client(broker_url: str) -> Iterator[Client]:
    with Client(broker_url) as client:
        yield client


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    port = free_port()
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """A client of an S3 server; the environment says where it is, as it would of any other."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_url,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def is_up() -> bool:
        try:
            fs.mkdir(BUCKET)
        except FileExistsError:
            return True
        except OSError:
            return False
        return True

    wait_for(is_up, "the S3 server is up")
    return fs
