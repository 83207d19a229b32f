from __future__ import annotations

import os
import re
import ssl
from pathlib import Path

import pytest

from fanout.broker.app import make_app
from fanout.core.errors import SettingsError
from fanout.core.settings import Settings, _check_names, load_settings, parse_autoscale


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", "redis://queue:6379/0")
    monkeypatch.setenv("FANOUT_RUN_TTL_S", "3600")
    settings = load_settings()
    assert (settings.broker_url, settings.run_ttl_s) == ("redis://queue:6379/0", 3600)


def test_an_override_wins_and_none_does_not(monkeypatch):
    monkeypatch.setenv("FANOUT_MODEL", "local")
    assert load_settings(model="fake").model == "fake"
    assert load_settings(model=None).model == "local"


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", "")
    assert load_settings().broker_url is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FANOUT_CONCURRENCY", "many", ["FANOUT_CONCURRENCY", "'many'"]),
        ("FANOUT_CONCURRENCY", "0", ["FANOUT_CONCURRENCY", "must be 1 or more", "'0'"]),
        ("FANOUT_QUEUES", "typo", ["FANOUT_QUEUES", "control, branches", "'typo'"]),
        ("FANOUT_WORKER_NAME", "a@b@c", ["FANOUT_WORKER_NAME", "at most one @", "'a@b@c'"]),
        ("FANOUT_AUTOSCALE", "8,2", ["FANOUT_AUTOSCALE", "prefork pool only", "--concurrency"]),
        ("FANOUT_STORAGE", "shared/x", ["FANOUT_STORAGE", "absolute path", "'shared/x'"]),
        (
            "FANOUT_STORAGE",
            "s3://me:hunter2@b/x",
            ["FANOUT_STORAGE", "not contain a password", "[key]"],
        ),
        ("FANOUT_STORAGE", "/", ["FANOUT_STORAGE", "a folder other than /"]),
        ("FANOUT_STORAGE", "s3://", ["FANOUT_STORAGE", "s3://bucket/prefix"]),
        ("FANOUT_STORAGE", "/a folder", ["FANOUT_STORAGE", "not contain spaces"]),
        ("FANOUT_BROKER_URL", "amqp://x", ["FANOUT_BROKER_URL", "redis://", "rediss://"]),
    ],
)
def test_a_wrong_variable_names_itself_and_what_is_allowed(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given", "storage"),
    [
        ("/mnt/shared/", "/mnt/shared"),
        ("file:///mnt/shared", "file:///mnt/shared"),
        ("s3://bucket", "s3://bucket"),
        ("sftp://me@host/folder/", "sftp://me@host/folder"),
    ],
)
def test_a_storage_is_a_folder_or_a_url(given, storage):
    assert load_settings(storage=given).storage == storage


def test_a_wrong_broker_url_is_not_quoted_as_it_may_hold_a_password(monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", "amqp://me:hunter2@x")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["2,8", "8", "8,0", "8,-1", "8,2,1", "a,b", "", "20000,1"])
def test_a_wrong_autoscale_says_what_is_allowed(monkeypatch, text):
    with pytest.raises(ValueError, match="MAX,MIN with 10000 >= MAX >= MIN >= 1"):
        parse_autoscale(text)


def test_a_prefork_pool_may_scale(monkeypatch):
    monkeypatch.setenv("FANOUT_AUTOSCALE", " 8, 2")
    assert load_settings(pool="prefork").autoscale == "8,2"
    assert parse_autoscale("8,2") == (8, 2)


def test_the_broker_url_comes_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "url").write_text("redis://me:secret@queue:6379/0\n")
    monkeypatch.setenv("FANOUT_BROKER_URL_FILE", str(tmp_path / "url"))
    assert load_settings().broker_url == "redis://me:secret@queue:6379/0"
    # An argument wins over the environment.
    assert load_settings(broker_url="redis://other").broker_url == "redis://other"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "FANOUT_BROKER_URL_FILE: cannot be read: No such file"),
        ("", "FANOUT_BROKER_URL_FILE: must hold one line"),
        ("redis://a\nredis://hunter2", "FANOUT_BROKER_URL_FILE: must hold one line"),
        ("amqp://me:hunter2@x", "FANOUT_BROKER_URL: must start with one of"),
    ],
)
def test_a_wrong_file_is_named_and_not_quoted(monkeypatch, tmp_path, content, words):
    if content is not None:
        (tmp_path / "url").write_text(content)
    monkeypatch.setenv("FANOUT_BROKER_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_two_places_for_the_broker_url_are_one_too_many(monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", "redis://me:hunter2@x")
    monkeypatch.setenv("FANOUT_BROKER_URL_FILE", "/dev/null")
    with pytest.raises(
        SettingsError, match="FANOUT_BROKER_URL_FILE: FANOUT_BROKER_URL is set, too"
    ):
        load_settings()


