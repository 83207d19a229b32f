"""The job specification: one model behind ``ParallelCalls``, the command line and YAML jobs."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fanout.core.cells import with_point
from fanout.core.conditions import parse_condition
from fanout.core.errors import SpecError
from fanout.core.field_effects import conflict
from fanout.core.field_names import ALIASES, PARTS, canonical
from fanout.core.rate_limits import Rates

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "RateSpec",
    "RetrySpec",
    "RunSpec",
    "load_job",
    "make_spec",
    "stored_spec",
]

SplitName = Literal["none", "lines", "tokens", "markdown", "sentences"]
ReduceName = Literal["none", "concat", "merge", "vote", "rank", "llm"]


def _encoding(value: object) -> object:
    """Return an encoding of text by the name that Python gives it."""
    if value is None:
        return None
    try:
        name = codecs.lookup(str(value)).name
        # Some codecs turn bytes into bytes, or text into text.
        is_text = isinstance(b"ab".decode(name, "replace"), str)
    except (LookupError, ValueError):
        is_text = False
    if not is_text or not isinstance(value, str):
        msg = "must be an encoding of text, such as utf-8, utf-16-le, latin-1, cp1252 or shift_jis"
        raise ValueError(msg)
    return name


def _delimiter(value: object) -> object:
    """Return a delimiter as one character, also if its name is given."""
    value = {"tab": "\t", "\\t": "\t"}.get(value, value) if isinstance(value, str) else value
    is_character = isinstance(value, str) and len(value) == 1
    if value is not None and (not is_character or str(value).isalnum() or str(value) in '"\r\n'):
        msg = "must be one character that is not a letter, digit or quote, or tab"
        raise ValueError(msg)
    return value


def _number(value: object) -> object:
    """Refuse what would otherwise be converted to a number: text, true and false."""
    if isinstance(value, bool):
        msg = "must not be true or false"
        raise ValueError(msg)  # noqa: TRY004 - pydantic adds the field to this one only
    if isinstance(value, str | bytes | bytearray):
        msg = "must be a number, not text"
        raise ValueError(msg)  # noqa: TRY004
    return value


def _sheet(value: object) -> object:
    """Return the number of a sheet as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _with_point(name: str | None) -> str | None:
    return None if name is None else with_point(name)


def _checked_condition(where: str | None) -> str | None:
    if where is not None:
        parse_condition(where)
    return where


def _as_tuple(value: object) -> object:
    """Return a single string as a tuple of one."""
    return (value,) if isinstance(value, str) else value


# A number as Python, JSON and YAML have it: also one of numpy, and 4.0 as a whole number.
_NUMBER = BeforeValidator(_number)
# JSON has no infinite numbers: a worker could not read them.
_PART_CONFIG = ConfigDict(
    extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
)


class RetrySpec(BaseModel):
    """When a failed call is made again.

    Attributes:
        max_attempts: Calls of a branch that may fail for its own reasons. Calls that fail while
            the provider is down, or asks to wait, do not count. 1 allows one call and no retry.
        max_elapsed_s: Seconds that a branch may take in total, waits included. It bounds the
            outages that a branch can survive.
        base_wait_s: The first wait, in seconds; each further wait doubles it.
        max_wait_s: The longest single wait, in seconds.
    """

    model_config = _PART_CONFIG

    max_attempts: Annotated[int, Field(ge=1, le=100), _NUMBER] = 5
    max_elapsed_s: Annotated[float, Field(gt=0), _NUMBER] = 3_600.0
    base_wait_s: Annotated[float, Field(ge=0), _NUMBER] = 0.5
    max_wait_s: Annotated[float, Field(ge=0), _NUMBER] = 60.0


