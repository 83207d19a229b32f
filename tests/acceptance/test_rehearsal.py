"""A fleet as it is deployed, on a run as it is used, and whether all that shows it agree.

A real Redis with the shipped configuration, users and TLS; three workers on hosts of their own, as
docker-compose.yml starts them; Flower, the exporter and Prometheus beside them; and a client on yet
another host. ``REHEARSAL_BRANCHES=20000`` is the rehearsal in earnest, and
``SCREENSHOTS_TO=FOLDER`` takes pictures of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.parse
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from hosts import Hosts, why_not

from tests.browser import Browser
from tests.compose import ComposeOnHost
from tests.integration.conftest import wait_for
from tests.needs import needs, skip_or_fail

BRANCHES = int(os.environ.get("REHEARSAL_BRANCHES", "1500"))
PICTURES = os.environ.get("SCREENSHOTS_TO")
MODEL = "fake?fail_rate=0.05&fail_kind=content_filter,timeout&latency_s=0.05&jitter_s=0.1"
WORKERS = ("worker-1", "worker-2", "worker-3")


@pytest.fixture
def hosts():
    reason = why_not()
    if reason is not None:
        skip_or_fail(reason)
    with Hosts() as hosts:
        for name in ("client", *WORKERS):
            hosts.add(name)
        yield hosts


@pytest.fixture
def fleet(tmp_path, hosts):
    needs("redis-server", "redis-cli", "openssl", "prometheus")
    (tmp_path / "jobs").mkdir()
    rows = (json.dumps({"text": f"document number {n}"}) for n in range(BRANCHES))
    (tmp_path / "jobs" / "in.jsonl").write_text("\n".join(rows))
    files = ["docker-compose.yml", "ops/docker/tls.yml"]
    env = {"FANOUT_JOBS": str(tmp_path / "jobs")}
    with ComposeOnHost(tmp_path, hosts=hosts, files=files, env=env) as fleet:
        fleet.start_and_wait("redis")
        setup = fleet.run("setup", "setup-server", "--wait", "60")
        assert setup.returncode == 0, setup.stderr
        for name in WORKERS:
            fleet.start("worker", on=hosts[name])
        for name in ("flower", "metrics", "prometheus"):
            fleet.start_and_wait(name)
        yield fleet


def fetch(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as reply:
        return reply.read().decode()


class Shown:
    """What each of those who watch says how many branches have ended, by outcome."""

    def __init__(self, fleet):
        self._fleet = fleet
        self.token = (fleet.secrets / "metrics_token").read_text().strip()
        password = (fleet.secrets / "flower_password").read_text().strip()
        self.login = f"fanout:{password}"

    def url(self, port, path=""):
        return f"http://127.0.0.1:{self._fleet.port(port)}{path}"

    def by_exporter(self):
        text = fetch(self.url(9808, "/metrics"), Authorization=f"Bearer {self.token}")
        found = re.findall(
            r'^fanout_branches_ended_total\{outcome="(\w+)"\} (\S+)$', text, re.MULTILINE
        )
        return {outcome: int(float(count)) for outcome, count in found if float(count)}

    def by_prometheus(self):
        query = urllib.parse.urlencode({"query": "fanout_branches_ended_total > 0"})
        answer = json.loads(fetch(self.url(9090, f"/api/v1/query?{query}")))
        rows = answer["data"]["result"]
        return {row["metric"]["outcome"]: int(row["value"][1]) for row in rows}

    def by_flower(self):
        """Flower knows two outcomes."""
        authorization = f"Basic {b64encode(self.login.encode()).decode()}"
        text = fetch(self.url(5555, "/metrics"), Authorization=authorization)
        pattern = (
            r'flower_events_total\{task="fanout.branch",type="task-(\w+)",worker="[^"]*"\} (\S+)'
        )
        counts = {"succeeded": 0, "failed": 0}
        for kind, count in re.findall(pattern, text):
            if kind in counts:
                counts[kind] += int(float(count))
        return counts


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(600)
def test_all_who_watch_a_fleet_agree_with_the_result_to_the_last_branch(fleet, hosts, tmp_path):
    def client(*arguments):
        done = fleet.run("client", *arguments, on=hosts["client"])
        assert done.returncode == 0, done.stderr
        return done

    options = ("-m", MODEL, "-p", "{input}", "--reduce", "vote", "--max-attempts", "1")
    run_id = client("submit", "/jobs/in.jsonl", *options).stdout.strip()
    watched = [json.loads(line) for line in client("watch", run_id, "--json").stdout.splitlines()]
    client("results", run_id, "--out", "/jobs/out")
    outputs = rows(tmp_path / "jobs" / "out" / "outputs.jsonl")
    errors = rows(tmp_path / "jobs" / "out" / "errors.jsonl")
    assert sorted(row["index"] for row in [*outputs, *errors]) == list(range(BRANCHES))
    ended = {"succeeded": len(outputs)}
    for row in errors:
        ended[row["kind"]] = ended.get(row["kind"], 0) + 1
    assert len(ended) == 3

    last = watched[-1]
    assert {"succeeded": last["succeeded"], **last["errors"]} == ended
    assert (last["done"], last["usage"]["calls"]) == (BRANCHES, BRANCHES)
    shown = Shown(fleet)
    assert shown.by_exporter() == ended
    wait_for(lambda: shown.by_prometheus() == ended, "Prometheus has scraped the end")
    two = {"succeeded": len(outputs), "failed": len(errors)}
    wait_for(lambda: shown.by_flower() == two, "Flower has heard of the last branch")
    wait_for(
        lambda: sum(worker["processed"] for worker in _workers(client)) == BRANCHES,
        "the workers say what they have done",
    )
    workers = _workers(client)
    assert sorted(worker["host"] for worker in workers) == list(WORKERS)
    assert all(worker["processed"] > 0 for worker in workers)
    assert _acl_log(fleet) == ""
    if PICTURES:
        _take_pictures(shown, run_id, Path(PICTURES), tmp_path)


def _acl_log(fleet):
    """What the server has refused to anybody."""
    url = urllib.parse.urlsplit(fleet.url_of("admin"))
    where = ["-h", url.hostname, "-p", str(url.port), "--tls", "--cacert", str(fleet.ca_file)]
    done = subprocess.run(
        ["redis-cli", *where, "--user", url.username, "ACL", "LOG"],
        env={**os.environ, "REDISCLI_AUTH": url.password},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def _workers(client):
    return json.loads(client("workers", "--json").stdout)["workers"]


def _take_pictures(shown, run_id, folder, tmp_path):
    needs("chromium", "chromedriver")
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "browser").mkdir()
    with Browser(tmp_path / "browser", width=1400, height=860) as browser:
        root = shown.url(5555).replace("http://", f"http://{shown.login}@")
        browser.open(f"{root}/workers")
        browser.wait_for("worker-3")
        browser.screenshot(folder / "rehearsal-flower.png")
        expression = urllib.parse.quote("sum by (outcome) (fanout_branches_ended_total) > 0")
        browser.open(shown.url(9090, f"/graph?g0.expr={expression}&g0.tab=1"))
        browser.wait_for("content_filter")
        browser.screenshot(folder / "rehearsal-prometheus.png")
