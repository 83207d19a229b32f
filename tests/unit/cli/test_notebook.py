"""The progress of a run in a notebook: a frame that is replaced, without widgets."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fanout.cli.progress import Progress, RunnerProgress
from fanout.core.records import RunStatus, Usage
from fanout.runs.status import StageStatus, Status
from fanout.system.terminal import notebook_shell


class Shell:
    """The shell of a kernel, as far as it shows something."""

    kernel = "a kernel"

    def __init__(self):
        self.shown = []
        self.display_pub = self

    def publish(self, data, metadata, *, transient, update):
        assert metadata == {}
        self.shown.append((data, transient["display_id"], update))


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    return shell


def status(done, *, has_ended=False):
    stages = (StageStatus(stage=0, total=9, succeeded=done, failed=0, done=done),)
    return Status(
        run_id="<b>r", status=RunStatus.SUCCEEDED if has_ended else RunStatus.RUNNING, total=9,
        done=done, succeeded=done, failed=0, errors={}, usage=Usage(calls=done), created_at=0.0,
        elapsed_s=1.0, stage=0, error=None, workers=1, stages=stages,
    )  # fmt: skip


def test_a_bar_is_replaced_in_its_cell_and_ends_as_a_summary(shell):
    progress = RunnerProgress(is_embedded=True)
    progress(status(3))
    progress(status(9, has_ended=True))
    progress.close()
    (first, name, is_update), *_, (last, last_name, _) = shell.shown
    assert (is_update, last_name) == (False, name)
    assert all(is_update for *_, is_update in shell.shown[1:])
    assert "3/9" in first["text/plain"]
    assert "━" in first["text/html"]
    assert "run <b>r succeeded: 9 of 9 branches" in last["text/plain"]
    assert "<b>" not in last["text/html"]
    assert "━" not in last["text/plain"]


def test_a_shell_without_a_kernel_is_a_terminal(shell, monkeypatch):
    assert notebook_shell() is shell
    monkeypatch.delattr(Shell, "kernel")
    assert notebook_shell() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook_shell() is None


def test_a_stream_that_the_caller_names_is_no_notebook(shell, capsys):
    Progress(sys.stderr).show(status(3))
    assert shell.shown == []
    assert "running 3/9" in capsys.readouterr().err