class RateSpec(BaseModel):
    """The rate limits of the model for the whole fleet; all runs of a model share them.

    Attributes:
        requests_per_minute: Calls in a minute; None is no limit.
        tokens_per_minute: Tokens of prompts and answers in a minute; None is no limit.
    """

    model_config = _PART_CONFIG

    requests_per_minute: Annotated[float | None, Field(gt=0), _NUMBER] = None
    tokens_per_minute: Annotated[float | None, Field(gt=0), _NUMBER] = None

    @property
    def rates(self) -> Rates:
        """The limits as a record."""
        return Rates(
            requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute
        )


class RunSpec(BaseModel):
    """One fan-out / fan-in job.

    Attributes:
        inputs: Files, folders, globs, ``-`` for standard input, or ``run:ID`` for the outputs of
            another run; empty if documents come from memory.
        base_dir: The folder of relative inputs; None is the working directory of the client. A run
            stores it, so that its input can be read again from any directory.
        text_column: The column of rows that holds the text.
        delimiter: The character between the cells of a ``.csv`` file, or ``tab``; None detects it.
        sheet: The sheet of ``.xlsx`` files, by its name or its number from 1; None is the first.
        id_column: The column of rows that names their documents; None names them by their place.
        where: A condition that documents must meet, such as ``stars <= 2 and country = DE``; see
            ``fanout.core.conditions``.
        sample: The size of a random sample of the documents that meet ``where``, in the order of
            the input; ``seed`` (else 0) seeds it.
        limit: The number of documents after which the input ends: the first of the sample, if there
            is one.
        encoding: The encoding of text without a byte order mark, such as ``latin-1``; None is UTF-8.
        parse_timeout_s: Seconds after which a document that is parsed, such as a PDF, is given up.
        max_document_mb: The size in megabytes above which a document is refused.
        read_on: Who opens and parses the files of documents: the ``client``, or the ``workers``,
            which need to reach them under the same paths or URLs.
        strict: Refuse an input with a document that cannot be used, or a file of an unknown kind,
            instead of leaving it out.
        model: ``provider/model``, ``local``, ``fake``, or ``package.module:callable``.
        prompt: The template of each branch; ``{input}`` is the chunk.
        aspects: Named templates in place of ``prompt``; each is applied to every chunk.
        samples: The number of answers for each chunk and aspect.
        system: The system prompt.
        temperature: Sampling temperature; None uses the provider's default.
        max_tokens: The longest answer of a branch, in tokens; None uses the provider's default.
        seed: Seed of the first answer; answer ``n`` uses ``seed + n``. It also seeds ``sample``.
        stop: Strings that end an answer.
        output_format: ``json`` refuses an answer that is not JSON (kind ``invalid_output``).
        split: How a document becomes chunks.
        chunk_tokens: The largest chunk, in estimated tokens.
        chunk_overlap_tokens: The overlap of neighbouring chunks, in estimated tokens.
        reduce: How outputs become the aggregate. None is ``llm`` if ``aggregate_prompt`` is given,
            else ``none``.
        aggregate_prompt: The template of the LLM aggregate; ``{input}`` is the joined outputs.
        aggregate_max_tokens: The longest answer of an LLM aggregate, in tokens.
        group_by: ``document``, ``aspect`` or the name of a column: one aggregate for each value.
        context_tokens: The model's context window; None takes the known one, or a safe guess.
        min_success: The share of branches (0 to 1) that must succeed. A run in which no branch
            succeeds has failed, even with 0.
        max_workers: The most branches of this run in flight in the whole fleet; None is no cap.
        priority: The run's share of busy workers: a run of priority 4 gets four times as many of
            their places as one of priority 1. From 0.25 to 16.
        timeout_s: Seconds for one call, from its start to the last byte.
        rate: The rate limits of the model for the whole fleet.
        retries: When a failed call is made again.
        deadline_s: Seconds from the submission after which no branch is begun. The branches left
            fail as ``expired``, and the finished ones are aggregated. None is no deadline.
    """

    model_config = ConfigDict(**_PART_CONFIG, populate_by_name=True)

    inputs: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    base_dir: str | None = None
    text_column: str | None = None
    delimiter: Annotated[str | None, BeforeValidator(_delimiter)] = None
    sheet: Annotated[str | None, Field(min_length=1), BeforeValidator(_sheet)] = None
    id_column: Annotated[str | None, Field(min_length=1)] = None
    where: Annotated[str | None, AfterValidator(_checked_condition)] = None
    sample: Annotated[int | None, Field(ge=1), _NUMBER] = None
    limit: Annotated[int | None, Field(ge=1), _NUMBER] = None
    encoding: Annotated[str | None, BeforeValidator(_encoding)] = None
    parse_timeout_s: Annotated[float, Field(gt=0, le=3_600), _NUMBER] = 60.0
    max_document_mb: Annotated[float, Field(gt=0, le=256), _NUMBER] = 16.0
    strict: Annotated[bool, Field(strict=True)] = False
    read_on: Literal["client", "workers"] = "client"

    model: Annotated[
        str, Field(min_length=1, max_length=512, validation_alias=AliasChoices("model", "llm"))
    ]
    prompt: Annotated[
        str | None, Field(validation_alias=AliasChoices("prompt", "branch_prompt"))
    ] = None
    aspects: dict[str, str] = Field(default_factory=dict)
    samples: Annotated[int, Field(ge=1, le=10_000), _NUMBER] = 1
    system: str | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2), _NUMBER] = None
    max_tokens: Annotated[int | None, Field(ge=1), _NUMBER] = None
    seed: Annotated[int | None, _NUMBER] = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    output_format: Literal["text", "json"] = "text"

    split: SplitName = "none"
    chunk_tokens: Annotated[int, Field(ge=1), _NUMBER] = 1000
    chunk_overlap_tokens: Annotated[int, Field(ge=0), _NUMBER] = 0

    reduce: ReduceName | None = None
    aggregate_prompt: Annotated[
        str | None, Field(validation_alias=AliasChoices("aggregate_prompt", "aggregate"))
    ] = None
    aggregate_max_tokens: Annotated[int | None, Field(ge=1), _NUMBER] = None
    group_by: Annotated[str | None, Field(min_length=1), AfterValidator(_with_point)] = None
    context_tokens: Annotated[int | None, Field(ge=256), _NUMBER] = None

    min_success: Annotated[float, Field(ge=0, le=1), _NUMBER] = 0.0
    max_workers: Annotated[int | None, Field(ge=1), _NUMBER] = None
    priority: Annotated[float, Field(ge=0.25, le=16), _NUMBER] = 1.0
    timeout_s: Annotated[float, Field(gt=0), _NUMBER] = 120.0
    rate: RateSpec = RateSpec()
    retries: RetrySpec = RetrySpec()
    deadline_s: Annotated[float | None, Field(gt=0), _NUMBER] = None

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, fields: Any) -> Any:
        return canonical(fields) if isinstance(fields, Mapping) else fields

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        # Inside a validator, pydantic would wrap a SpecError and lose its field.
        problem = self._undecoded() or conflict(self)
        if problem:
            raise ValueError(problem)
        return self

    def _undecoded(self) -> str | None:
        for name in type(self).model_fields:
            if not _is_utf8(getattr(self, name)):
                return f"{name}: holds bytes that are not UTF-8 text (got {getattr(self, name)!r})"
        return None

    @property
    def reduction(self) -> ReduceName:
        """The name of the aggregator: ``reduce``, or the one that follows from the prompts."""
        return self.reduce or ("llm" if self.aggregate_prompt else "none")

    @property
    def prompts(self) -> dict[str | None, str]:
        """The branch templates by aspect; the single prompt has the aspect None."""
        if self.prompt:
            return {None: self.prompt}
        return {name: template for name, template in self.aspects.items()}  # noqa: C416 - widens

    @property
    def aspect_names(self) -> tuple[str | None, ...]:
        """The aspects in order; ``(None,)`` for a single prompt."""
        return tuple(self.prompts)

    @property
    def branches_per_chunk(self) -> int:
        """Aspects x samples."""
        return len(self.aspect_names) * self.samples


