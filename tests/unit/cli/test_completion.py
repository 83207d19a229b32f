"""What a shell is told when Tab is pressed; tests/acceptance/test_look.py asks a real one."""

from __future__ import annotations

import time

import click
import pytest
import redis
from click.shell_completion import get_completion_class

from fanout.cli.main import _COMMANDS, _GROUPS, cli
from fanout.core.records import RunStatus
from fanout.stores import RedisStore


def complete(*words, shell="bash"):
    completion = get_completion_class(shell)(cli, {}, "fanout", "_FANOUT_COMPLETE")
    return completion.get_completions(list(words[:-1]), words[-1])


def values(*words):
    return [item.value for item in complete(*words)]


@pytest.fixture
def runs(broker_url, monkeypatch):
    """Runs of a server that the environment names, which answers however busy the machine is."""
    monkeypatch.setattr("fanout.cli.completion._PATIENCE_S", 60.0)
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    store = RedisStore(redis.Redis.from_url(broker_url))
    for number, run_id in enumerate(["abc1", "abd2", "xyz3"]):
        store.create_run(run_id, spec="{}", created_at=1_700_000_000.0 + number)
    store.end_run("abc1", RunStatus.FAILED, ended_at=1_700_000_009.0)
    yield broker_url
    store.close()


def test_commands_and_options_are_completed():
    assert values("st") == ["status"]
    assert values("") == sorted(_COMMANDS)
    assert "--version" in values("--")
    assert values("errors", "--su") == ["--summary"]
    assert values("errors", "x", "--kind", "time") == ["timeout", "time_limit"]
    assert values("runs", "--status", "pa") == ["paused"]
    assert values("run", "--reduce", "vo") == ["vote"]
    assert values("completion", "z") == ["zsh"]


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_the_options_of_each_command_are_completed(name):
    assert "--help" in values(name, "--h")


@pytest.mark.parametrize("words", [("run", "in"), ("submit", "in"), ("resume", "x", "in")])
def test_inputs_are_completed_as_files(words):
    assert [(item.type, item.value) for item in complete(*words)] == [("file", "in")]


@pytest.mark.parametrize("command", ["status", "watch", "cancel", "errors", "results", "resume"])
def test_runs_are_completed_with_their_status_the_newest_first(runs, command):
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(1_700_000_000))
    found = [(item.value, item.help) for item in complete(command, "ab")]
    assert found == [("abd2", f"enqueuing, of {created}"), ("abc1", f"failed, of {created}")]
    assert values(command, "zz") == []


def test_the_server_may_be_named_on_the_line(runs, monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", "")
    assert values("status", "ab") == []
    assert values("status", "--broker-url", runs, "ab") == ["abd2", "abc1"]


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:1/0", "redis://127.0.0.1:nan/0", "http://x", "sentinel://127.0.0.1:1"],
)
def test_without_a_server_nothing_is_completed_and_soon(monkeypatch, capsys, url):
    monkeypatch.setenv("FANOUT_BROKER_URL", url)
    begun_at = time.monotonic()
    assert values("status", "ab") == []
    assert time.monotonic() - begun_at < 30
    assert capsys.readouterr() == ("", "")


def test_each_command_is_in_one_group_and_says_what_it_is():
    names = [name for group in _GROUPS.values() for name in group]
    assert sorted(names) == sorted(set(names))
    assert set(names) <= set(_COMMANDS)
    for name in _COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)
                assert parameter.help.rstrip().endswith((".", "]", ")")), parameter.help
