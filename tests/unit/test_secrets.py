"""Redaction: what is known to be secret, and what looks like it."""

from __future__ import annotations

import logging
import sys

import pytest

from fanout import secrets
from fanout.secrets import Redactor, redacted, secret_values
from workers.log_guard import LogGuard, quiet_clients


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(secrets, "_redactor", Redactor())


def test_secrets_are_known_by_the_names_of_their_variables():
    environment = {
        "OPENAI_API_KEY": "value-of-key",
        "HF_TOKEN": "value-of-token",
        "AWS_SECRET_ACCESS_KEY": "value-of-aws",
        "DB_PASSWORD": "value-of-db",
        "TOKEN": "value-of-bare",
        "TOKENIZERS_PARALLELISM": "not-a-secret",
        "KEYBOARD": "not-a-secret",
        "FANOUT_KEY_PREFIX": "not-a-secret",
        "FANOUT_BROKER_URL": "redis://user:p%40ssword1@host:6379/0",
        "OTHER": "sentinel://:one-password@h:1/0?master=m&sentinel_password=two-password",
    }
    assert secret_values(environment) == {
        "value-of-key", "value-of-token", "value-of-aws", "value-of-db", "value-of-bare",
        "p%40ssword1", "p@ssword1", "one-password", "two-password",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Incorrect key provided: sk-proj-abc***xyz.", "Incorrect key provided: [key]."),
        ("Authorization: Bearer abcdef123", "Authorization: Bearer [key]"),
        ("x-api-key: abcdef123", "x-api-key: [key]"),
        ("redis://user:hunter2@host:1/0", "redis://user:[key]@host:1/0"),
        ("redis://:hunter2@host:1/0 is away", "redis://:[key]@host:1/0 is away"),
        ("?master=m&sentinel_password=hunter2&x=1", "?master=m&sentinel_password=[key]&x=1"),
        ("AIzaSyA1234567890abcdefghijk is bad", "[key] is bad"),
        ("https://host/a:b@c and 10:30@noon", "https://host/a:b@c and 10:30@noon"),
        ("the risk-averse task-based desk-top", "the risk-averse task-based desk-top"),
    ],
)
def test_what_has_the_form_of_a_secret_is_not_shown(text, shown):
    assert redacted(text) == shown


def test_what_is_learned_is_not_shown_and_stays_known(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("LONGER_API_KEY", "0123456789abcdef-and-more")
    monkeypatch.setenv("SHORT_API_KEY", "none")
    secrets.learn("redis://:given.by.option@host/0")
    monkeypatch.delenv("SOME_API_KEY")
    secrets.learn()
    text = "none of 0123456789abcdef, 0123456789abcdef-and-more, given.by.option; givenXbyXoption"
    assert redacted(text) == "none of [key], [key], [key]; givenXbyXoption"
    assert redacted("the one", ["one"]) == "the [key]"


def guarded(name, level, *args, **kwargs):
    record = logging.LogRecord(name, level, __file__, 1, *args, **kwargs)
    return LogGuard().filter(record), record


def test_a_log_says_no_key_neither_in_its_message_nor_in_its_traceback():
    secrets.learn("redis://:the.password@host/0")
    try:
        int("the.password")
    except ValueError:
        fault = sys.exc_info()
    shown, record = guarded("celery", logging.ERROR, "got %s", ("the.password",), fault)
    line = logging.Formatter().format(record)
    assert shown
    assert "with base 10: '[key]'" in line
    assert "got [key]" in line
    assert "the.password" not in line


def test_a_log_line_has_an_end():
    _, record = guarded("celery", logging.ERROR, "x" * 1_000_000, (), None)
    assert len(record.getMessage()) < 2_100
    assert "998,000 characters" in record.getMessage()


@pytest.mark.parametrize("name", ["openai._base_client", "httpx", "httpcore.http11", "LiteLLM"])
def test_clients_of_providers_do_not_log_what_they_send(name, monkeypatch):
    assert not guarded(name, logging.DEBUG, "prompt", (), None)[0]
    assert not guarded(name, logging.INFO, "prompt", (), None)[0]
    assert guarded(name, logging.WARNING, "careful", (), None)[0] is (name != "LiteLLM")
    logger = logging.getLogger(name.partition(".")[0])
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    quiet_clients()
    assert logger.level >= logging.WARNING