def _is_utf8(value: object) -> bool:
    """Say whether all strings in a field can be encoded; undecodable arguments of argv cannot."""
    if isinstance(value, dict):
        return all(_is_utf8(part) for part in (*value, *value.values()))
    if isinstance(value, tuple):
        return all(_is_utf8(part) for part in value)
    return not isinstance(value, str) or value.isascii() or _encodes(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_spec(**fields: Any) -> RunSpec:
    """Return the validated spec; fields that are None take their defaults.

    Raises:
        SpecError: A field is wrong; the message has its name, its value and the allowed values.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return RunSpec.model_validate(given)
    except ValidationError as error:
        raise _spec_error(error) from None


def stored_spec(data: str | bytes) -> RunSpec:
    """Return the spec of a run from its JSON in the store, with no field marked as given.

    The JSON has all fields, including the defaults. So a run that is submitted again is not
    refused for fields without effect.
    """
    spec = RunSpec.model_validate_json(data)
    spec.model_fields_set.clear()
    return spec


def load_job(path: Path) -> dict[str, Any]:
    """Return the fields of the YAML job file ``path``, without validation.

    Raises:
        SpecError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is a safe one
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the job file {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it has a character that YAML does not allow"
        hint = "; a text that begins with { must be in quotes" if _begins_braces(mark) else ""
        raise SpecError(f"{path}{where}: not valid YAML: {reason}{hint}") from None
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: a job file is a mapping of fields, not {type(fields).__name__}")
    return {str(name): value for name, value in fields.items()}


# As in YAML 1.2: YAML 1.1 wants 1.0e+6.
_EXPONENT = re.compile(r"\A[-+]?(?:\.\d+|\d+(?:\.\d*)?)[eE][-+]?\d+$", re.ASCII)


class _Loader(yaml.SafeLoader):
    """The safe YAML loader, except that a duplicate key is an error, and ``1e6`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - as it is called
        seen: set[object] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen and name != "<<":
                problem = f"the field {name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _begins_braces(mark: Any) -> bool:
    """Say whether the value on a line of YAML begins with a brace."""
    if mark is None or mark.buffer is None:
        return False
    line = mark.buffer.splitlines()[mark.line : mark.line + 1]
    return bool(line) and line[0].partition(":")[2].lstrip().startswith("{")


def _spec_error(error: ValidationError) -> SpecError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        if field:
            return SpecError(f"{message} (got {first['input']!r})", field=field)
        # An error of a model validator, which has the field in its message.
        field, _, message = message.partition(": ")
        return SpecError(message, field=field)
    if first["type"] == "string_type" and _is_braces(first["input"]):
        return SpecError(_UNQUOTED, field=field)
    if first["type"] == "extra_forbidden":
        return SpecError(_unknown_field(field), field=field)
    if first["type"] == "missing":
        return SpecError("is required", field=field)
    reason = first["msg"][:1].lower() + first["msg"][1:]
    return SpecError(f"{reason} (got {first['input']!r})", field=field)


_UNQUOTED = (
    "must be text, but YAML reads a value that begins with { as a mapping: put it in quotes, as "
    "'{input}', or in a block after |"
)


def _is_braces(value: object) -> bool:
    """Say whether a value is the mapping that YAML reads from an unquoted ``{input}``."""
    return isinstance(value, dict) and bool(value) and all(one is None for one in value.values())


def _unknown_field(field: str) -> str:
    parts: dict[str, type[BaseModel]] = {"retries": RetrySpec, "rate": RateSpec}
    known = parts.get(field.partition(".")[0], RunSpec).model_fields
    others = () if "." in field else (*ALIASES, *PARTS)
    near = get_close_matches(field.rpartition(".")[2], [*known, *others], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no such field{hint} (known: {', '.join(sorted(known))})"
