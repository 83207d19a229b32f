"""Does a provider's prompt cache make a shared prefix cheaper? A pure function of lengths and prices.

Sources: https://platform.openai.com/docs/guides/prompt-caching,
https://platform.claude.com/docs/en/build-with-claude/prompt-caching and
https://ai.google.dev/gemini-api/docs/caching
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.lanes import Lane
    from fanout.policy.pricing import Price

__all__ = ["CacheRules", "Prefix", "PromptCache", "cache_rules", "marked", "pays"]

# Tokens of the shortest prefix that a provider caches: the first name that fits.
_SHORTEST = {
    "anthropic": {
        "claude-opus-4-5": 4_096,
        "claude-opus-4-6": 4_096,
        "claude-haiku-4-5": 4_096,
        "claude-sonnet-4-6": 2_048,
        "claude-3-5-haiku": 2_048,
        "claude-3-haiku": 2_048,
    },
    "gemini": {"gemini-2.5-pro": 4_096, "gemini-3": 4_096},
}
_SHORTEST_OTHERS = 1_024
# Providers that cache by themselves, and those that cache what is marked.
_AUTOMATIC = frozenset({"openai", "azure", "gemini", "deepseek"})
_MARKED = frozenset({"anthropic"})
# The least share of the requests of a batch that find their prefix cached: they are processed in any
# order and at the same time. Anthropic tells of 30 % to 98 %.
_HITS = {"realtime": 1.0, "flex": 1.0, "batch": 0.3}
_MOST_MARKS = 4


class CacheRules(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider caches the prompts of a model.

    Attributes:
        shortest_tokens: The shortest prefix that it caches.
        is_marked: Whether it caches only what is marked.
        write: The price of a token that is written to the cache, as a multiple of another one's.
        read: The price of a token that is read from it, likewise.
    """

    shortest_tokens: int = _SHORTEST_OTHERS
    is_marked: bool = False
    write: float = 1.0
    read: float


class PromptCache(msgspec.Struct, frozen=True, kw_only=True):
    """What a call tells its provider of the prompt cache. It does not change the answer.

    Attributes:
        marks: The ends of the prefixes to cache, in characters of the user's message; 0 is the end of
            the system prompt.
        key: What calls with the same prefix have in common; None for nothing.
    """

    marks: tuple[int, ...] = ()
    key: str | None = None


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """What several prompts begin with.

    Attributes:
        tokens: Its length, with the system prompt.
        calls: The calls that share it.
        end: The number of its characters in the user's message; 0 is the end of the system prompt.
    """

    tokens: int
    calls: int
    end: int = 0


def cache_rules(model: str, price: Price | None) -> CacheRules | None:
    """Return how the prompts of a model are cached; None if that is unknown, or saves nothing.

    Args:
        model: The model's string.
        price: Its price.
    """
    if price is None or not price.input_mtok or price.of_cached >= price.input_mtok:
        return None
    is_litellm = model.startswith("litellm/")
    provider, _, name = model.removeprefix("litellm/").partition("/")
    # litellm sends no marks.
    if provider not in _AUTOMATIC and (is_litellm or provider not in _MARKED):
        return None
    shortest = _SHORTEST.get(provider, {}).items()
    return CacheRules(
        shortest_tokens=next(
            (tokens for prefix, tokens in shortest if name.startswith(prefix)), _SHORTEST_OTHERS
        ),
        is_marked=provider in _MARKED,
        write=price.of_written / price.input_mtok if provider in _MARKED else 1.0,
        read=price.of_cached / price.input_mtok,
    )


def pays(rules: CacheRules, prefix: Prefix, lane: Lane = "realtime") -> bool:
    """Say whether a cached prefix costs less than one that is sent afresh with each call.

    The first call writes it. The others read it, if they come after that: in a batch, only some do.
    """
    if prefix.tokens < rules.shortest_tokens or prefix.calls < 2:  # noqa: PLR2004 - one that shares
        return False
    hits = _HITS[lane]
    other = hits * rules.read + (1 - hits) * rules.write
    return rules.write + (prefix.calls - 1) * other < prefix.calls


def marked(
    rules: CacheRules, prefixes: Sequence[Prefix], lane: Lane = "realtime"
) -> tuple[int, ...]:
    """Return the ends of the prefixes to mark, each longer than the one before.

    Args:
        rules: How the provider caches.
        prefixes: The prefixes of one prompt, in any order.
        lane: How the calls are bought.
    """
    if not rules.is_marked:
        return ()
    return tuple(sorted({one.end for one in prefixes if pays(rules, one, lane)})[:_MOST_MARKS])
