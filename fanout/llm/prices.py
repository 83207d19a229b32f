"""The prices and context windows of models: what the user gave, else what genai-prices knows.

The data come with that package: nothing is fetched.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from fanout.core.model_names import ANY_MODEL
from fanout.policy.pricing import FREE, Price

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fanout.core.prices import PriceSpec
    from fanout.core.spec import RunSpec

__all__ = ["is_own", "price_of", "unpriced", "window_of"]

# The provider of a prefix as genai-prices names it, and where its address is set.
_PROVIDERS = {
    "openai": ("openai", "OPENAI_BASE_URL"),
    "anthropic": ("anthropic", "ANTHROPIC_BASE_URL"),
    "gemini": ("google", "GEMINI_BASE_URL"),
}
# Some prices change with the time of day, and new ones begin on a date.
_SLOT_S = 1800
# Open weights, which only other servers than the provider's own serve.
_OPEN_WEIGHTS = "gpt-oss"

# The share of the price of realtime where genai-prices has none for a lane: half for what waits up to
# a day, and OpenAI's and Google's flex is priced as their batch. See
# https://developers.openai.com/api/docs/guides/batch and /flex-processing,
# https://platform.claude.com/docs/en/build-with-claude/batch-processing,
# https://ai.google.dev/gemini-api/docs/batch-api, https://azure.microsoft.com/pricing (Global Batch).
_HALF = 0.5
_HALVED = {
    "batch": {"openai", "azure", "anthropic", "google"},
    "flex": {"openai", "azure", "google"},
}
# These halve also the price of what a cache served; for the others it is not half again.
_HALVE_ALL = frozenset({"anthropic"})
_CONTEXTS = {"flex": {"service_tier": "flex"}, "batch": {"processing": "batch"}}

# The names of the parts of a price here and in genai-prices.
_PARTS = {
    "input_mtok": "input_mtok",
    "output_mtok": "output_mtok",
    "cached_input_mtok": "cache_read_mtok",
    "cache_write_mtok": "cache_write_mtok",
}
# The windows of these families have room for a prompt and, apart from it, for the longest answer
# (https://developers.openai.com/api/docs/models: "400,000 context window, 272,000 max input").
_APART = ("gpt-5", "gpt-6")
_APART_FROM_TOKENS = 400_000
_LONGEST_ANSWER_TOKENS = 128_000
# What genai-prices leaves out, by the providers' model pages; longest prefix first.
_WINDOWS = {"google": {"gemini-": 1_048_576}, "anthropic": {"claude-": 200_000}}


class _Listed(NamedTuple):
    """A model in genai-prices, with the provider whose price list has it."""

    provider: str
    name: str
    model: Any
    is_own: bool


def is_own(model: str) -> bool:
    """Say whether calls of a model run on the machines of the user, and cost nothing."""
    return model in ("local", "fake") or model.startswith("fake?")


def price_of(model: str, given: Mapping[str, PriceSpec] | None = None) -> Price | None:
    """Return the price of a model; None if it is unknown.

    The first of these that has one: the job, the file of ``FANOUT_PRICES``, and genai-prices. A model
    behind another address than its provider's own has the price of that address's provider, if it is
    known, else that of its name.

    Args:
        model: The model's string.
        given: The prices of the job.

    Raises:
        SettingsError: The file of ``FANOUT_PRICES`` cannot be used.
    """
    own = _given(model, given) if given else None
    path = os.environ.get("FANOUT_PRICES")
    if own is None and path:
        from fanout.core.prices import read_prices

        own = _given(model, read_prices(path))
    if own is None and is_own(model):
        return FREE
    known = _known(model, _address(model), _slot())
    provider, _ = _PROVIDERS.get(model.partition("/")[0], ("", ""))
    return known if own is None else _of_user(own, provider, known)


def unpriced(spec: RunSpec) -> Iterator[str]:
    """Yield a line for the models of a job whose price is unknown; functions may report their costs."""
    named = [
        model for model in spec.all_models if model.partition("/")[0] in (*_PROVIDERS, "litellm")
    ]
    unknown = [model for model in named if price_of(model, spec.price) is None]
    if unknown:
        yield (
            f"the price of {', '.join(unknown)} is not known, and so the cost will not be: give it as "
            "price in the job (--price), or in the file of FANOUT_PRICES"
        )


def window_of(model: str) -> int | None:
    """Return the context window of a provider's model in tokens; None if it is unknown."""
    return _window(model, _address(model))


def _given(model: str, prices: Mapping[str, PriceSpec]) -> PriceSpec | None:
    return prices.get(model) or prices.get(ANY_MODEL)


