"""Processes that are forked from one that has loaded the package are as those that are executed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest


@pytest.fixture
def start(forks, tmp_path):
    """Start a script; the files are what it prints to."""
    with ExitStack() as stack:

        def begin(source, *words, name="script.py", env=None, **more):
            (tmp_path / name).write_text(source)
            streams = [stack.enter_context(tempfile.TemporaryFile("w+b")) for _ in range(3)]
            streams[0].write(b"given")
            streams[0].seek(0)
            process = forks.start(
                "script", [name, *words],
                env=env or {}, cwd=tmp_path, streams=tuple(one.fileno() for one in streams), **more,
            )  # fmt: skip
            return process, streams[1], streams[2]

        yield begin


def printed(file):
    file.seek(0)
    return file.read().decode()


TELL = """
import atexit, json, os, sys, workers.config
import module_beside
print(json.dumps({
    "words": sys.argv, "env": dict(os.environ), "folder": os.getcwd(), "given": sys.stdin.read(),
    "beside": module_beside.NAME, "main": __name__, "session": os.getsid(0) == os.getpid(),
    "files": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],
}))
atexit.register(print, "the end")
"""


@pytest.mark.parametrize("starts_session", [False, True])
def test_a_process_has_what_it_is_given_and_nothing_of_others(start, tmp_path, starts_session):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "module_beside.py").write_text("NAME = 'beside'")
    env = {"PYTHONPATH": str(tmp_path / "more"), "X": "ä"}
    with Path(os.devnull).open() as other:
        os.set_inheritable(other.fileno(), True)
        running, _, _ = start("import signal; signal.pause()", name="other.py")
        process, stdout, stderr = start(TELL, "a b", env=env, starts_session=starts_session)
        assert process.wait(60) == 0, printed(stderr)
    running.kill()
    assert running.wait(60) == -signal.SIGKILL
    told, end = printed(stdout).splitlines()
    assert end == "the end"
    assert json.loads(told) == {
        "words": ["script.py", "a b"], "env": env, "folder": str(tmp_path), "given": "given",
        "beside": "beside", "main": "__main__", "session": starts_session, "files": ["0", "1", "2"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('words')", 1, "words\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import warnings; warnings.warn('a')", 1, "UserWarning: a\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt\n"),
    ],
)  # fmt: skip
def test_a_process_ends_as_an_interpreter_does(start, source, status, words):
    process, _, stderr = start(source)
    assert process.wait(60) == status
    assert process.poll() == status
    assert printed(stderr).endswith(words)


def test_a_process_can_be_waited_for_and_ended(start):
    process, _, _ = start("import signal; signal.pause()")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    process.kill()
    assert not Path(f"/proc/{process.pid}").exists()
