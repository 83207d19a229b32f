"""docs/cli.md is the reference: it says what each command says of itself, and no more."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from fanout.cli.main import _COMMANDS, _GROUPS

REFERENCE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
SECTIONS = {
    heading.split()[1]: body
    for heading, body in re.findall(
        r"^### `(fanout [^`]+)`\n(.*?)(?=^##|\Z)", REFERENCE, re.MULTILINE | re.DOTALL
    )
}


def command(name):
    module, _, attribute = _COMMANDS[name][0].partition(":")
    return getattr(import_module(module), attribute)


def text(words):
    return " ".join(words.replace("\\|", "|").split())


def test_each_command_has_its_place():
    assert set(SECTIONS) == set(_COMMANDS)
    assert sorted(name for names in _GROUPS.values() for name in names) == sorted(_COMMANDS)


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_each_option_is_described_as_it_describes_itself(name):
    # A job's options are described once.
    section = text(SECTIONS[name] + (SECTIONS["run"] if name == "submit" else ""))
    for paragraph in (command(name).help or "").split("\n\n"):
        assert text(paragraph) in section
    options = [option for option in command(name).params if isinstance(option, click.Option)]
    for option in options:
        if option.name != "help":
            assert text(option.help or "") in section, option.opts
            assert all(f"`{spelling}" in section for spelling in option.opts)
    spelled = set(re.findall(r"`(--?[a-z-]+)", SECTIONS[name].partition("| option |")[2]))
    assert spelled <= {spelling for option in options for spelling in option.opts}
