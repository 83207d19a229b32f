"""Keys from files, for any provider."""

from __future__ import annotations

import os

import pytest

from fanout.core.errors import SettingsError
from fanout.core.settings import load_settings
from fanout.llm.keys import key_files
from workers.config import make_worker_app


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-1\n")
    return str(path)


def test_a_key_lies_in_the_file_that_is_named(key):
    environ = {"OPENAI_API_KEY_FILE": key, "MISTRAL_API_KEY_FILE": key, "OTHER_FILE": "/nowhere"}
    assert key_files(environ) == {"OPENAI_API_KEY": "sk-1", "MISTRAL_API_KEY": "sk-1"}


def test_an_empty_file_or_name_is_no_key():
    assert key_files({"OPENAI_API_KEY_FILE": "/dev/null", "ANTHROPIC_API_KEY_FILE": ""}) == {}


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY_FILE: cannot be read: No such file"):
        key_files({"OPENAI_API_KEY_FILE": "/nowhere/key"})


def test_two_keys_are_one_too_many_and_neither_is_shown(key):
    with pytest.raises(SettingsError) as caught:
        key_files({"OPENAI_API_KEY": "sk-2", "OPENAI_API_KEY_FILE": key})
    assert str(caught.value) == "OPENAI_API_KEY_FILE: OPENAI_API_KEY is set, too; set one of them"


def test_a_worker_takes_its_keys_and_may_be_made_again(key, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY_FILE", key)
    monkeypatch.setenv("SOME_API_KEY", "")
    settings = load_settings(broker_url="redis://127.0.0.1:1")
    for _ in range(2):
        make_worker_app(settings)
        assert os.environ["SOME_API_KEY"] == "sk-1"