def _slot() -> int:
    return int(time.time() // _SLOT_S)


def _address(model: str) -> str | None:
    """Return the address that the variables of this process give for a model's provider."""
    _, variable = _PROVIDERS.get(model.partition("/")[0], (None, None))
    return os.environ.get(variable) or None if variable else None


@lru_cache(maxsize=256)
def _of_user(spec: PriceSpec, provider: str, known: Price | None) -> Price:
    """Return a price that the user gave; what it leaves out is in proportion to the known price."""
    parts = {name: getattr(spec, name) for name in _PARTS}
    if known is not None and known.input_mtok:
        for name in ("cached_input_mtok", "cache_write_mtok"):
            listed = getattr(known, name)
            if parts[name] is None and listed is not None:
                parts[name] = spec.input_mtok * listed / known.input_mtok
    price = Price(**parts, is_given=True)
    lanes: dict[str, Price | None] = {}
    for lane, halved in _HALVED.items():
        share, listed = getattr(spec, lane), known and getattr(known, lane)
        if share is not None:
            lanes[lane] = structs.replace(price, **_times(price, share))
        elif known is not None and listed is not None:
            lanes[lane] = structs.replace(price, **_alike(price, known, listed))
        elif provider in halved:
            lanes[lane] = _halved(price, provider)
    return structs.replace(price, **lanes)


def _times(price: Price, share: float) -> dict[str, float | None]:
    parts = {name: getattr(price, name) for name in _PARTS}
    return {name: value if value is None else value * share for name, value in parts.items()}


def _alike(price: Price, known: Price, listed: Price) -> dict[str, float | None]:
    """Return a price changed in the proportion in which a lane of its known price is changed."""
    parts = {}
    for name in _PARTS:
        value, before, after = (getattr(one, name) for one in (price, known, listed))
        is_changed = value is not None and before and after is not None
        parts[name] = value * after / before if is_changed else value
    return parts


@lru_cache(maxsize=256)
def _known(model: str, address: str | None, slot: int) -> Price | None:
    found = _listed(model, address)
    if found is None or (not found.is_own and _OPEN_WEIGHTS in found.name):
        return None
    now = datetime.fromtimestamp(slot * _SLOT_S, tz=UTC)
    standard = found.model.get_prices(now)
    price = _price(standard.__dict__)
    if price is None:
        return None
    lanes = {}
    for lane, context in _CONTEXTS.items():
        own = found.model.get_prices(now, context).__dict__
        if own != standard.__dict__:
            lanes[lane] = _price(own)
        elif found.provider in _HALVED[lane]:
            # OpenAI prices flex as batch.
            listed = found.model.get_prices(now, _CONTEXTS["batch"]).__dict__
            is_listed = listed != standard.__dict__
            lanes[lane] = _price(listed) if is_listed else _halved(price, found.provider)
    return structs.replace(price, **lanes)


def _listed(model: str, address: str | None) -> _Listed | None:
    """Return a model's entry in the data."""
    prefix, _, name = model.partition("/")
    if prefix not in (*_PROVIDERS, "litellm"):
        return None
    # The import takes some 0.2 s, and loads an HTTP client, which nobody uses.
    from genai_prices.data_snapshot import find_provider_by_id, get_snapshot

    snapshot = get_snapshot()
    if prefix == "litellm":
        prefix, _, name = name.partition("/")
        provider = find_provider_by_id(snapshot.providers, prefix) if name else None
        is_known = provider is not None
    elif prefix in _PROVIDERS and name:
        provider = find_provider_by_id(snapshot.providers, _PROVIDERS[prefix][0])
        is_known = True
        if address is not None:
            try:
                provider = snapshot.find_provider(None, None, address)
            except LookupError:
                # A proxy, or a server of the user: the name says whose model it is.
                is_known = False
    else:
        return None
    if provider is None:
        return None
    entry = provider.find_model(name, all_providers=snapshot.providers)
    if entry is None:
        return None
    return _Listed(provider=provider.id, name=name, model=entry, is_own=is_known)


def _price(listed: Mapping[str, Any]) -> Price | None:
    """Return the price that genai-prices lists; None if it has no price of prompts or answers."""
    parts = {name: listed.get(theirs) for name, theirs in _PARTS.items()}
    if parts["input_mtok"] is None or parts["output_mtok"] is None:
        return None
    starts = chain.from_iterable(
        (tier.start for tier in getattr(part, "tiers", ())) for part in parts.values()
    )
    longer = tuple((above, Price(**_rates(parts, above + 1))) for above in sorted(set(starts)))
    return Price(**_rates(parts, 0), longer=longer)


def _rates(parts: Mapping[str, Any], input_tokens: int) -> dict[str, Any]:
    return {name: _rate(part, input_tokens) for name, part in parts.items()}


def _rate(part: Any, input_tokens: int) -> float | None:
    """Return the price of a million tokens in a call whose prompt has ``input_tokens``."""
    if part is None:
        return None
    if not hasattr(part, "tiers"):
        return float(part)
    reached = (tier.price for tier in reversed(part.tiers) if input_tokens > tier.start)
    return float(next(reached, part.base))


def _halved(price: Price, provider: str) -> Price:
    """Return the price of a lane at half the price of realtime, by the rule of a provider."""
    halves: dict[str, Any] = _times(price, _HALF)
    if provider not in _HALVE_ALL and price.cached_input_mtok is not None:
        halves["cached_input_mtok"] = min(price.cached_input_mtok, halves["input_mtok"])
    longer = tuple((above, _halved(one, provider)) for above, one in price.longer)
    return structs.replace(price, **halves, longer=longer)


@lru_cache(maxsize=256)
def _window(model: str, address: str | None) -> int | None:
    # The window is the model's, at any address.
    found = _listed(model, address) or (_listed(model, None) if address else None)
    if found is not None and found.model.context_window:
        tokens = int(found.model.context_window)
        is_apart = found.name.rpartition("/")[2].startswith(_APART) and tokens >= _APART_FROM_TOKENS
        return tokens - _LONGEST_ANSWER_TOKENS if is_apart else tokens
    prefix, _, name = model.removeprefix("litellm/").partition("/")
    provider = _PROVIDERS.get(prefix, (prefix, ""))[0]
    known = _WINDOWS.get(provider, {})
    return next((tokens for start, tokens in known.items() if name.startswith(start)), None)
