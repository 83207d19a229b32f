"""docker-compose.yml and the image, as docker compose and hadolint read them."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml

from tests.compose import BIN, read, seconds
from tests.deployed import ROOT

TLS = ("docker-compose.yml", "ops/docker/tls.yml")
# What a service needs after FANOUT_GRACE_S to hand back and to disconnect.
MARGIN_S = 15
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module", params=[TLS[:1], TLS], ids=["plain", "tls"])
def config(request):
    return read(*request.param)


@pytest.fixture(scope="module")
def services(config):
    return config["services"]


def test_every_service_is_confined(services):
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"] == "1000:1000", name
        assert "privileged" not in service, name
        assert "container_name" not in service, name
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= limits.keys(), name
        assert service["logging"]["options"]["max-size"], name


def test_what_stays_up_is_restarted_and_looked_after(services):
    for name, service in services.items():
        if "tools" in service.get("profiles", ()) or name == "setup":
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name


def test_images_are_pinned(services):
    for name, service in services.items():
        assert re.search(r":(v?\d+\.\d+\.\d+|server-b\d+)", service["image"]), name
    assert services["worker"]["image"] == f"fanout-llm:{PROJECT['version']}"


def test_only_pages_are_published_and_only_to_this_machine(services, config):
    ports = {(n, p["target"]) for n, s in services.items() for p in s.get("ports", ())}
    pages = {("flower", 5555), ("prometheus", 9090), ("grafana", 3000)}
    encrypted = {("redis", 6379)} if "server.key" in config["secrets"] else set()
    assert ports == pages | encrypted
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))
    assert config["networks"]["backend"]["internal"]


def test_secrets_are_files_and_each_service_has_only_its_own(services, config):
    for name, service in services.items():
        for variable, value in (service.get("environment") or {}).items():
            is_secret = re.search(r"PASSWORD|TOKEN|API_KEY|BROKER_URL", variable)
            assert not is_secret or value.startswith("/run/secrets/"), (name, variable)
        own = {secret["source"] for secret in service.get("secrets", ())}
        named = set(re.findall(r"/run/secrets/([\w.]+)", str(service))) - own
        assert named == set(), name
    assert all(s["file"].startswith(str(ROOT / "secrets")) for s in config["secrets"].values())
    urls = {n: {s["source"] for s in service.get("secrets", ()) if s["source"].endswith(".url")}
            for n, service in services.items()}  # fmt: skip
    roles = ("worker", "client", "flower", "metrics", "admin")
    held = {**{role: {f"{role}.url"} for role in roles}, "setup": {"admin.url"}}
    assert {n: u for n, u in urls.items() if u} == held


def test_the_servers_functions_are_there_before_who_calls_them(services):
    assert services["setup"]["restart"] == "on-failure"
    for name in ("worker", "flower"):
        assert (
            services[name]["depends_on"]["setup"]["condition"] == "service_completed_successfully"
        )


def test_a_worker_can_be_scaled_and_has_time_to_hand_back(services):
    worker = services["worker"]
    assert "ports" not in worker
    assert "hostname" not in worker
    grace_s = float(worker["environment"]["FANOUT_GRACE_S"])
    assert seconds(worker["stop_grace_period"]) >= grace_s + MARGIN_S


def test_what_is_mounted_is_there(services):
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            inside = volume["source"].removeprefix(f"{ROOT}/")
            if inside.startswith("ops/") and inside != "ops/grafana/dashboards":
                assert (ROOT / inside).exists(), name


def test_grafana_and_prometheus_are_provisioned():
    source = yaml.safe_load(
        (ROOT / "ops/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"][0]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    provider = yaml.safe_load(
        (ROOT / "ops/grafana/provisioning/dashboards/fanout.yml").read_text()
    )["providers"][0]
    mounts = {v["target"]: v["source"] for v in read()["services"]["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]].endswith("ops/grafana/dashboards")
    scraped = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())
    assert scraped["rule_files"] == ["alerts.yml"]
    job = scraped["scrape_configs"][0]
    assert job["static_configs"][0]["targets"] == ["metrics:9808"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_token"


DOCKERFILE = (ROOT / "ops/docker/Dockerfile").read_text()


def test_the_dockerfile_is_without_complaint():
    done = subprocess.run(
        [BIN / "hadolint", ROOT / "ops/docker/Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_no_roots_and_says_how_it_is():
    final = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert "USER 10001:10001" in final
    assert 'ENTRYPOINT ["fanout"]' in final
    assert "HEALTHCHECK" in final
    assert "pip install" not in final
    assert re.search(r"ARG PYTHON=\d+\.\d+\.\d+-slim", DOCKERFILE)


def test_the_context_of_the_build_is_what_is_copied():
    ignored = (ROOT / ".dockerignore").read_text()
    assert ignored.splitlines()[1] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for path in " ".join(copied).split():
        is_lock = path.endswith((".lock", "${REQUIREMENTS}"))
        kept = "ops/docker/requirements-*.lock" if is_lock else path
        assert f"!{kept}\n" in ignored, path


def test_there_is_a_lock_for_each_image_that_the_dockerfile_speaks_of():
    for name in re.findall(r"requirements-[a-z0-9]+\.lock", DOCKERFILE):
        assert (ROOT / "ops/docker" / name).is_file()
