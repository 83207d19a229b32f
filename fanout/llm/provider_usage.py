"""Reads the usage of a call in the forms in which providers report it.

A count that is missing or makes no sense is unknown. Each returns all tokens of the prompt as
``input_tokens`` and all of the answer, reasoning included, as ``output_tokens``.
"""

from __future__ import annotations

from typing import Any

from fanout.core.records import Usage
from fanout.llm.usage import cost_usd, token_count

__all__ = ["anthropic_usage", "gemini_usage", "openai_usage"]

# Where servers put what OpenAI calls prompt_tokens_details.cached_tokens: DeepSeek, Moonshot, and
# proxies in front of Anthropic.
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
_WRITTEN = ("cache_write_tokens", "cache_creation_tokens")


def openai_usage(counts: Any) -> Usage:
    """Return the usage in a chat completion of OpenAI or a compatible server.

    Args:
        counts: The ``usage`` of the completion: a mapping, or an object with these attributes.
    """
    prompt, answer = (_count(counts, name) for name in ("prompt_tokens", "completion_tokens"))
    of_prompt, of_answer = (
        _part(counts, name) for name in ("prompt_tokens_details", "completion_tokens_details")
    )
    cached = _first(_count(of_prompt, "cached_tokens"), *(_count(counts, one) for one in _CACHED))
    written = _first(
        *(_count(of_prompt, one) for one in _WRITTEN), _count(counts, "cache_creation_input_tokens")
    )
    reasoning = _first(_count(of_answer, "reasoning_tokens"), _count(counts, "reasoning_tokens"))
    prompt, answer, reasoning = _with_total(
        counts, prompt, answer, reasoning, in_cache=(cached or 0) + (written or 0)
    )
    return Usage(
        calls=1,
        input_tokens=prompt,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=answer,
        reasoning_tokens=reasoning,
        cost_usd=_reported_cost(counts),
    )


def _with_total(
    counts: Any, prompt: int | None, answer: int | None, reasoning: int | None, *, in_cache: int
) -> tuple[int | None, int | None, int | None]:
    """Return tokens of the prompt, the answer and reasoning, with those that only the total has.

    xAI, and Gemini behind OpenAI's interface, count reasoning beside ``completion_tokens``; some
    proxies in front of Anthropic count cached tokens beside ``prompt_tokens``.
    """
    total = _count(counts, "total_tokens")
    if total is None or prompt is None or answer is None or total <= prompt + answer:
        return prompt, answer, reasoning
    beside = total - prompt - answer
    if in_cache and beside == in_cache:
        return prompt + beside, answer, reasoning
    if reasoning in (None, beside):
        return prompt, answer + beside, beside
    return prompt, answer, reasoning


def _reported_cost(counts: Any) -> float | None:
    """Return the US dollars that a server says it bills, as OpenRouter and Perplexity do.

    Sources: OpenRouter's page on usage accounting (with a key of the user's own, ``cost`` is
    OpenRouter's fee alone), and Perplexity's API reference.
    """
    cost = _part(counts, "cost")
    if isinstance(cost, dict):
        return cost_usd(cost.get("total_cost"))
    billed = cost_usd(cost)
    if billed is None or _part(counts, "is_byok") is not True:
        return billed
    upstream = cost_usd(_part(_part(counts, "cost_details"), "upstream_inference_cost"))
    return None if upstream is None else billed + upstream


def anthropic_usage(counts: Any) -> Usage:
    """Return the usage in a message of Anthropic's API.

    It counts the tokens of the prompt that it read from a cache or wrote to one apart; without a
    count, or with null, there are none. fanout asks for caches of five minutes, so that all writes
    have one price.
    """
    counts = counts if isinstance(counts, dict) else {}
    plain = token_count(counts.get("input_tokens"))
    kinds = counts.get("cache_creation")
    kinds = list(kinds.values()) if isinstance(kinds, dict) else []
    written = counts.get("cache_creation_input_tokens")
    parts = [
        token_count(counts.get("cache_read_input_tokens") or 0),
        _sum(*map(token_count, kinds)) if written is None else token_count(written or 0),
    ]
    cached, written = parts if plain is not None else (None, None)
    return Usage(
        calls=1,
        input_tokens=_sum(plain, cached, written),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=token_count(counts.get("output_tokens")),
        reasoning_tokens=_count(counts.get("output_tokens_details"), "thinking_tokens"),
    )


def gemini_usage(counts: Any) -> Usage:
    """Return the usage in a reply of Gemini's API, which leaves out counts of 0.

    Thoughts are billed as output, and the prompts of tools as input.
    """
    counts = counts if isinstance(counts, dict) else {}
    is_given = "promptTokenCount" in counts

    def count(name: str) -> int | None:
        return token_count(counts.get(name, 0)) if is_given else None

    thoughts = count("thoughtsTokenCount")
    return Usage(
        calls=1,
        input_tokens=_sum(count("promptTokenCount"), count("toolUsePromptTokenCount")),
        cached_input_tokens=count("cachedContentTokenCount"),
        cache_write_tokens=0 if is_given else None,
        output_tokens=_sum(count("candidatesTokenCount"), thoughts),
        reasoning_tokens=thoughts,
    )


def _sum(*counts: int | None) -> int | None:
    return None if None in counts else sum(one or 0 for one in counts)


def _first(*counts: int | None) -> int | None:
    return next((one for one in counts if one is not None), None)


def _count(holder: Any, name: str) -> int | None:
    return token_count(_part(holder, name))


def _part(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
