"""ops/kubernetes and ops/systemd, as kubectl and systemd read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from fanout.broker.app import BRANCHES_QUEUE as QUEUE
from tests.compose import read, seconds
from tests.deployed import ROOT, make_secrets
from tests.needs import needs

OVERLAY = "ops/kubernetes/overlays/example"
VERSIONS = ("1.28", "1.37")
# Kinds that operators bring; their fields are looked at below.
FOREIGN = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor"}
NAME = "app.kubernetes.io/name"


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """What would be applied, by kind and name."""
    needs("kubectl")
    folder = tmp_path_factory.mktemp("kubernetes")
    for part in ("kubernetes", "redis"):
        shutil.copytree(ROOT / "ops" / part, folder / "ops" / part)
    make_secrets(folder / OVERLAY, "--broker", "redis:6379")
    command = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone"]
    done = subprocess.run(
        [*command, str(folder / OVERLAY)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}


def of_kind(objects, *kinds):
    return {name: one for (kind, name), one in objects.items() if kind in kinds}


def pods(objects):
    workloads = of_kind(objects, "Deployment", "StatefulSet", "Job")
    return {name: one["spec"]["template"] for name, one in workloads.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_kubernetes_knows_is_valid(objects, version):
    for (kind, name), one in objects.items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(one, version, strict=True)
        assert one["metadata"].get("namespace", "fanout") == "fanout", name


def test_every_file_is_part_of_it():
    for folder in (ROOT / "ops/kubernetes/base", ROOT / OVERLAY):
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = {*listed["resources"], *listed.get("configurations", ()), "kustomization.yaml"}
        assert {path.name for path in folder.glob("*.yaml")} == {
            name for name in named if name.endswith(".yaml")
        }


def test_pods_are_confined(objects):
    assert len(pods(objects)) == 5
    for name, pod in pods(objects).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["automountServiceAccountToken"] is False, name
        # Services of this name would make FANOUT_* and REDIS_* variables that mean something else.
        assert spec["enableServiceLinks"] is False, name
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in container["resources"]["limits"], name
        assert "livenessProbe" in container or name == "setup", name
        assert re.search(r":\d+\.\d+\.\d+", container["image"]), name


def test_names_labels_and_ports_fit_together(objects):
    by_name = pods(objects)
    for name, pod in by_name.items():
        assert pod["metadata"]["labels"][NAME] == name
    for name, service in of_kind(objects, "Service").items():
        ports = {port["name"] for port in by_name[name]["spec"]["containers"][0]["ports"]}
        assert service["spec"]["selector"] == {NAME: name}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for name, budget in of_kind(objects, "PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"] == {NAME: name}
    selected = re.findall(
        rf"{NAME}: (\w+)", yaml.safe_dump(list(of_kind(objects, "NetworkPolicy").values()))
    )
    assert set(selected) <= by_name.keys()


def test_secrets_are_named_and_hold_what_is_mounted(objects):
    secrets = of_kind(objects, "Secret")
    for name, pod in pods(objects).items():
        for volume in pod["spec"]["volumes"]:
            if "secret" not in volume:
                continue
            held = secrets[volume["secret"]["secretName"]]["data"]
            keys = {item["key"] for item in volume["secret"]["items"]}
            assert keys <= held.keys(), name
            own = {"redis": set(), "setup": {"admin.url"}}.get(name, {f"{name}.url"})
            assert {key for key in keys if key.endswith(".url")} == own
        for variable in pod["spec"]["containers"][0].get("env", ()):
            path = variable["value"]
            if path.startswith("/run/secrets/"):
                assert path.removeprefix("/run/secrets/fanout/") in keys
    token = of_kind(objects, "ServiceMonitor")["metrics"]["spec"]["endpoints"][0]["authorization"]
    assert token["credentials"]["key"] in secrets[token["credentials"]["name"]]["data"]


def test_the_queues_length_scales_the_workers(objects):
    [scaled] = of_kind(objects, "ScaledObject").values()
    spec = scaled["spec"]
    assert ("Deployment", spec["scaleTargetRef"]["name"]) in objects
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    [trigger] = spec["triggers"]
    assert trigger["type"] == "metrics-api"
    asked = trigger["metadata"]
    # KEDA takes strings only.
    assert all(isinstance(value, str) for value in asked.values())
    assert (asked["format"], asked["authMode"]) == ("prometheus", "bearer")
    url = urlsplit(asked["url"])
    service = objects["Service", url.hostname.split(".")[0]]
    assert url.port == service["spec"]["ports"][0]["port"]
    assert url.hostname.split(".")[1] == "fanout"
    login = objects["TriggerAuthentication", trigger["authenticationRef"]["name"]]
    [reference] = login["spec"]["secretTargetRef"]
    assert reference["key"] in objects["Secret", reference["name"]]["data"]
    assert reference["parameter"] == "token"
    assert asked["valueLocation"] == f'fanout_queue_messages{{queue="{QUEUE}"}}'


def test_the_worker_has_as_long_to_stop_as_under_compose(objects):
    spec = pods(objects)["worker"]["spec"]
    compose = read()["services"]["worker"]
    env = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert env["FANOUT_GRACE_S"] == compose["environment"]["FANOUT_GRACE_S"]
    assert spec["terminationGracePeriodSeconds"] == seconds(compose["stop_grace_period"])
    unit = (ROOT / "ops/systemd/fanout-worker.service").read_text()
    assert f"FANOUT_GRACE_S={env['FANOUT_GRACE_S']}\n" in unit
    assert f"TimeoutStopSec={spec['terminationGracePeriodSeconds']}\n" in unit


def test_images_and_commands_are_those_of_compose(objects):
    services = read()["services"]
    for name, pod in pods(objects).items():
        [container] = pod["spec"]["containers"]
        mine, theirs = container["image"].rsplit("/", 1)[-1], services[name]["image"]
        assert mine == theirs.rsplit("/", 1)[-1]
        if name != "redis":
            assert container["args"] == services[name]["command"]


def test_systemd_takes_the_units(tmp_path):
    needs("systemd-analyze")
    for unit in (ROOT / "ops/systemd").glob("*.service"):
        # Programs need not be where they will be.
        text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 5
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
