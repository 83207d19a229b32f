"""How the options of a command and a job file become a spec."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.job_options import job_options
from fanout.core.errors import PromptError, SpecError
from fanout.core.field_effects import CONFLICTS, READING, RULES, require_used
from fanout.core.field_names import PARTS, canonical, flat_name
from fanout.core.job_files import load_job
from fanout.core.retrieval import is_retrieval_function
from fanout.core.spec import RunSpec, make_spec
from fanout.core.spec_fields import with_models
from fanout.inputs.documents.files import RUN, STDIN
from fanout.inputs.documents.urls import with_base

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.settings import Settings

__all__ = ["in_words", "job_spec", "labels_of"]

_WORD = re.compile(r"\w+")


def job_spec(inputs: tuple[str, ...], options: dict[str, Any], settings: Settings) -> RunSpec:
    """Return the spec of a job file, over which options win.

    Raises:
        SpecError: A field is wrong; the message has the option, or the file and the field.
    """
    job, inputs = _job_file(inputs)
    given = _given(options)
    try:
        fields = _fields(job, inputs, given, settings)
        _drop_overruled(fields, given)
        spec = make_spec(**fields)
        if inputs:
            # How the inputs of the file are read need not have an effect on others.
            spec.model_fields_set.difference_update(READING - given.keys())
        require_used(spec)
    except SpecError as error:
        raise _in_words(error, job, given) from None
    return spec


@contextmanager
def in_words(inputs: tuple[str, ...], options: dict[str, Any]) -> Iterator[None]:
    """Have an error of a field that is found during the submission name its option or its file.

    Raises:
        SpecError: As it was raised, in the words of the command line.
    """
    try:
        yield
    except SpecError as error:
        job, given = _job_file(inputs)[0], _given(options)
        if not isinstance(error, PromptError):
            raise _in_words(error, job, given) from None
        # It quotes the prompt, whose words stay as they are.
        field = _in_words(error, job, given).field
        raise PromptError(error.reason, field=field) from None


def _job_file(inputs: tuple[str, ...]) -> tuple[Path | None, tuple[str, ...]]:
    """Return the job file among the arguments, and the other ones."""
    if inputs and inputs[0].endswith((".yaml", ".yml")):
        return Path(inputs[0]), inputs[1:]
    return None, inputs


def _drop_overruled(fields: dict[str, Any], given: dict[str, Any]) -> None:
    """Remove the fields of a job file that have no effect, or do not fit, next to an option.

    ``--split lines`` wins over the ``split: tokens`` of a file, and so over its ``chunk_tokens``.
    """
    options = {*given, *canonical(given)}
    # A whole spec can be made only of fields that fit.
    for rules, make in ((CONFLICTS, RunSpec.model_construct), (RULES, make_spec)):
        for rule in rules:
            if not options.intersection(rule.deciding) or rule.is_met(make(**fields)):
                continue
            for part, _, name in (field.rpartition(".") for field in rule.fields):
                if name not in options:
                    (fields.get(part, {}) if part else fields).pop(name, None)


def _fields(
    job: Path | None, inputs: tuple[str, ...], given: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    fields = canonical(_job_fields(job, has_base="base_dir" in given)) if job else {}
    for name, value in with_models(canonical(given)).items():
        # An option wins over its own field, not over the others of the same part.
        part = fields.get(name) if name in PARTS.values() else None
        fields[name] = {**part, **value} if isinstance(part, dict) else value
    if inputs:
        fields["inputs"] = inputs
    if not fields.get("model") and not fields.get("models"):
        if settings.model is None:
            raise SpecError("is required: give --model, or set FANOUT_MODEL", field="model")
        fields["model"] = settings.model
    if not fields.get("inputs"):
        raise SpecError("is required: give files, folders, globs, or - for stdin", field="inputs")
    return fields


def _in_words(error: SpecError, job: Path | None, given: dict[str, Any]) -> SpecError:
    """Return an error that names the option, or the line of the file, that set the field."""
    if error.field is None or error.field.startswith("-"):
        return error
    root, _, inner = error.field.partition(".")
    # Several models are one option.
    root = "model" if root == "models" and "model" in given else root
    inner = flat_name(root, inner)
    # A step may have the name of an option.
    names = () if root == "steps" else (inner, root)
    option = next((name for name in names if name in given), None)
    if option is None and job is not None:
        return SpecError(error.reason, field=f"{job}: {error.field}")
    reason = _with_options(error.reason, _OPTION_OF if job is None else given)
    field = _OPTION_OF.get(option or root, error.field)
    # A part of what the option gives: one of its prices, or its columns.
    is_part = option == root and inner and not inner.isdigit()
    return SpecError(reason, field=f"{field} {inner}" if is_part else field)


def _with_options(reason: str, names: Iterable[str]) -> str:
    """Return a reason that names options, not the fields that they give; a value stays as it is."""
    text, got, value = reason.partition(" (got ")
    # A word such as `split` or `reduce` is plain English.
    options = {name: _OPTION_OF[name] for name in names if "_" in name}
    return f"{_WORD.sub(lambda word: options.get(word[0], word[0]), text)}{got}{value}"


def _job_fields(path: Path, *, has_base: bool) -> dict[str, Any]:
    """Return the fields of a job file, whose paths are relative to it.

    Args:
        path: The file.
        has_base: Whether an option says which folder its inputs are in.
    """
    fields = load_job(path)
    steps = fields.get("steps")
    parts = [one for one in steps if isinstance(one, dict)] if isinstance(steps, list) else []
    for part in (fields, *parts):
        for name in ("schema", "aggregate_schema"):
            file = part.get(name)
            if isinstance(file, str) and not file.lstrip().startswith("{"):
                part[name] = str(path.parent / file)
    base = fields.get("base_dir")
    if not has_base and not isinstance(base, str):
        _with_base((fields, *parts), path.parent)
    if isinstance(base, str):
        fields["base_dir"] = str(path.parent / base)
    if has_base or isinstance(base, str):
        return fields
    inputs = fields.get("inputs", [])
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, list):
        # Where a job is run from should not matter: its paths are relative to the job file.
        fields["inputs"] = [
            with_base(one, path.parent) if isinstance(one, str) and _is_path(one) else one
            for one in inputs
        ]
    return fields


def _with_base(parts: Iterable[dict[str, Any]], folder: Path) -> None:
    """Make the paths of a job's and its steps' passages relative to a folder."""
    for part in parts:
        source = part.get("retrieve")
        if isinstance(source, str) and _is_path(source) and not is_retrieval_function(source):
            part["retrieve"] = with_base(source, folder)


def _is_path(given: str) -> bool:
    return given != STDIN and not given.startswith(RUN)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "aspects" in given:
        given["aspects"] = _aspects(given["aspects"])
    if "labels" in given:
        given["labels"] = labels_of(given["labels"])
    if "price" in given:
        given["price"] = _price(given["price"])
    return given


def _price(texts: Iterable[str]) -> dict[str, float]:
    price: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            usd = float(value)
        except ValueError:
            raise SpecError(
                f"must be PART=USD, as input_mtok=0.25 (got {text!r})", field="--price"
            ) from None
        if name in price:
            raise SpecError(f"gives {name} twice", field="--price")
        price[name] = usd
    return price


def labels_of(texts: Iterable[str]) -> dict[str, str]:
    """Return the columns of labels by field, from ``COLUMN`` and ``FIELD=COLUMN``. Raises SpecError."""
    labels: dict[str, str] = {}
    for text in texts:
        field, equals, column = text.rpartition("=")
        if not column or (equals and not field):
            raise SpecError(f"must be COLUMN or FIELD=COLUMN (got {text!r})", field="--label")
        if field in labels:
            which = f"the column of {field!r}" if field else "the column of the whole answer"
            raise SpecError(f"gives {which} twice", field="--label")
        labels[field] = column
    return labels


def _aspects(texts: Iterable[str]) -> dict[str, str]:
    aspects: dict[str, str] = {}
    for name, prompt in map(_aspect, texts):
        if name in aspects:
            raise SpecError(f"gives the aspect {name!r} twice", field="--aspect")
        aspects[name] = prompt
    return aspects


def _aspect(text: str) -> tuple[str, str]:
    name, equals, prompt = text.partition("=")
    if not equals or not name or not prompt:
        raise SpecError(f"must be NAME=PROMPT (got {text!r})", field="--aspect")
    return name, prompt


def _spellings() -> dict[str, str]:
    command = click.Command("run")
    job_options(command)
    return {str(option.name): option.opts[0] for option in command.params}


# How each field is spelled on the command line.
_OPTION_OF = _spellings()
