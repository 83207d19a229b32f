"""What ships, run in environments that have nothing but what its locks say."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port

from fanout.core.settings import load_settings
from fanout.llm.assets import WEIGHTS, fetch
from tests.collector import Collector
from tests.integration.conftest import BUCKET, s3, s3_url, wait_for  # noqa: F401 - fixtures
from tests.lean import ROOT, base, with_extra

# Of all warnings only Celery's is expected, which tests that run as root are shown.
WARNINGS = {"PYTHONWARNINGS": "error,ignore:You're running the worker"}
LOGIN = {"FANOUT_FLOWER_USER": "ann", "FANOUT_FLOWER_PASSWORD": "s3same,open"}
JOB = ("x.jsonl", "--model", "fake", "--prompt", "{input}")
IMPORT_ALL = """
import importlib, pkgutil, sys
import fanout, workers
skipped = set(sys.argv[1:])
for package in (fanout, workers):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name not in skipped and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""
OF_EXTRAS = ("fanout.llm.local_server", "workers.telemetry.spans")


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that the processes of the tests have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


@pytest.fixture
def lean(shared):
    return base(shared)


@pytest.fixture(autouse=True)
def job(here):
    (here / "x.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')


def run(lean, *words, **env):
    done = subprocess.run(
        [lean.fanout, *words], env=lean.environment(**{**WARNINGS, **env}),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def status_of(lean, *words):
    command = [lean.fanout, *words]
    return subprocess.run(command, env=lean.environment(**WARNINGS), check=False).returncode


@contextmanager
def started(lean, here, *words, **env):
    log = Path(here) / f"{words[0]}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [lean.fanout, *words], env=lean.environment(**{**WARNINGS, **env}),
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        yield process, log
    finally:
        process.terminate()
        process.wait(120)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=120) as reply:
            return reply.read().decode()
    except OSError:
        return ""


@pytest.mark.timeout(600)
def test_a_run_needs_nothing_but_the_runtime_lock(lean):
    rows = [json.loads(line) for line in run(lean, "run", *JOB).splitlines()]
    assert [row["output"][:11] for row in rows] == ["fake answer"] * 2


@pytest.mark.timeout(600)
def test_all_modules_can_be_imported_and_the_environment_is_whole(lean):
    command = [lean.python, "-W", "error", "-c", IMPORT_ALL, *OF_EXTRAS]
    done = subprocess.run(
        command, env=lean.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for tool in ("pytest", "moto", "mypy", "ruff", "openai"):
        assert not (lean.packages / tool).exists()


@pytest.mark.timeout(600)  # it installs all that a fleet needs
def test_a_fleet_needs_nothing_but_the_runtime_lock(lean, here, broker_url, monkeypatch):
    """A worker, a client that submits, everything that looks at them, and Flower."""
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    port, metrics = free_port(), free_port()
    with (
        started(lean, here, "worker", "--concurrency", "4") as (worker, log),
        started(lean, here, "flower", "--port", str(port), **LOGIN) as (_flower, flower_log),
        started(lean, here, "metrics", "--port", str(metrics)),
    ):
        run_id = run(lean, "submit", *JOB).strip()
        run(lean, "watch", run_id)
        assert len(run(lean, "results", run_id).splitlines()) == 2, log.read_text()
        for words in (["runs"], ["workers"], ["heal"]):
            run(lean, *words)
        # The record of a worker says only some seconds after its start that it takes messages.
        wait_for(lambda: status_of(lean, "probe") == 0, f"the worker takes messages; see {log}")
        run(lean, "report", run_id, "--out", "page.html")
        assert "fake" in (here / "page.html").read_text()
        url = f"http://127.0.0.1:{port}/healthcheck"
        wait_for(lambda: answers(url) == "OK", f"Flower answers; its log is {flower_log}")
        url = f"http://127.0.0.1:{metrics}/metrics"
        wait_for(lambda: "fanout_" in answers(url), "there are metrics")
        assert worker.poll() is None


def local(lean, here, _request):
    # The weights are no part of a lock; each test of the local model has its own server.
    weights = fetch(WEIGHTS, load_settings().cache_dir / "models")
    cache = here / "cache"
    (cache / "models").mkdir(parents=True)
    (cache / "models" / weights.name).symlink_to(weights)
    env = {"FANOUT_CACHE_DIR": str(cache)}
    job = ("x.jsonl", "--model", "local", "--prompt", "Is {input} a number? One word.")
    return run(lean, "run", *job, **env).splitlines()


def s3_storage(lean, _here, request):
    request.getfixturevalue("s3")
    return run(lean, "run", *JOB, FANOUT_STORAGE=f"s3://{BUCKET}/lean").splitlines()


def traces(lean, _here, _request):
    collector = Collector()
    try:
        run(lean, "run", *JOB, **collector.env)
        return collector.named("fanout.branch")
    finally:
        collector.close()


# Not litellm, which alone takes as long to install and load as all the others.
@pytest.mark.parametrize(
    ("name", "lock", "use"),
    [
        ("local", "requirements-demo.lock", local),
        ("s3", "ops/docker/requirements-s3.lock", s3_storage),
        ("otel", "ops/docker/requirements-otel.lock", traces),
    ],
    ids=["local", "s3", "otel"],
)
@pytest.mark.timeout(600)  # it may be the first to install all that a fleet needs
def test_an_extra_needs_nothing_but_its_lock(name, lock, use, shared, here, request):
    seen = use(with_extra(shared, ROOT / lock, name), here, request)
    assert len(seen) == 2, "one for each of two documents"
