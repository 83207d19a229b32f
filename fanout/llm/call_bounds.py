"""The most that a call can use: an upper bound, not an estimate, as budgets need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.asks import asks_of
from fanout.core.tokens import utf8_bytes
from fanout.llm.callables import CallableLLM, takes_prompt_only
from fanout.llm.prices import price_of
from fanout.llm.registry import known_context_tokens
from fanout.policy.budgets import most_of_call
from fanout.policy.pricing import priced

if TYPE_CHECKING:
    from fanout.core.budgets import Amounts, BudgetLimits
    from fanout.core.lanes import Lane
    from fanout.core.records import Usage
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.policy.pricing import Price

__all__ = ["CallBounds", "longest_answer", "prompt_tokens_at_most", "unkept"]

# The longest answers of models in tokens, reasoning included, as the providers' model pages give
# them; the first prefix that fits. Sources: https://developers.openai.com/api/docs/models,
# https://ai.google.dev/gemini-api/docs/models,
# https://platform.claude.com/docs/en/about-claude/models/overview.
_LONGEST = {
    "openai/gpt-5-chat": 16_384,
    "openai/gpt-5-pro": 272_000,
    "openai/gpt-5": 128_000,
    "openai/gpt-4.1": 32_768,
    "openai/gpt-4o": 16_384,
    "openai/gpt-4-turbo": 4_096,
    "openai/gpt-3.5": 4_096,
    "openai/o1-mini": 65_536,
    "openai/o1-preview": 32_768,
    "openai/o1": 100_000,
    "openai/o3": 100_000,
    "openai/o4": 100_000,
    # The adapter asks for no longer ones.
    "anthropic/claude": 128_000,
    "gemini/gemini-1": 8_192,
    "gemini/gemini-2.0": 8_192,
    "gemini/gemini": 65_536,
    "local": 1_024,
}
# What a server adds to a prompt: marks of its messages, a system prompt of its own, and the frame in
# which it shows a schema to the model.
_ADDED_TOKENS = 256
_ADDED_TO_SCHEMA_TOKENS = 1_024
_ADDED_TO_MESSAGE_TOKENS = 16
_IN_JOB = (
    "as price (input_mtok and output_mtok, in dollars per million tokens), or in the file of "
    "FANOUT_PRICES"
)
_OF_WORKERS = "in the file of FANOUT_PRICES where the workers run; a job's own price does not count"


def longest_answer(model: str) -> int | None:
    """Return the most tokens that an answer of a model can have, if the table of models has them."""
    name = model.removeprefix("litellm/")
    return next((tokens for prefix, tokens in _LONGEST.items() if name.startswith(prefix)), None)


def _is_fake(model: str) -> bool:
    return model == "fake" or model.startswith("fake?")


def prompt_tokens_at_most(request: LLMRequest, *, has_frame: bool = True) -> int:
    """Return the most tokens that the prompt of a request can have.

    A tokenizer makes at most one token of a byte. ``has_frame``: whether a server adds something.
    """
    turns = request.turns
    if turns:
        size = sum(map(utf8_bytes, request.texts))
    else:
        size = utf8_bytes(request.prompt)
        if request.system:
            size += utf8_bytes(request.system)
    if request.shape is not None:
        size += (1 + len(turns)) * request.shape.most_bytes + _ADDED_TO_SCHEMA_TOKENS
    return size + has_frame * (_ADDED_TOKENS + 2 * len(turns) * _ADDED_TO_MESSAGE_TOKENS)


class CallBounds:
    """The most that each call of a job to a model can use.

    Args:
        spec: The job.
        model: The model.
        llm: The model as it is called, which may know its longest answer; None if it is not at hand.
        trusts_job: Whether the prices that the job gives count: not for what the operator limits.

    Attributes:
        price: The price of the model; None if it is unknown.
    """

    def __init__(
        self, spec: RunSpec, model: str, llm: LLM | None = None, *, trusts_job: bool = True
    ) -> None:
        of_job = price_of(model, spec.price)
        self.price: Price | None = of_job if trusts_job else price_of(model)
        self._prices_anew = self.price != of_job
        self._where = _IN_JOB if trusts_job else _OF_WORKERS
        self._model = model
        self._is_fake = _is_fake(model)
        self._llm = llm
        self._own_longest = getattr(llm, "longest_answer_tokens", None)
        self._window = known_context_tokens(model)
        self._longest = longest_answer(model)

    def answer_tokens(self, request: LLMRequest | None, max_tokens: int | None) -> int | None:
        """Return the most tokens of an answer; None if they are unknown."""
        if self._own_longest is not None and request is not None:
            return int(self._own_longest(request))
        return max_tokens or self._longest or self._window

    def most(self, request: LLMRequest) -> Amounts:
        """Return the most that a call can use; what is unknown counts as nothing."""
        prompt_tokens = prompt_tokens_at_most(request, has_frame=not self._is_fake)
        answer_tokens = self.answer_tokens(request, request.max_tokens)
        return most_of_call(prompt_tokens, answer_tokens, price=self.price, lane=request.lane)

    def least(self, prompt_bytes: int, max_tokens: int | None, lane: Lane) -> Amounts:
        """Return what a budget must have room for if any call is to fit into it.

        Args:
            prompt_bytes: The bytes that all prompts have.
            max_tokens: The longest answer that the job allows; None if it sets no limit.
            lane: The cheapest lane of the calls.
        """
        is_fake = self._is_fake
        # What a fake answers goes by its prompt.
        answer = max_tokens or (1 if is_fake else self.answer_tokens(None, None))
        prompt_tokens = prompt_bytes + (not is_fake) * _ADDED_TOKENS
        return most_of_call(prompt_tokens, answer, price=self.price, lane=lane)

    def own(self, usage: Usage, lane: Lane) -> Usage:
        """Return the usage of a call, which has its cost for the job, with its cost by these bounds."""
        if not self._prices_anew:
            return usage
        return priced(structs.replace(usage, cost_usd=None, at_least={}), self.price, lane)

    def unkept(
        self, limits: BudgetLimits, max_tokens: int | None, *, give: str = "max_tokens"
    ) -> tuple[str, str] | None:
        """Return the field of a budget that cannot be kept, and why; None if it can be.

        Args:
            limits: The budget.
            max_tokens: The longest answer that the job allows; None if it sets no limit.
            give: The field of the job with that limit.
        """
        model = self._model
        is_function = takes_prompt_only(model) or isinstance(self._llm, CallableLLM)
        if is_function and (limits.usd is not None or limits.tokens is not None):
            field = "usd" if limits.usd is not None else "tokens"
            return field, f"cannot be kept: what {model} uses is unknown; give a budget in calls"
        if limits.usd is not None and self.price is None:
            return "usd", (
                f"cannot be kept: the price of {model} is unknown; give it {self._where}"
            )
        needs_length = limits.tokens is not None or (
            limits.usd is not None and self.price is not None and not self.price.is_free
        )
        if needs_length and self.answer_tokens(None, max_tokens) is None:
            field = "usd" if limits.tokens is None else "tokens"
            return field, (f"cannot be kept: the longest answer of {model} is unknown; give {give}")
        return None


def unkept(spec: RunSpec, limits: BudgetLimits) -> tuple[str, str] | None:
    """Return the field of a job's budget that cannot be kept, and why; None if it can be."""
    lengths = [
        (model, ask.max_tokens, "max_tokens")
        for ask in asks_of(spec)
        for model in dict.fromkeys((*ask.models, *spec.fallback))
    ]
    lengths += [
        (reduce.model, reduce.max_tokens, reduce.field("aggregate_max_tokens"))
        for reduce in spec.called_reductions
    ]
    if spec.split == "model":
        splitting = (spec.split_model or spec.model, *spec.fallback)
        lengths += [
            (model, spec.split_max_tokens, "split_max_tokens") for model in dict.fromkeys(splitting)
        ]
    for model, max_tokens, name in lengths:
        problem = CallBounds(spec, model).unkept(limits, max_tokens, give=name)
        if problem is not None:
            return problem
    return None
