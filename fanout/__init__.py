"""Ask an LLM the same question about very many documents, and get one answer at the end.

Each name is imported when it is first used: `import fanout` is fast, and a caller that only makes a
spec does not load Celery.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.aggregators import Coverage, Source
    from fanout.client.client import Client
    from fanout.client.parallel import ParallelCalls
    from fanout.client.run import Run
    from fanout.core.errors import (
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
    from fanout.core.records import Chunk, Document, ErrorKind, RunStatus, Usage
    from fanout.core.spec import RunSpec
    from fanout.core.spec_fields import RateSpec, RetrySpec
    from fanout.llm import LLM, FakeLLM, LLMReply, LLMRequest
    from fanout.runs.branch_errors import BranchError
    from fanout.runs.branch_output import Output
    from fanout.runs.evaluation_result import Comparison, Evaluation, VariantEvaluation
    from fanout.runs.results import Result
    from fanout.runs.status import ReduceError, Status

__all__ = [
    "LLM",
    "AmbiguousRunError",
    "BranchError",
    "BrokerError",
    "Chunk",
    "Client",
    "Comparison",
    "Coverage",
    "Document",
    "EmbeddedError",
    "ErrorKind",
    "Evaluation",
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
    "Source",
    "SpecError",
    "Status",
    "UnknownRunError",
    "Usage",
    "VariantEvaluation",
    "WaitTimeoutError",
    "WireVersionError",
]

# The module of each name; the imports above are for type checkers only.
_NAMES = {
    "fanout.aggregators": ("Coverage", "Source"),
    "fanout.client.client": ("Client",),
    "fanout.core.errors": (
        "AmbiguousRunError",
        "BrokerError",
        "EmbeddedError",
        "FanoutError",
        "InputError",
        "LLMError",
        "ModelError",
        "PromptError",
        "RunError",
        "SettingsError",
        "SpecError",
        "UnknownRunError",
        "WaitTimeoutError",
        "WireVersionError",
    ),
    "fanout.client.run": ("Run",),
    "fanout.llm": ("FakeLLM", "LLM", "LLMReply", "LLMRequest"),
    "fanout.client.parallel": ("ParallelCalls",),
    "fanout.runs.evaluation_result": ("Comparison", "Evaluation", "VariantEvaluation"),
    "fanout.runs.branch_errors": ("BranchError",),
    "fanout.runs.branch_output": ("Output",),
    "fanout.runs.results": ("Result",),
    "fanout.runs.status": ("ReduceError", "Status"),
    "fanout.core.records": ("Chunk", "Document", "ErrorKind", "RunStatus", "Usage"),
    "fanout.core.spec": ("RunSpec",),
    "fanout.core.spec_fields": ("RateSpec", "RetrySpec"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

# With these functions, a type checker would accept any attribute of this package.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Cache the name: Python then finds it without this function.
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
