"""What `fanout flower` makes of its settings, and of what workers tell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fanout.core.errors import SettingsError
from fanout.core.sentinel_url import secrets_of
from fanout.core.settings import load_settings
from workers.telemetry.flower import login_of, masked, readable


def test_who_may_log_in_is_of_user_and_password():
    assert login_of(load_settings()) is None
    assert login_of(load_settings(flower_password="a:b,c")) == "fanout:a:b,c"
    assert login_of(load_settings(flower_password="x", flower_user="ann")) == "ann:x"


def test_a_password_in_a_file_ends_with_its_line(tmp_path):
    path = tmp_path / "password"
    path.write_text(" s3same \r\n")
    assert login_of(load_settings(flower_password_file=path)) == "fanout: s3same "


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flower_password": "x", "flower_password_file": "y"}, "are both set"),
        ({"flower_password_file": "/nowhere"}, "/nowhere cannot be read"),
        ({"flower_password_file": "/dev/null"}, "/dev/null is empty"),
        ({"flower_password": "pässword"}, "must be of ASCII characters"),
    ],
)
def test_a_login_that_cannot_be_is_refused(given, message):
    with pytest.raises(SettingsError, match=message) as refused:
        login_of(load_settings(**given))
    assert "pässword" not in str(refused.value)


def test_a_user_without_colon_and_a_secret_that_is_not_shown(monkeypatch):
    monkeypatch.setenv("FANOUT_FLOWER_USER", "a:b")
    with pytest.raises(SettingsError, match="FANOUT_FLOWER_USER"):
        load_settings()
    monkeypatch.delenv("FANOUT_FLOWER_USER")
    assert "hunter2" not in repr(load_settings(flower_password="hunter2"))


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("redis://host:6379/0", set()),
        ("redis://ann:hunter2@host:6379/0", {"hunter2"}),
        ("rediss://:p%40ss@host:6379/0?ssl_ca_certs=/ca.pem", {"p@ss", "p%40ss"}),
        (
            "sentinel://ann:hunter2@a:1,b:2/0?master=m&sentinel_password=s%2Fs",
            {"hunter2", "s/s", "s%2Fs"},
        ),
    ],
)
def test_the_secrets_of_a_broker_are_known(url, secrets):
    assert secrets_of(url) == secrets


def test_secrets_are_masked_wherever_they_are():
    told = {
        "broker": {"alternates": ["redis://:hunter2@h"], "port": 1},
        "kwargs": [{"p": "hunter2"}],
    }
    hidden = masked(told, frozenset({"hunter2"}))
    assert hidden == {
        "broker": {"alternates": ["redis://:********@h"], "port": 1},
        "kwargs": [{"p": "********"}],
    }


def test_arguments_are_shown_by_name_and_without_what_is_internal():
    kwargs = "{'run_id': 'r1', 'stage': 0, 'shard': 3, 'position': 17}"
    task = readable(SimpleNamespace(kwargs=kwargs))
    assert task.kwargs == "run_id=r1 stage=0 shard=3 position=17"


@pytest.mark.parametrize("kwargs", [None, "", "{'a': 1, ...}", "[1]", "('x',", "hello"])
def test_what_is_no_task_of_ours_is_shown_as_it_is(kwargs):
    assert readable(SimpleNamespace(kwargs=kwargs)).kwargs == kwargs
