"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

# Workers are started here as there.
from tests.integration.conftest import client, functions, s3, s3_url, start_worker  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.forked import ForkServer

_OWNER = "TESTS_OWNER"
# That of another environment, such as one that has what ships and nothing else, where it is named.
_NAMED = os.environ.get("FANOUT_TESTS_COMMAND")
FANOUT = _NAMED or str(Path(sys.executable).parent / "fanout")


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def forks_embedded() -> bool:
    """Whether an embedded worker is forked, too, from a process that has imported what it imports.

    It is then no child of the command that starts it: tests that look for it there say False.
    """
    return True


@pytest.fixture
def fanout(here: Path, forks: ForkServer, *, forks_embedded: bool) -> Callable[..., Done]:
    """Run the command line to its end; a traceback is never what a user should see."""

    start = partial(forked, forks, forks_embedded)

    def run(*arguments: str, stdin: bytes = b"", timeout_s: float = 200, **env: str) -> Done:
        given = {**os.environ, **env}
        if _NAMED:
            done = subprocess.run(
                [_NAMED, *arguments],
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env=given,
            )
            result = Done(done.returncode, done.stdout.decode(), done.stderr.decode())
        else:
            result = start("fanout", arguments, given, timeout_s, stdin)
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return run


@pytest.fixture
def popen(here: Path, forks: ForkServer, *, forks_embedded: bool) -> Callable[..., Any]:
    """Start ``fanout`` or a ``script`` with its words, and the options of ``ForkServer.popen``."""

    def start(program: str, *words: str, **options: Any) -> Any:
        if _NAMED and program == "fanout":
            return subprocess.Popen([_NAMED, *words], **options)
        return forks.popen(program, words, forks_embedded=forks_embedded, **options)

    return start


@pytest.fixture
def script(here: Path, forks: ForkServer, *, forks_embedded: bool) -> Callable[..., str]:
    """Run a Python program of a user in a process of its own; it warns of nothing."""

    def run(source: str, timeout_s: float = 200) -> str:
        (here / "script.py").write_text(textwrap.dedent(source))
        done = forked(forks, forks_embedded, "script", ["script.py"], os.environ, timeout_s)
        assert done.status == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def forked(
    forks: ForkServer,
    forks_embedded: bool,
    program: str,
    words: Sequence[str],
    env: Mapping[str, str],
    timeout_s: float,
    stdin: bytes = b"",
) -> Done:
    """Run a program of ``ForkServer.start`` to its end."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        given.write(stdin)
        given.seek(0)
        streams = (given.fileno(), stdout.fileno(), stderr.fileno())
        process = forks.start(
            program,
            words,
            env=env,
            cwd=Path.cwd(),
            streams=streams,
            forks_embedded=forks_embedded,
        )
        try:
            status = process.wait(timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        for stream in (stdout, stderr):
            stream.seek(0)
        return Done(status, stdout.read().decode(), stderr.read().decode())


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, forks: ForkServer) -> Iterator[None]:
    """Every process that a test's commands started has ended, also if the test failed."""
    # Children inherit it; others on this machine may be at work too.
    monkeypatch.setenv(_OWNER, str(os.getpid()))
    before = {process.pid for process in psutil.process_iter()}
    yield
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    ours = [p for p in left if p.pid != forks.pid and _is_ours(p)]
    _, alive = psutil.wait_procs(ours, timeout=120)
    assert alive == [], [process.cmdline() for process in alive]


def _is_ours(process: psutil.Process) -> bool:
    # Without the interpreter, whose path may hold the name of the clone.
    words = " ".join((process.info["cmdline"] or ())[1:])
    names = ("fanout", "valkey-server", "workers.app", "workers.telemetry.flower", "chrom")
    # The local model's server ends with its last user, which may be another test.
    if "fanout.llm.local_server" in words or not any(name in words for name in names):
        return False
    try:
        return process.environ().get(_OWNER) == str(os.getpid())
    except psutil.Error:
        return False
