"""What an operator deploys to watch a fleet: alert rules and the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import redis
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from fanout.core.fleet_records import WorkerRecord
from fanout.observe.metrics import FleetCollector
from fanout.stores import RedisStore
from tests.needs import needs

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "ops" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "ops" / "grafana" / "dashboards" / "fanout.json"


def rules():
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]


def panels():
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def promtool(*arguments):
    needs("promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_on_what_they_are_for():
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(ALERTS.with_name("alerts_test.yml")))


def test_each_alert_is_tested_and_says_what_to_do():
    tests = ALERTS.with_name("alerts_test.yml").read_text()
    for rule in rules():
        assert rule["alert"] in tests
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert len(rule["annotations"]["description"]) > 60
        assert rule["annotations"]["summary"]


def test_each_expression_of_the_dashboard_can_be_parsed(tmp_path):
    # Grafana puts these in; a rule is what promtool parses.
    rule = [
        {"record": f"panel:{n}", "expr": text.replace("$__rate_interval", "5m")}
        for n, text in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rule}]}))
    promtool("check", "rules", str(path))


@pytest.fixture
def exported(broker_url):
    """The series that the exporter has, of a fleet at work."""
    with redis.Redis.from_url(broker_url) as client:
        store = RedisStore(client)
        store.worker_alive(WorkerRecord(name="w", concurrency=2), ttl_s=60)
        registry = CollectorRegistry()
        registry.register(FleetCollector(store, client))
        text = generate_latest(registry).decode()
    return {line.partition(" ")[0].partition("{")[0] for line in text.splitlines()}


def test_only_series_that_are_exported_are_asked_for(exported):
    asked = {
        name
        for text in [*expressions(), *(rule["expr"] for rule in rules())]
        for name in re.findall(r"\bfanout_\w+", text)
    }
    assert len(asked) > 20
    assert asked <= exported


def test_the_dashboard_works_with_any_data_source():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] is None
    sources = {json.dumps(panel["datasource"]) for panel in panels()}
    sources |= {json.dumps(t["datasource"]) for panel in panels() for t in panel["targets"]}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    assert {v["name"] for v in dashboard["templating"]["list"]} == {"datasource", "job"}


def test_the_panels_of_the_dashboard_do_not_overlap():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
