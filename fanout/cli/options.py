"""The options that describe a job, and how they and a job file become a spec."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fanout.cli.completion import complete_files
from fanout.core.errors import PromptError, SpecError
from fanout.core.field_effects import CONFLICTS, READING, RULES, require_used
from fanout.core.field_names import PARTS, canonical
from fanout.core.spec import ReduceName, RunSpec, SplitName, load_job, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.settings import Settings

__all__ = ["in_words", "job_options", "job_spec"]

_WORD = re.compile(r"\w+")
_OPTIONS = [
    click.option("--model", "-m", metavar="M", help=(
        "openai/NAME, anthropic/NAME, litellm/NAME, local, fake, or package.module:function "
        "[default: $FANOUT_MODEL]"
    )),
    click.option("--prompt", "-p", metavar="P", help="What to ask of each chunk; {input} is it."),
    click.option("--aspect", "--aspects", "aspects", metavar="NAME=P", multiple=True,
                 help="A named prompt; give several to ask several questions of each chunk."),
    click.option("--samples", metavar="N", type=int,
                 help="Answers for each chunk and prompt. [default: 1]"),
    click.option("--aggregate", "--aggregate-prompt", "aggregate_prompt", metavar="P",
                 help="What to ask of all the answers; {input} is them."),
    click.option("--reduce", type=click.Choice(get_args(ReduceName)),
                 help="How the answers become one. [default: llm with --aggregate, else none]"),
    click.option("--group-by", metavar="BY",
                 help="document, aspect or a column: an aggregate for each. [default: one]"),
    click.option("--system", metavar="P", help="The system prompt. [default: none]"),
    click.option("--temperature", metavar="T", type=float,
                 help="Sampling temperature, 0 to 2. [default: the model's]"),
    click.option("--max-tokens", metavar="N", type=int,
                 help="The longest answer of a branch, in tokens. [default: the model's]"),
    click.option("--aggregate-max-tokens", metavar="N", type=int,
                 help="The longest aggregate, in tokens. [default: the model's]"),
    click.option("--seed", metavar="N", type=int, help="Sampling seed. [default: none]"),
    click.option("--stop", metavar="S", multiple=True,
                 help="A string that ends an answer; give several."),
    click.option("--output-format", type=click.Choice(["text", "json"]),
                 help="json refuses answers that are not JSON. [default: text]"),
    click.option("--context-tokens", metavar="N", type=int,
                 help="The model's context window, in tokens. [default: as it is known]"),
    click.option("--split", type=click.Choice(get_args(SplitName)),
                 help="How documents become chunks. [default: none]"),
    click.option("--chunk-tokens", metavar="N", type=int,
                 help="The largest chunk, in estimated tokens. [default: 1000]"),
    click.option("--chunk-overlap-tokens", metavar="N", type=int,
                 help="What neighbouring chunks share, in estimated tokens. [default: 0]"),
    click.option("--base-dir", metavar="DIR",
                 help="The folder that relative INPUTs are in. [default: the working directory]"),
    click.option("--text-column", metavar="NAME",
                 help="The column of .csv and .jsonl rows with the text. [default: text]"),
    click.option("--delimiter", metavar="C",
                 help="What is between the cells of a .csv, or tab. [default: found out]"),
    click.option("--strict", is_flag=True, default=None,
                 help="Refuse an input of which anything would be left out."),
    click.option("--max-document-mb", metavar="N", type=float,
                 help="Refuse documents of more megabytes. [default: 16]"),
    click.option("--max-workers", metavar="N", type=int,
                 help="The most calls in flight, in the whole fleet. [default: no limit]"),
    click.option("--rpm", "--requests-per-minute", "requests_per_minute", metavar="N", type=float,
                 help="The most calls a minute, in the whole fleet. [default: no limit]"),
    click.option("--tpm", "--tokens-per-minute", "tokens_per_minute", metavar="N", type=float,
                 help="The most tokens a minute, in the whole fleet. [default: no limit]"),
    click.option("--timeout", "--timeout-s", "timeout_s", metavar="SECONDS", type=float,
                 help="The longest a call may take. [default: 120]"),
    click.option("--deadline", "--deadline-s", "deadline_s", metavar="SECONDS", type=float,
                 help="Begin no call after that, and aggregate what there is. [default: never]"),
    click.option("--max-attempts", metavar="N", type=int,
                 help="Calls a branch may make, the first included. [default: 5]"),
    click.option("--max-elapsed-s", metavar="SECONDS", type=float,
                 help="The longest that a branch may take in all. [default: as in docs/jobs.md]"),
    click.option("--base-wait-s", metavar="SECONDS", type=float,
                 help="The first wait before a call is made again; each doubles. [default: 0.5]"),
    click.option("--max-wait-s", metavar="SECONDS", type=float,
                 help="The longest single wait before a call is made again. [default: 60]"),
    click.option("--min-success", metavar="SHARE", type=float,
                 help="The share of branches, 0 to 1, that must succeed. [default: 0]"),
]  # fmt: skip


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that describe a job."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return click.argument(
        "inputs", nargs=-1, metavar="[JOB.yaml] [INPUT]...", shell_complete=complete_files
    )(command)


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
    """Have the error of a field, found out when its job is submitted, name the option or the file.

    Raises:
        SpecError: As it was raised, in the words of the command line.
    """
    try:
        yield
    except PromptError:
        # It quotes the prompt.
        raise
    except SpecError as error:
        raise _in_words(error, _job_file(inputs)[0], _given(options)) from None


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
    for name, value in canonical(given).items():
        # An option wins over its own field, not over the others of the same part.
        part = fields.get(name) if name in PARTS.values() else None
        fields[name] = {**part, **value} if isinstance(part, dict) else value
    if inputs:
        fields["inputs"] = inputs
    if "model" not in fields:
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
    option = next((name for name in (inner, root) if name in given), None)
    if option is None and job is not None:
        return SpecError(error.reason, field=f"{job}: {error.field}")
    reason = _with_options(error.reason, _OPTION_OF if job is None else given)
    return SpecError(reason, field=_OPTION_OF.get(option or root, error.field))


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
    base = fields.get("base_dir")
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
            str(path.parent / one) if isinstance(one, str) and one != "-" else one for one in inputs
        ]
    return fields


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "aspects" in given:
        given["aspects"] = _aspects(given["aspects"])
    return given


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
