"""Tries at Flower's password."""

from __future__ import annotations

import base64

import pytest

from workers.telemetry.flower_guard import _MOST_ADDRESSES, Attempts, is_wrong


def basic(login):
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def test_so_many_wrong_passwords_are_looked_at_and_then_one_each_few_seconds():
    now = [0.0]
    attempts = Attempts(3, clock=lambda: now[0])
    for _ in range(3):
        assert attempts.wait_s("a") == 0
        attempts.failed("a")
    assert attempts.wait_s("a") == 6
    assert attempts.wait_s("b") == 0
    now[0] = 6
    assert attempts.wait_s("a") == 0
    attempts.failed("a")
    assert attempts.wait_s("a") == 6
    now[0] = 1_000
    attempts.failed("a")
    assert attempts.wait_s("a") == 0


def test_many_addresses_fill_no_memory():
    now = [0.0]
    attempts = Attempts(2, clock=lambda: now[0])
    for number in range(_MOST_ADDRESSES + 500):
        attempts.failed(str(number))
    assert len(attempts._until) == _MOST_ADDRESSES
    now[0] = 100
    attempts.failed("new")
    assert list(attempts._until) == ["new"]


@pytest.mark.parametrize(
    ("header", "wrong"),
    [
        (basic("u:p"), False),
        (basic("u:p").replace("Basic", "basic"), False),
        (basic("u:q"), True),
        (basic("\u00fc:p"), True),
        ("Basic %%%", True),
        ("Bearer dTpw", True),
        ("", True),
    ],
)
def test_a_login_is_right_or_wrong(header, wrong):
    assert is_wrong(header, ["x:y", "u:p"]) is wrong
