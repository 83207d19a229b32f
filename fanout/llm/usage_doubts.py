"""Which counts of tokens in replies are learnt from.

A provider may report any number. A prompt has hardly more tokens than bytes, and an answer hardly more
than its text and the reasoning that is counted apart. Some servers put texts of their own into prompts, or
count reasoning without a word: then many of the counts are greater, and not one alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.tokens import utf8_bytes
from fanout.llm.call_bounds import longest_answer, prompt_tokens_at_most
from fanout.llm.registry import known_context_tokens

if TYPE_CHECKING:
    from fanout.core.records import Usage
    from fanout.llm.base import LLMReply, LLMRequest

__all__ = ["UsageDoubts"]

# Odd counts are believed when there were so many among the latest calls, of which older ones count less: one
# that comes alone is none of the model's habits.
_HABIT = 2.5
_FADES = 31 / 32
# The longest prompt, and the longest answer, of a model whose window is unknown.
_MOST_TOKENS = 131_072
# The marks of an answer's end, of its reasoning and of a call of a tool.
_ADDED_TO_ANSWER_TOKENS = 64


class UsageDoubts:
    """What counts of tokens one model's replies have, and which of them are believed.

    Args:
        model: The model.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._odd_prompts = self._odd_answers = 0.0

    def saw(self, request: LLMRequest, reply: LLMReply) -> None:
        """Note whether the counts of a reply are odd."""
        prompt, answer = reply.usage.input_tokens, reply.usage.output_tokens
        if prompt is not None:
            is_odd = prompt > prompt_tokens_at_most(request)
            self._odd_prompts = self._odd_prompts * _FADES + is_odd
        if answer is not None:
            is_odd = answer > self._likely_answer(reply)
            self._odd_answers = self._odd_answers * _FADES + is_odd

    def believed(self, request: LLMRequest, reply: LLMReply) -> Usage:
        """Return the usage of a reply, without a count of its prompt or answer that is not believed."""
        usage = reply.usage
        doubted: dict[str, None] = {}
        if not self._believes_prompt(request, usage.input_tokens):
            doubted["input_tokens"] = None
        if not self._believes_answer(request, reply):
            doubted["output_tokens"] = None
        return structs.replace(usage, **doubted) if doubted else usage

    def _believes_prompt(self, request: LLMRequest, tokens: int | None) -> bool:
        if tokens is None or tokens <= prompt_tokens_at_most(request):
            return True
        most = known_context_tokens(self._model) or _MOST_TOKENS
        return tokens <= most and self._odd_prompts >= _HABIT

    def _believes_answer(self, request: LLMRequest, reply: LLMReply) -> bool:
        tokens = reply.usage.output_tokens
        if tokens is None or tokens <= self._likely_answer(reply):
            return True
        return tokens <= self._longest(request, reply) and self._odd_answers >= _HABIT

    def _likely_answer(self, reply: LLMReply) -> int:
        """Return the most tokens that an answer has if all its reasoning is counted apart."""
        reasoning = min(reply.usage.reasoning_tokens or 0, self._longest_untold)
        return utf8_bytes(reply.text) + reasoning + _ADDED_TO_ANSWER_TOKENS

    @property
    def _longest_untold(self) -> int:
        model = self._model
        return longest_answer(model) or known_context_tokens(model) or _MOST_TOKENS

    def _longest(self, request: LLMRequest, reply: LLMReply) -> int:
        """Return the most tokens that an answer can have."""
        if request.max_tokens is None or reply.usage.reasoning_tokens:
            # Some servers count reasoning beside the limit.
            return self._longest_untold
        return request.max_tokens + _ADDED_TO_ANSWER_TOKENS
