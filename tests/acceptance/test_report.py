"""``fanout report``, as a user runs it."""

from __future__ import annotations

import json

import pytest

from fanout import Client
from fanout.report import write
from tests.integration.conftest import wait_for
from tests.unit.report.test_report import Reader


@pytest.fixture
def run(here, broker_url, start_worker, monkeypatch):
    """A run that has ended: 40 branches, of which some failed."""
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    job = {
        "model": "fake?fail_rate=0.3&answer=yes", "prompt": "Is it good? {input}",
        "reduce": "vote", "retries": {"max_attempts": 1},
    }  # fmt: skip
    start_worker()
    with Client(broker_url) as client:
        run = client.submit(job, (f"text {i}" for i in range(40)))
        run.wait(timeout_s=120)
        yield run


def test_a_run_is_one_page_with_its_figures(run, fanout, here):
    status = run.status()
    assert 0 < status.failed < 40
    done = fanout("report", run.run_id)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == f"fanout-{run.run_id}.html\n"
    source = (here / f"fanout-{run.run_id}.html").read_text(encoding="utf-8")
    text = Reader(source).text
    assert f"{status.succeeded} of 40 branches" in text
    assert f"yes won with 100% of the {status.succeeded} votes" in text
    assert f"Failed {status.failed} server_error {status.failed}" in text
    assert "Is it good? {input}" in text

    # It is replaced, or goes to where it is told to go; nothing else is left behind.
    (here / "old.html").write_text("old")
    assert fanout("report", run.run_id, "--out", "old.html").stdout == "old.html\n"
    assert Reader((here / "old.html").read_text()).text.startswith(f"Run {run.run_id}: succeeded")
    assert Reader(fanout("report", run.run_id, "--out", "-").stdout).text
    assert sorted(path.name for path in here.iterdir()) == sorted(
        [f"fanout-{run.run_id}.html", "old.html"]
    )
    # The library gives the same page, but for the moment at which it was made.
    made = text.partition("Made by")[0]
    assert Reader(run.report()).text.partition("Made by")[0] == made
    write(run, here / "old.html")
    assert Reader((here / "old.html").read_text()).text.partition("Made by")[0] == made


def test_the_figures_are_one_json_object(run, fanout, here):
    done = fanout("report", run.run_id, "--json")
    record = json.loads(done.stdout)
    status = run.status()
    figures = record["figures"]
    assert record["run_id"] == run.run_id
    assert (figures["succeeded"], figures["failed"]) == (status.succeeded, status.failed)
    assert [row["count"] for row in figures["errors"]] == [status.failed]
    assert sum(one["succeeded"] for one in figures["over_time"]["slices"]) == status.succeeded
    assert figures["durations"]["count"] == 40
    assert list(here.iterdir()) == []


def test_wrong_use_is_one_line_and_leaves_no_file(run, fanout, here):
    (here / "folder").mkdir()
    wrong = [
        (("--out", "no/x.html"), "cannot write to --out no/x.html: No such file or directory"),
        (("--out", "folder"), "is a directory"),
        (("--out", "x.html", "--json"), "leave --out out"),
    ]  # fmt: skip
    for options, said in wrong:
        done = fanout("report", run.run_id, *options)
        assert (done.status, done.stdout) == (2, "")
        assert said in done.stderr
    done = fanout("report", "nosuchrun")
    assert (done.status, done.stderr) == (
        1, "fanout: no run 'nosuchrun' is known to this broker (it may have expired)\n",
    )  # fmt: skip
    assert [path.name for path in here.iterdir()] == ["folder"]


def test_a_run_that_goes_on_has_a_page_that_says_so(fanout, broker_url, start_worker, monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    start_worker()
    with Client(broker_url) as client:
        job = {"model": "fake?latency_s=2", "prompt": "{input}"}
        run = client.submit(job, (f"text {i}" for i in range(500)))
        wait_for(lambda: run.status().done > 0, "a branch has ended")
        text = Reader(fanout("report", run.run_id, "--out", "-").stdout).text
        run.cancel()
        run.wait(timeout_s=120)
    assert "So far, " in text
    assert "of 500 branches" in text
    assert "The run still goes on" in text
