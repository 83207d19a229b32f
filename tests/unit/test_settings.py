from __future__ import annotations

import pytest

from fanout.errors import SettingsError
from fanout.settings import load_settings, parse_autoscale


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
        ("FANOUT_CONCURRENCY", "0", ["FANOUT_CONCURRENCY", "greater", "'0'"]),
        ("FANOUT_QUEUES", "typo", ["FANOUT_QUEUES", "control, branches", "'typo'"]),
        ("FANOUT_WORKER_NAME", "a@b@c", ["FANOUT_WORKER_NAME", "at most one @", "'a@b@c'"]),
        ("FANOUT_AUTOSCALE", "8,2", ["FANOUT_AUTOSCALE", "prefork pool only", "--concurrency"]),
        ("FANOUT_BROKER_URL", "amqp://x", ["FANOUT_BROKER_URL", "redis://", "rediss://"]),
    ],
)
def test_a_wrong_variable_names_itself_and_what_is_allowed(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


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
