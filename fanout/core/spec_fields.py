"""The parts of a job, and the forms in which its fields may be given."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from fanout.core.budgets import LEAST_BUDGET, BudgetLimits, is_counted
from fanout.core.cells import with_point
from fanout.core.conditions import parse_condition
from fanout.core.errors import SpecError
from fanout.core.field_words import twice_in
from fanout.core.lanes import FLEX_TIMEOUT_S
from fanout.core.rate_limits import Rates

__all__ = [
    "NUMBER",
    "PART_CONFIG",
    "BudgetSpec",
    "Criteria",
    "Fallback",
    "JobBudget",
    "Models",
    "RateSpec",
    "RetrySpec",
    "as_delimiter",
    "as_encoding",
    "as_sheet",
    "as_tuple",
    "checked_condition",
    "patient",
    "pointed",
    "with_models",
]  # fmt: skip


def as_encoding(value: object) -> object:
    """Return an encoding of text by the name that Python gives it."""
    if value is None:
        return None
    try:
        name = codecs.lookup(value).name if isinstance(value, str) else ""
        # Some codecs turn bytes into bytes, or text into text.
        is_text = isinstance(b"ab".decode(name, "replace"), str)
    except (LookupError, ValueError):
        is_text = False
    if not is_text or not isinstance(value, str):
        msg = "must be an encoding of text, such as utf-8, utf-16-le, latin-1, cp1252 or shift_jis"
        raise ValueError(msg)
    return name


def as_delimiter(value: object) -> object:
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


def as_sheet(value: object) -> object:
    """Return the number of a sheet as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def pointed(name: str | None) -> str | None:
    """Return a name whose prefix may end in a colon with a point in its place."""
    return None if name is None else with_point(name)


def checked_condition(where: str | None) -> str | None:
    """Return a condition. Raises ValueError if it is none."""
    if where is not None:
        parse_condition(where)
    return where


def as_tuple(value: object) -> object:
    """Return a single string as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def _criteria(value: object, info: ValidationInfo) -> object:
    """Return criteria as a tuple, of which none is blank; a run that is stored may have some."""
    listed = as_tuple(value)
    if (
        info.mode != "json"
        and isinstance(listed, (list, tuple))
        and any(isinstance(one, str) and not one.strip() for one in listed)
    ):
        msg = "must not be empty: say what makes an answer good"
        raise ValueError(msg)
    return listed


Criteria = Annotated[tuple[str, ...], BeforeValidator(_criteria)]


def _as_names(value: object) -> object:
    """Return the names of models; a text may have several, with commas between them.

    The parameters of a model, after ``?``, may have commas of their own.
    """
    names = as_tuple(value)
    if not isinstance(names, (list, tuple)):
        return names
    found: list[object] = []
    for name in names:
        is_list = isinstance(name, str) and "," in name and "?" not in name
        found += [one.strip() for one in name.split(",")] if is_list else [name]
    return tuple(found)


def _names(why_once: str) -> BeforeValidator:
    """Return a check of a list of models, of which none is there twice, and why."""

    def as_names(value: object) -> object:
        names = _as_names(value)
        twice = twice_in(names) if isinstance(names, (list, tuple)) else None
        if twice is not None:
            msg = f"has {twice!r} twice: {why_once}"
            raise ValueError(msg)
        return names

    return BeforeValidator(as_names)


def with_models(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job with both the first model and all of several.

    ``model`` may be a list; one model, however it is given, is ``model`` alone.
    """
    model, models = _as_names(fields.get("model")), _as_names(fields.get("models"))
    if isinstance(model, (list, tuple)) and len(model) > 1 and not models:
        models = model
    if not isinstance(models, (list, tuple)) or not models:
        if isinstance(model, (list, tuple)) and len(model) == 1:
            return {**fields, "model": model[0], "models": ()}
        return fields
    if model not in (None, models[:1], tuple(models[:1]), models):
        msg = "give either model or models, and not both"
        raise SpecError(msg, field="models")
    return {**fields, "model": models[0], "models": models if len(models) > 1 else ()}


