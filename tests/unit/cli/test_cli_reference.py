"""docs/cli.md is the reference: it says what each command says of itself, and no more."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from fanout.cli.main import _COMMANDS, _GROUPS
from fanout.cli.speed import Speed
from fanout.core.fleet_records import Totals, WorkerRecord
from fanout.core.gathered import RunBatch
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.core.state import StageLoad
from fanout.observe.fleet import FleetStatus
from fanout.runs.branch_output import Output
from fanout.runs.rows import call_row, error_row
from fanout.runs.status import ReduceError, StageStatus

from .test_progress import status

REFERENCE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
SECTIONS = {
    heading.split()[1]: body
    for heading, body in re.findall(
        r"^### `(fanout [^`]+)`\n(.*?)(?=^##|\Z)", REFERENCE, re.MULTILINE | re.DOTALL
    )
}


def command(name):
    module, _, attribute = _COMMANDS[name][0].partition(":")
    return getattr(import_module(f"fanout.cli.{module}"), attribute)


def text(words):
    return " ".join(words.replace("\\|", "|").split())


def test_each_command_has_its_place():
    assert set(SECTIONS) == set(_COMMANDS)
    assert sorted(name for names in _GROUPS.values() for name in names) == sorted(_COMMANDS)


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_each_option_is_described_as_it_describes_itself(name):
    # A job's options are described once.
    section = text(
        SECTIONS[name]
        + (SECTIONS["run"] if name in {"submit", "eval", "explain", "estimate", "trial"} else "")
    )
    for paragraph in (command(name).help or "").split("\n\n"):
        assert text(paragraph) in section
    options = [option for option in command(name).params if isinstance(option, click.Option)]
    for option in options:
        if option.name != "help":
            assert text(option.help or "") in section, option.opts
            assert all(f"`{spelling}" in section for spelling in option.opts)
    listed = "".join(re.findall(r"^\* (`-.*?): ", SECTIONS[name], re.MULTILINE))
    spelled = set(re.findall(r"`(--?[a-z-]+)", listed))
    assert spelled <= {spelling for option in options for spelling in option.opts}


def row(name, page=REFERENCE):
    """What the page says of one object, or of one field of it."""
    [found] = re.findall(rf"^\* {re.escape(name)}: (.*?)^(?=\* |$)", page, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([a-z0-9_]+)`", found))


def test_every_field_that_json_prints_is_described():
    record = status().to_dict()
    structs = (*StageStatus.__struct_fields__, *RunBatch.__struct_fields__)
    nested = {*record["usage"], *record["latency"], *structs}
    assert row("`status`, `submit`, `resume`") - {"null"} == record.keys() | nested
    live = {"speed", "eta_s", "queues", "concurrency", "in_flight", "null"}
    assert row("`watch RUN`") == live | Speed().to_dict().keys()


def test_every_field_of_the_fleet_is_described():
    section = REFERENCE.partition("### The fleet\n")[2].partition("\n## ")[0]
    described = re.findall(r"^\* `([a-z_]+)`: ", section, re.MULTILINE)
    assert set(described) == set(FleetStatus.__slots__)
    # The budgets of the day are those of the fleet.
    assert row("`workers`", section) == set(WorkerRecord.__struct_fields__) - {"day_budgets"}
    deprecated = {"lanes_used", "lanes_limit", "lanes_wanted"}
    window = row("`window`", section) - {"max_workers"} - deprecated
    assert window == set(StageLoad.__struct_encode_fields__)
    assert row("`totals`", section) == set(Totals.__struct_fields__)


def test_every_field_of_an_error_is_described():
    failed = Output(
        index=0, document="d", document_index=0, chunk=0, position=0, start=0, end=1, aspect=None,
        sample=0, output=None, kind=ErrorKind.TIMEOUT, message="", attempts=1, usage=Usage(),
        elapsed_s=0.0, samples=2,
    )  # fmt: skip
    described = row("`errors`") - {"count", "example", "null", "certainty"}
    call = ReduceError(group="", kind=ErrorKind.TIMEOUT, message="", attempts=1)
    assert described == error_row(failed).keys() | call_row(call).keys()


def test_every_kind_and_status_that_can_be_asked_for_is_named():
    for name in ("errors", "retry"):
        assert [kind for kind in ErrorKind if kind.value not in SECTIONS[name]] == []
    assert [one for one in RunStatus if one.value not in SECTIONS["runs"]] == []


def test_commands_on_runs_say_what_a_run_may_be_called():
    for name in _COMMANDS:
        takes_run = any(parameter.name == "run_id" for parameter in command(name).params)
        assert takes_run == ("`latest`" in (command(name).epilog or "")), name
