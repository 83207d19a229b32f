"""Ask an LLM the same question about very many documents, and get one answer at the end."""

from fanout.client import Client
from fanout.errors import (
    AmbiguousRunError,
    BrokerError,
    EmbeddedError,
    FanoutError,
    InputError,
    LLMError,
    ModelError,
    PromptError,
    RunError,
    SettingsError,
    SpecError,
    UnknownRunError,
    WaitTimeoutError,
    WireVersionError,
)
from fanout.handle import Run
from fanout.llm import LLM, FakeLLM, LLMReply, LLMRequest
from fanout.parallel import ParallelCalls
from fanout.results import BranchError, Output, ReduceError, Result, Status
from fanout.runs import Chunk, Document, ErrorKind, RunStatus, Usage
from fanout.spec import RateSpec, RetrySpec, RunSpec

__all__ = [
    "LLM",
    "AmbiguousRunError",
    "BranchError",
    "BrokerError",
    "Chunk",
    "Client",
    "Document",
    "EmbeddedError",
    "ErrorKind",
    "FakeLLM",
    "FanoutError",
    "InputError",
    "LLMError",
    "LLMReply",
    "LLMRequest",
    "ModelError",
    "Output",
    "ParallelCalls",
    "PromptError",
    "RateSpec",
    "ReduceError",
    "Result",
    "RetrySpec",
    "Run",
    "RunError",
    "RunSpec",
    "RunStatus",
    "SettingsError",
    "SpecError",
    "Status",
    "UnknownRunError",
    "Usage",
    "WaitTimeoutError",
    "WireVersionError",
]
