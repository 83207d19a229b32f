"""What users, programs and older workers rely on is as it is recorded in public_surface.json.

``RECORD=1 pytest tests/unit/package/test_public_surface.py`` records a change on purpose; its diff is then
part of the change. Nothing here names where in the packages a thing is: modules may move.
"""

from __future__ import annotations

import copy
import enum
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

import fanout
import workers

RECORD = Path(__file__).with_name("public_surface.json")
# Modules that do their work when they are imported.
_PROGRAMS = {"local_server", "guard", "__main__"}

# What a user is given and does not make.
_NOT_MADE = {fanout.Run}


def modules():
    for package in (fanout, workers):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.rpartition(".")[2] not in _PROGRAMS:
                yield importlib.import_module(found.name)


def constant(name):
    """The value of a constant, in whichever module it is."""
    values = {repr(vars(one)[name]): vars(one)[name] for one in modules() if name in vars(one)}
    [value] = values.values()
    return value


def placeless(text):
    """A repr without where in the packages, and where in memory, a thing is."""
    return re.sub(r" at 0x\w+|\b(fanout|workers)\.([\w.]+\.)?(?=[A-Z])", "", text)


def signature(function):
    """The parameters as they are written."""
    try:
        return placeless(str(inspect.signature(function)))
    except ValueError:
        # A class that is made as its builtin base is.
        return "(...)"


def is_ours(cls):
    return cls.__module__.partition(".")[0] in {"fanout", "workers"}


def described(cls):
    """A public class: what it derives from, how it is made, and what it has."""
    bases = [base.__name__ for base in cls.__mro__[1:] if base is not object]
    found = {"bases": [name for name in bases if not name.startswith("_")]}
    if issubclass(cls, enum.Enum):
        return {**found, "values": {member.name: member.value for member in cls}}
    if hasattr(cls, "model_json_schema"):
        found["schema"] = schema(cls)
    elif cls not in _NOT_MADE:
        found["made"] = signature(cls)
    members = {}
    for base in reversed([base for base in cls.__mro__ if is_ours(base)]):
        for name, member in vars(base).items():
            if name.startswith("_") or name == "model_config":
                continue
            if callable(member) or isinstance(member, classmethod | staticmethod):
                members[name] = signature(getattr(cls, name))
            elif isinstance(member, property):
                members[name] = f"property -> {member.fget.__annotations__.get('return')}"
            else:
                members[name] = "field"
    fields = {name: "field" for name in getattr(cls, "__annotations__", ()) if name[0] != "_"}
    return {**found, "members": {**fields, **members}}


def schema(model):
    """The fields of a pydantic model with types, bounds and defaults; its words may change."""

    def without_words(value):
        if isinstance(value, dict):
            words = {"title", "description"} if "properties" in value or "type" in value else set()
            return {key: without_words(one) for key, one in value.items() if key not in words}
        return [without_words(one) for one in value] if isinstance(value, list) else value

    whole = without_words(model.model_json_schema(by_alias=False, mode="validation"))
    return {
        name: {key: one for key, one in field.items() if key not in {"title", "description"}}
        for name, field in whole["properties"].items()
    }


def names():
    return {
        name: described(thing) if inspect.isclass(thing) else signature(thing)
        for name in fanout.__all__
        for thing in [getattr(fanout, name)]
    }


def commands():
    """Each command with its parameters: all that click knows of them but the help."""
    [entry] = metadata.entry_points(group="console_scripts", name="fanout")
    group = vars(sys.modules[entry.load().__module__])["cli"]
    context = click.Context(group)
    found = {"fanout": parameters(group, context)}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found[name] = parameters(command, click.Context(command, info_name=name))
    return found


def parameters(command, context):
    rows = {}
    # Click keeps the option for the help as it was first made, with the names of that context.
    command = copy.copy(command)
    command._help_option = None
    for parameter in command.get_params(context):
        known = {**parameter.to_info_dict(), "metavar": parameter.make_metavar(context), "help": ""}
        names = " ".join([*known.pop("opts"), *known.pop("secondary_opts")])
        # click keeps the option of the first context; in one with a parent, -h belongs to it.
        names = "--help" if names.endswith("--help") else names
        known.update(type=placeless(repr(parameter.type)), default=repr(known["default"]), name="")
        rows[names] = ", ".join(f"{key}: {known[key]}" for key in sorted(known) if known[key])
    return rows


def variables():
    """Every variable that is named anywhere, and the settings with their defaults."""
    [settings] = {vars(one)["Settings"] for one in modules() if "Settings" in vars(one)}
    sources = [
        path.read_text()
        for package in (fanout, workers)
        for path in Path(package.__path__[0]).rglob("*.py")
    ]
    named = {name for source in sources for name in re.findall(r"\bFANOUT_[A-Z_]*[A-Z]", source)}
    fields = {f"FANOUT_{name.upper()}": field for name, field in schema(settings).items()}
    return {**{name: {} for name in named}, **fields}


def fields_of_a_job():
    spec = fanout.RunSpec.model_fields
    choices = {name: getattr(field.validation_alias, "choices", []) for name, field in spec.items()}
    return {
        "aliases": constant("ALIASES"),
        "parts": constant("PARTS"),
        "also": {name: sorted(also) for name, also in choices.items() if also},
    }


def messages():
    """What a worker of another version would be sent."""
    app = importlib.import_module("workers.app").app
    return {
        "wire version": constant("WIRE_VERSION"),
        "queues": constant("QUEUES"),
        "tasks": {
            name: list(inspect.signature(task.run).parameters)
            for name, task in app.tasks.items()
            if name.startswith("fanout.")
        },
    }


def errors():
    from_all = {
        cls for one in modules() for cls in vars(one).values()
        if inspect.isclass(cls) and is_ours(cls) and issubclass(cls, Exception)
    }  # fmt: skip
    return sorted(cls.__name__ for cls in from_all if issubclass(cls, fanout.FanoutError))


def exit_statuses():
    return {name: constant(name) for name in ("FAILURE", "USAGE", "INTERRUPTED", "CLOSED_PIPE")}


SURFACE = {
    "names": names,
    "commands": commands,
    "variables": variables,
    "fields of a job": fields_of_a_job,
    "messages": messages,
    "errors": errors,
    "exit statuses": exit_statuses,
}


@pytest.mark.parametrize("part", SURFACE)
def test_the_public_surface_is_what_is_recorded(part):
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    now = json.loads(json.dumps(SURFACE[part]()))
    if os.environ.get("RECORD"):
        recorded[part] = now
        RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert now == recorded[part]