@pytest.mark.parametrize(
    ("url", "file", "words"),
    [
        ("redis://x", "ca", "has no effect"),
        ("sentinel://x/0?master=m", "ca", "has no effect"),
        (None, "ca", "has no effect"),
        ("rediss://x", "none", "cannot be used: No such file"),
        ("rediss://x", "ca", "cannot be used: it holds no certificate"),
    ],
)
def test_a_ca_file_that_would_do_nothing_is_refused(monkeypatch, tmp_path, url, file, words):
    (tmp_path / "ca").write_text("not a certificate")
    monkeypatch.setenv("FANOUT_BROKER_CA_FILE", str(tmp_path / file))
    if url is not None:
        monkeypatch.setenv("FANOUT_BROKER_URL", url)
    with pytest.raises(SettingsError, match=f"FANOUT_BROKER_CA_FILE: {words}"):
        load_settings()


def test_a_url_that_is_given_need_not_fit_the_ca_of_the_environment(monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_CA_FILE", "/nowhere")
    assert load_settings(broker_url="redis://127.0.0.1").broker_ca_file is None


def test_tls_is_verified_by_all_who_connect(monkeypatch):
    app = make_app(load_settings(broker_url="rediss://queue:6379/0"))
    assert app.conf.broker_use_ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert app.conf.redis_backend_use_ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert app.backend.connparams["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    plain = make_app(load_settings(broker_url="redis://queue:6379/0"))
    assert not plain.conf.broker_use_ssl


# Names.

REPOSITORY = Path(__file__).parents[3]


def variables_of_the_repository():
    for folder in ("fanout", "workers", "ops", "docs", "examples", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                text = path.read_bytes().decode("utf-8", "replace")
                yield from re.findall(r"\bFANOUT_[A-Z_]+[A-Z](?![_\w])", text)


def test_every_variable_that_the_repository_uses_is_known(monkeypatch, caplog):
    for name in os.environ:
        if name.startswith("FANOUT_"):
            monkeypatch.delenv(name)
    names = set(variables_of_the_repository())
    assert len(names) > 25
    _check_names(dict.fromkeys(names, "x"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "meant"),
    [("FANOUT_CONCURENCY", "FANOUT_CONCURRENCY"), ("FANOUT_BROKER_URl", "FANOUT_BROKER_URL"),
     ("FANOUT_GRACE", "FANOUT_GRACE_S"), ("FANOUT_MODLE", "FANOUT_MODEL")],
)  # fmt: skip
def test_a_variable_that_is_nearly_a_setting_is_refused(monkeypatch, name, meant):
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match=f"{name}: there is no such variable; is it {meant}"):
        load_settings()


def test_another_variable_is_warned_of_once_and_those_of_kubernetes_are_not(monkeypatch, caplog):
    monkeypatch.setenv("FANOUT_COFFEE_TEMPERATURE", "x")
    for name in ("FANOUT_SERVICE_HOST", "FANOUT_REDIS_PORT_6379_TCP", "FANOUT_PORT"):
        monkeypatch.setenv(name, "x")
    load_settings()
    load_settings()
    assert caplog.messages == [
        "FANOUT_COFFEE_TEMPERATURE is not a setting of fanout, and is ignored"
    ]


def test_a_wrong_argument_is_not_blamed_on_the_variable(monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", "redis://here:6379/0")
    with pytest.raises(SettingsError) as caught:
        load_settings(broker_url="amqp://x")
    assert str(caught.value).startswith("broker_url: must start with one of redis://")
    assert caught.value.argument == "broker_url"


def test_what_a_setting_must_be_is_said_in_plain_words(monkeypatch):
    found = set()
    for name in Settings.model_fields:
        for value in ("-1", "0", "1.5", "1e99", "nan", "x", "x y"):
            with monkeypatch.context() as patch:
                patch.setenv(f"FANOUT_{name.upper()}", value)
                try:
                    load_settings()
                except SettingsError as error:
                    found.add(str(error))
    assert any(": must be 1 or more (got '0')" in one for one in found), found
    assert [one for one in found if re.search(r"[Ii]nput should|[Vv]alid |should ", one)] == []
