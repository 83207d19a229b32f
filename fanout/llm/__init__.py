"""Models: the protocol, the provider adapters, Python functions as models, and a fake."""

from fanout.llm.base import LLM, LLMReply, LLMRequest
from fanout.llm.fake import FakeLLM
from fanout.llm.registry import context_tokens, make_llm

__all__ = ["LLM", "FakeLLM", "LLMReply", "LLMRequest", "context_tokens", "make_llm"]
