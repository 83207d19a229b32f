"""What docker-compose.yml runs, run: three workers, the command line, and what watches them."""

from __future__ import annotations

import json
import urllib.request
from functools import partial

import psutil
import pytest

from fanout.cli.main import _COMMANDS
from fanout.stores import connect
from tests.compose import ComposeOnHost
from tests.integration.conftest import wait_for
from tests.needs import needs


@pytest.fixture(params=["plain", "tls"])
def fleet(request, tmp_path):
    """The services of the file, none started but the server."""
    files = ["docker-compose.yml"]
    needs("redis-cli", "openssl")
    if request.param == "tls":
        needs("redis-server")
        files.append("ops/docker/tls.yml")
    env = {"FANOUT_JOBS": str(tmp_path / "jobs")}
    (tmp_path / "jobs").mkdir()
    with ComposeOnHost(tmp_path, files=files, env=env) as fleet:
        fleet.start_and_wait("redis")
        setup = fleet.run("setup", "setup-server", "--wait", "60")
        assert setup.returncode == 0, setup.stderr
        yield fleet


def is_ready(log):
    return "ready." in log.read_text()


def page(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return reply.read().decode()


def secrets_in(fleet):
    """All passwords, tokens and keys of the deployment."""
    urls = [path.read_text() for path in fleet.secrets.glob("*.url")]
    names = ("flower_password", "grafana_password", "metrics_token", "openai_api_key")
    others = [(fleet.secrets / name).read_text().strip() for name in names]
    return [url.split(":")[2].split("@")[0] for url in urls] + others


def test_three_workers_answer_the_command_line_and_stop_within_their_grace(fleet, tmp_path):
    (fleet.secrets / "openai_api_key").write_text("sk-of-this-test\n")
    workers = [fleet.start("worker") for _ in range(3)]
    watchers = [name for name in ("metrics", "flower") if name in _COMMANDS]
    watching = {name: fleet.start(name) for name in watchers}
    texts = [json.dumps({"text": f"text {number}"}) for number in range(60)]
    (tmp_path / "jobs" / "in.jsonl").write_text("\n".join(texts))

    job = ("-m", "fake?answer=yes&latency_s=0.05", "-p", "{input}", "--reduce", "vote")
    submitted = fleet.run("client", "submit", "/jobs/in.jsonl", *job)
    assert submitted.returncode == 0, submitted.stderr
    run_id = submitted.stdout.strip()
    assert fleet.run("client", "watch", run_id).returncode == 0
    results = fleet.run("client", "results", run_id, "--out", "/jobs/out")
    assert json.loads(results.stdout)["votes"] == {"yes": 60}, results.stderr
    assert (tmp_path / "jobs" / "out" / "outputs.jsonl").exists()
    assert fleet.run("admin", "heal").returncode == 0

    for name, service in watching.items():
        wait_for(service.is_healthy, f"{name} is healthy; see {service.log}")
    if "metrics" in watching:
        token = (fleet.secrets / "metrics_token").read_text().strip()
        url = f"http://127.0.0.1:{fleet.port(9808)}/metrics"
        figures = page(url, Authorization=f"Bearer {token}")
        assert "fanout_up 1.0" in figures
    if "probe" in _COMMANDS:
        wait_for(workers[0].is_healthy, "the worker's health check passes")
    hidden = secrets_in(fleet)
    for service in (*workers, *watching.values()):
        process = psutil.Process(service.process.pid)
        seen = " ".join([*process.environ().values(), *process.cmdline()])
        assert [secret for secret in hidden if secret in seen] == [], service.name
    with connect(fleet.url_of("admin"), ca_file=fleet.ca_file) as admin:
        assert admin.acl_log() == []
    for worker in workers:
        # The others may have done all while one was still starting.
        wait_for(partial(is_ready, worker.log), f"{worker.name} is ready")
    assert [worker.stop() for worker in workers] == [0, 0, 0]
    assert [service.stop() for service in watching.values()] == [0] * len(watching)
    assert "" not in hidden
    for worker in workers:
        log = worker.log.read_text()
        assert "insecure" not in log
        assert "Traceback" not in log
