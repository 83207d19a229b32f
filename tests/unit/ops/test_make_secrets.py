"""ops/make-secrets: what it makes, and that it can be run again."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess

import pytest

from tests.deployed import ROOT, make_secrets

SCRIPT = str(ROOT / "ops" / "make-secrets")
ROLES = ("worker", "client", "flower", "metrics", "admin")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def password(secrets, role):
    return (secrets / f"{role}.url").read_text().split(":")[2].split("@")[0]


def test_each_user_has_a_password_of_its_own_and_the_server_only_its_hash(tmp_path):
    secrets = make_secrets(tmp_path, "--broker", "queue.example:6380/3", "--prefix", "team.a")
    acl = (secrets / "users.acl").read_text()
    passwords = {role: password(secrets, role) for role in ROLES}
    assert len(set(passwords.values())) == len(ROLES)
    lines = {line.split()[1]: line for line in acl.splitlines()}
    assert lines.keys() == {*ROLES, "default", "probe"}
    for role, secret in passwords.items():
        assert secret not in acl
        assert f"#{hashlib.sha256(secret.encode()).hexdigest()} " in lines[role]
        url = f"redis://{role}:{secret}@queue.example:6380/3\n"
        assert (secrets / f"{role}.url").read_text() == url
    assert "~team.a:*" in lines["worker"]
    # A loop without an end would stop the server.
    assert not [line for line in lines.values() if "+eval" in line or "+script" in line]
    assert "&/3.celeryev/*" in lines["flower"]
    assert "{" not in acl


def test_only_the_owner_can_read_any_of_it(tmp_path):
    secrets = make_secrets(tmp_path, "--tls")
    for path in (secrets, *secrets.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_what_is_there_is_kept_and_so_are_the_options(tmp_path):
    secrets = make_secrets(tmp_path, "--tls", "--host", "10.1.2.3", "--broker", "queue:1/2")
    (secrets / "openai_api_key").write_text("sk-mine\n")
    before = contents(secrets)
    assert contents(make_secrets(tmp_path)) == before
    assert before["worker.url"].startswith(b"rediss://worker:")
    plain = contents(make_secrets(tmp_path, "--no-tls"))
    assert plain["users.acl"] == before["users.acl"]
    assert plain["worker.url"] == before["worker.url"].replace(b"rediss:", b"redis:")


def test_a_password_whose_file_is_removed_is_changed_and_no_other(tmp_path):
    secrets = make_secrets(tmp_path)
    before = {role: password(secrets, role) for role in ROLES}
    (secrets / "worker.url").unlink()
    make_secrets(tmp_path)
    after = {role: password(secrets, role) for role in ROLES}
    assert {role for role in ROLES if before[role] != after[role]} == {"worker"}


def test_the_certificate_is_made_again_for_a_further_name_by_the_same_ca(tmp_path):
    secrets = make_secrets(tmp_path, "--tls")
    before = contents(secrets)
    make_secrets(tmp_path, "--host", "queue.example", "--host", "10.9.8.7")
    assert (secrets / "ca.crt").read_bytes() == before["ca.crt"]
    command = ["openssl", "x509", "-noout", "-text", "-in", str(secrets / "server.crt")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("DNS:redis", "DNS:localhost", "DNS:queue.example", "IP Address:10.9.8.7"):
        assert name in text
    verify = ["openssl", "verify", "-CAfile", secrets / "ca.crt", secrets / "server.crt"]
    subprocess.run(verify, capture_output=True, check=True)


def test_docker_compose_is_told_who_owns_the_files(tmp_path):
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / ".env").write_text("FANOUT_CONCURRENCY=64\nFANOUT_UID=7\n")
    secrets = make_secrets(tmp_path, "--tls")
    lines = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    assert lines["FANOUT_CONCURRENCY"] == "64"
    assert lines["COMPOSE_FILE"] == "docker-compose.yml:ops/docker/tls.yml"
    owner = (secrets / "worker.url").stat().st_uid
    assert lines["FANOUT_UID"] == str(owner)
    assert (tmp_path / "data" / "redis").stat().st_uid == owner
    make_secrets(tmp_path, "--no-tls")
    assert "COMPOSE_FILE" not in (tmp_path / ".env").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--prefix", "a b"],
        ["--broker", "x@y"],
        ["--broker", "x/y"],
        ["--host", "a,b"],
        ["--host", "a"],
        ["--dir"],
        ["--what"],
    ],
)
def test_wrong_usage_is_said_and_nothing_is_made(tmp_path, options):
    done = subprocess.run(
        [SCRIPT, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("make-secrets: ")
    assert list(tmp_path.iterdir()) == []
