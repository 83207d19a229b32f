"""Redaction: what is known to be secret, and what looks like it."""

from __future__ import annotations

import base64
import json
import logging
import sys
from urllib.parse import quote, quote_plus

import pytest

from fanout.core import redaction as secrets
from fanout.core.redaction import MASK, Redactor, redacted, secret_values
from workers.telemetry.logs import LogGuard, quiet_clients


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
        base64.b64encode(b"user:p@ssword1").decode(), base64.b64encode(b":one-password").decode(),
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


def made(prefix, size=40, letters="a1B2c3D4"):
    """A key of some form; no file of ours holds one that a scanner would take for real."""
    return prefix + (letters * size)[:size]


TOKENS = [
    made("sk-proj-"), made("sk-ant-api03-"), made("sk-or-v1-"), made("sk-svcacct-"), made("sk-lf-"),
    made("csk-"), made("AIza"), made("AQ."), made("ya29."), made("GOCSPX-"),
    made("AKIA", 16, "ABCD1234"), made("ASIA", 16, "ABCD1234"), made("gsk_"), made("hf_"),
    made("xai-"), made("r8_"), made("fw_"), made("tgp_v1_"), made("pplx-"), made("nvapi-"),
    made("ghp_"), made("gho_"), made("ghs_"), made("github_pat_"), made("glpat-"), made("xoxb-"),
    made("xoxp-"), made("xapp-"), made("dapi", 32, "a1b2c3d4"), made("lsv2_pt_"), made("npm_"),
    made("pypi-"), made("SG.", 20) + made(".", 20), made("eyJ") + made(".eyJ") + made("."),
    made("sk_live_"), made("whsec_"), made("dop_v1_"),
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("around", ["key {} is bad", '{{"k": "{}"}}', "({})", "x={}&y=1"])
def test_current_forms_of_keys_are_known(token, around):
    shown = redacted(around.format(token))
    assert token[8:] not in shown
    assert token[:20] not in shown


FIELDS = [
    "authorization: Bearer {}", "Authorization: {}", "'authorization': 'Basic {}'", "x-api-key: {}",
    '"api-key": "{}"', "x-goog-api-key={}", "Ocp-Apim-Subscription-Key: {}", '{{"api_key": "{}"}}',
    '{{\\"api_key\\": \\"{}\\"}}', "client_secret={}", "?key={}&x=1", "&api-key={}", "?sig={}",
    "?X-Amz-Signature={}", "?X-Amz-Credential={}", "&access_token={}", "?subscription-key={}",
    "?token={}", "password={}", "bearer {}", "https://me:{}@host/x",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_what_stands_where_secrets_stand_is_not_shown(field):
    assert "plain0value0" not in redacted(f"POST {field.format('plain0value0')} failed")


WORDS = [
    "Basic authentication is required", "no api key was given", "max_tokens=5 and token count: 12",
    "the key is sorted: sort_key=name", "invalid token: expected a string", "password must be set",
    "key_prefix and hf_home", "https://host/a?page=2&model=gpt-5", "a secret, and its signature",
    "dapi and xoxo and eyJ", "the author: somebody", "fw_rules",
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_words_are_not_taken_for_secrets(words):
    assert redacted(words) == words


SECRET = 'p/w+rd "1" é secret'


def test_a_known_secret_is_known_in_every_form():
    redact = Redactor([SECRET])
    data = SECRET.encode()
    forms = [
        SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), json.dumps(SECRET)[1:-1],
        base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("="),
    ]  # fmt: skip
    for form in forms:
        assert SECRET[:6] not in redact(f"<{form}>")
        assert redact(f"<{form}>") != f"<{form}>"


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "somebody", "ü"])
@pytest.mark.parametrize("size", range(16, 22))
def test_a_secret_within_the_base64_of_more_is_known(user, size):
    secret = made("", size)
    told = base64.b64encode(f"{user}:{secret}".encode()).decode()
    shown = Redactor([secret])(f"got {told} there")
    assert MASK in shown
    # What is left is what the user alone makes, and a bit of its edges.
    assert len(shown.replace(MASK, "")) <= len("got  there") + 4 * (len(user.encode()) + 6) // 3


def test_secrets_of_headers_and_urls_are_learned(monkeypatch):
    basic = base64.b64encode(b"me:pass-of-header").decode()
    environment = {
        "OPENAI_CUSTOM_HEADERS": f"X-Team: value-of-team\nAuthorization: Basic {basic}\n"
        "Accept: application/json\nX-Other: Bearer value-of-bearer",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=value%2Dof%2Dotel,accept=text/plain",
        "OPENAI_BASE_URL": "https://u:pass-of-url@host/v1?api-version=1&key=value-of-query",
    }
    found = secret_values(environment)
    assert {"value-of-team", "pass-of-header", "value-of-bearer", "value-of-otel", "pass-of-url",
            "value-of-query", base64.b64encode(b"u:pass-of-url").decode()} <= found  # fmt: skip
    assert not {"application/json", "text/plain", "1"} & found
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    secrets.learn()
    assert redacted(f"sent X-Team: value-of-team and Basic {basic}") == (
        f"sent X-Team: {MASK} and {MASK}"
    )