def patient(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job with a timeout that suits its lane, unless it has one."""
    if fields.get("lane") != "flex" or fields.get("timeout_s") is not None:
        return fields
    return {**fields, "timeout_s": FLEX_TIMEOUT_S}


_ModelName = Annotated[str, Field(min_length=1, max_length=512)]
Models = Annotated[tuple[_ModelName, ...], _names("samples asks one model several times")]
Fallback = Annotated[
    tuple[_ModelName, ...], _names("a model that gave no answer is not asked again")
]

# A number as Python, JSON and YAML have it: also one of numpy, and 4.0 as a whole number.
NUMBER = BeforeValidator(_number)
# JSON has no infinite numbers: a worker could not read them.
PART_CONFIG = ConfigDict(
    extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
)


class RetrySpec(BaseModel):
    """When a failed call is made again.

    Attributes:
        max_attempts: Calls of a branch that may fail for its own reasons. Calls that fail while
            the provider is down, or asks to wait, do not count. 1 allows one call and no retry.
        max_elapsed_s: Seconds that a branch may take from its first call, with all waits but those
            for a rate limit. It bounds the outages that a branch can survive.
        base_wait_s: The first wait, in seconds; each further wait doubles it.
        max_wait_s: The longest single wait, in seconds.
    """

    model_config = PART_CONFIG

    max_attempts: Annotated[int, Field(ge=1, le=100), NUMBER] = 5
    max_elapsed_s: Annotated[float, Field(gt=0), NUMBER] = 3_600.0
    base_wait_s: Annotated[float, Field(ge=0), NUMBER] = 0.5
    max_wait_s: Annotated[float, Field(ge=0), NUMBER] = 60.0


PromptOrder = Literal["auto", "document_first", "as_written"]


def _counted_usd(usd: float | None) -> float | None:
    """Return US dollars that a budget can count. Raises ValueError."""
    if usd is not None and not is_counted(usd):
        raise ValueError(LEAST_BUDGET)
    return usd


class BudgetSpec(BaseModel):
    """What the calls of a run may use together, those of its reduce and of its retries included.

    Attributes:
        usd: US dollars; None is no limit.
        calls: Calls, those that are made again included; None is no limit.
        tokens: Tokens of prompts and answers; None is no limit.
    """

    model_config = PART_CONFIG

    usd: Annotated[
        float | None, Field(gt=0, le=1_000_000), AfterValidator(_counted_usd), NUMBER
    ] = None
    calls: Annotated[int | None, Field(ge=1, le=1_000_000_000_000), NUMBER] = None
    tokens: Annotated[int | None, Field(ge=1, le=1_000_000_000_000_000), NUMBER] = None

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.usd is not None or self.calls is not None or self.tokens is not None

    @property
    def limits(self) -> BudgetLimits:
        """The limits as a record."""
        return BudgetLimits.of(usd=self.usd, calls=self.calls, tokens=self.tokens)


def _not_empty(value: object, info: ValidationInfo) -> object:
    # In the store, a job without a budget has all of its fields.
    if value == {} and info.mode == "python":
        raise ValueError("must have usd, calls or tokens")
    return value


# The budget of a job, as it is given.
JobBudget = Annotated[BudgetSpec, BeforeValidator(_not_empty)]


class RateSpec(BaseModel):
    """The rate limits of the model for the whole fleet; all runs of a model share them.

    Attributes:
        requests_per_minute: Calls in a minute; None is no limit.
        tokens_per_minute: Tokens of prompts and answers in a minute; None is no limit.
    """

    model_config = PART_CONFIG

    requests_per_minute: Annotated[float | None, Field(gt=0), NUMBER] = None
    tokens_per_minute: Annotated[float | None, Field(gt=0), NUMBER] = None

    @property
    def rates(self) -> Rates:
        """The limits as a record."""
        return Rates(
            requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute
        )
