"""Prices as users give them: in a job, or in a file for all jobs of a process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)

from fanout.core.errors import SettingsError, SpecError
from fanout.core.field_words import first_error, shown, wrong_value
from fanout.core.job_files import load_mapping
from fanout.core.model_names import ANY_MODEL
from fanout.core.spec_fields import NUMBER, PART_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

__all__ = ["JobPrices", "PriceSpec", "Prices", "read_prices", "unasked_prices"]

_Dollars = Annotated[float, Field(ge=0, le=1_000_000), NUMBER]


def _share(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError("must be a share of the price, from 0 to 1")
    return value


_Share = Annotated[float | None, Field(allow_inf_nan=False), AfterValidator(_share), NUMBER]


class PriceSpec(BaseModel):
    """The price of a model, in US dollars per million tokens.

    A part that is None is to the price of the prompt as in the known price of the model; if that is
    unknown, it costs as much as the prompt.

    Attributes:
        input_mtok: Of prompts.
        output_mtok: Of answers, reasoning included.
        cached_input_mtok: Of what the provider's cache served of prompts.
        cache_write_mtok: Of what was written to that cache.
        flex: The share of these prices (0 to 1) that a call in the flex lane costs.
        batch: The share of these prices that a call in the batch lane costs.
    """

    model_config = PART_CONFIG

    input_mtok: _Dollars
    output_mtok: _Dollars
    cached_input_mtok: Annotated[float | None, Field(ge=0, le=1_000_000), NUMBER] = None
    cache_write_mtok: Annotated[float | None, Field(ge=0, le=1_000_000), NUMBER] = None
    flex: _Share = None
    batch: _Share = None


def _by_model(value: object) -> object:
    """Return prices by model; a single price is that of any model."""
    if isinstance(value, Mapping) and value:
        names = PriceSpec.model_fields
        if any(name in names for name in value) or not any(
            isinstance(one, (Mapping, PriceSpec)) for one in value.values()
        ):
            return {ANY_MODEL: value}
    return {ANY_MODEL: value} if isinstance(value, PriceSpec) else value


Prices = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=512)], PriceSpec],
    BeforeValidator(_by_model),
]


def _not_empty(value: object, info: ValidationInfo) -> object:
    # In the store, a job without prices has none.
    if value == {} and info.mode == "python":
        raise ValueError("must have input_mtok and output_mtok, or such prices by model")
    return value


# The prices of a job, as they are given.
JobPrices = Annotated[Prices, BeforeValidator(_not_empty)]


def unasked_prices(given: object, models: Iterable[str]) -> list[str]:
    """Return the models of the prices of a job, as they were given, that the job does not ask."""
    prices = _by_model(given)
    names = prices if isinstance(prices, Mapping) else ()
    return sorted({str(name) for name in names} - {ANY_MODEL, *models})


_PRICES: TypeAdapter[dict[str, PriceSpec]] = TypeAdapter(Prices)


@lru_cache(maxsize=8)
def read_prices(path: str) -> dict[str, PriceSpec]:
    """Return the prices by model in a YAML file, which a process reads once.

    Raises:
        SettingsError: It cannot be read, or a price in it is wrong; the message says which.
    """
    try:
        return _PRICES.validate_python(load_mapping(Path(path), "a file of prices", "models"))
    except SpecError as error:
        raise SettingsError(f"FANOUT_PRICES: {error}") from None
    except ValidationError as error:
        first = first_error(error)
        field = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"FANOUT_PRICES: {path}: {field}: {_words(first)}") from None


def _words(error: ErrorDetails) -> str:
    names = ", ".join(PriceSpec.model_fields)
    if error["type"] == "extra_forbidden":
        return f"there is no such field (known: {names})"
    if error["type"] == "missing":
        return "is required"
    return f"{wrong_value(error)} (got {shown(error['input'])})"
