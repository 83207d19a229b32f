"""Writes OpenTelemetry spans of runs, shards, branches and calls.

The ids of spans and traces are hashes of the ids of runs, shards and branches, which all workers know.
So the spans of many workers fit together without a message between them, and a worker writes each span
at once when its subject has ended.

The spans of calls follow the conventions for generative AI, version 1.41:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import logging
import os
import threading
import time
from hashlib import blake2b
from importlib import metadata
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from fanout.core.ids import joined
from fanout.core.records import RunStatus
from fanout.system.logs import RateLimitFilter
from workers.telemetry.reports import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from opentelemetry.sdk.trace.export import SpanExporter

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.records import Outcome
    from fanout.core.state import RunRecord, StageRecord
    from workers.telemetry.reports import Calls

__all__ = ["Tracing", "provider_and_model"]

_CLOSE_S = 3.0
# A run that is retried is a new trace; a worker notices within this time.
_RUNS_KEPT_S = 2.0
_MAX_RUNS = 256
# Seconds between two log lines about an unreachable collector, which every worker reports.
_COMPLAINTS_S = 300.0
_COMPLAINERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
# Characters of a provider's ids and names.
_MAX_TEXT = 128

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

# Providers whose names in litellm and in OpenTelemetry's conventions differ.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


class Tracing(Telemetry):
    """Writes a span for each report.

    Args:
        find_run: Returns the state of a run.
        branch_ratio: The share of the branches that succeed at their first call to write spans of.
        exporter: Receives the spans; by default, the collector that OTEL_* variables name.
    """

    def __init__(
        self,
        find_run: Callable[[str], RunRecord],
        *,
        branch_ratio: float = 1.0,
        exporter: SpanExporter | None = None,
    ) -> None:
        _limit_complaints()
        self._find_run = find_run
        self._kept_ids = round(branch_ratio * 2**64)
        self._ids = _KnownIds()
        self._exporter = exporter or OTLPSpanExporter()
        # Not the global provider of the process, which belongs to the caller of an embedded worker.
        self._provider = TracerProvider(
            id_generator=self._ids, resource=_resource(), shutdown_on_exit=False
        )
        # Its queue is bounded and another thread sends, so no branch waits for the collector.
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("fanout", metadata.version("fanout-llm"))
        self._traces: dict[str, tuple[float, _Trace]] = {}

    def branch(self, branch_id: BranchId, outcome: Outcome, calls: Calls) -> None:
        """See Telemetry."""
        trace = self._trace(branch_id.run_id)
        shard_path = joined(branch_id.stage, branch_id.shard)
        path = joined(shard_path, branch_id.position)
        if not trace.is_sampled or not self._keeps(trace.span_id(path), outcome):
            return
        kind = outcome.kind.value if outcome.kind else None
        attributes = {
            "fanout.run.id": branch_id.run_id,
            "fanout.stage": branch_id.stage,
            "fanout.shard": branch_id.shard,
            "fanout.index": outcome.index,
            "fanout.attempts": outcome.attempts,
            "fanout.outcome": kind or "succeeded",
        }
        for number in range(len(calls.attempts)):
            self._call(trace, path, calls, number, branch_id.run_id)
        self._write(
            trace,
            "fanout.branch",
            path,
            shard_path,
            (calls.started_at, time.time()),
            attributes,
            error=kind,
        )

    def _keeps(self, span_id: int, outcome: Outcome) -> bool:
        # Users look at traces for failures, but not for branches that were never called.
        is_ordinary = outcome.attempts == 0 or (outcome.ok and outcome.attempts == 1)
        return not is_ordinary or span_id < self._kept_ids

    def _call(self, trace: _Trace, parent: str, calls: Calls, number: int, run_id: str) -> None:
        attempt = calls.attempts[number]
        provider, model = provider_and_model(calls.models[number])
        usage = attempt.usage
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
            "gen_ai.request.temperature": calls.temperature,
            "gen_ai.request.max_tokens": calls.max_tokens,
            "gen_ai.request.seed": calls.seed,
            "gen_ai.response.model": _short(attempt.model),
            "gen_ai.response.id": _short(attempt.response_id),
            "gen_ai.response.finish_reasons": _list(_short(attempt.finish_reason)),
            "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
            "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens if usage else None,
            "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens if usage else None,
            "fanout.cost_usd": usage.cost_usd if usage else None,
            "fanout.run.id": run_id,
            "fanout.attempt": number + 1,
        }
        self._write(
            trace,
            f"chat {model}",
            f"{parent}/call/{number + 1}",
            parent,
            (attempt.started_at, attempt.started_at + attempt.elapsed_s),
            attributes,
            kind=SpanKind.CLIENT,
            error=attempt.kind.value if attempt.kind else None,
        )

    def shard(self, shard_id: ShardId, outcomes: Collection[Outcome]) -> None:
        """See Telemetry."""
        now = time.time()
        starts = [o.ended_at - o.elapsed_s for o in outcomes if o.ended_at]
        succeeded = sum(outcome.ok for outcome in outcomes)
        attributes = {
            "fanout.run.id": shard_id.run_id,
            "fanout.stage": shard_id.stage,
            "fanout.shard": shard_id.shard,
            "fanout.branches": len(outcomes),
            "fanout.succeeded": succeeded,
            "fanout.failed": len(outcomes) - succeeded,
        }
        trace = self._trace(shard_id.run_id)
        span = (min(starts, default=now), now)
        self._write(
            trace, "fanout.shard", joined(shard_id.stage, shard_id.shard), _RUN, span, attributes
        )

    def run(self, run: RunRecord, stages: list[StageRecord]) -> None:
        """See Telemetry."""
        trace = _Trace.of(run, self._provider)
        attributes = {
            "fanout.run.id": run.run_id,
            "fanout.run.status": run.status.value,
            "fanout.stages": len(stages),
            "fanout.branches": stages[0].total,
            "fanout.succeeded": stages[0].succeeded,
            "fanout.failed": stages[0].failed,
        }
        span = (run.reopened_at or run.created_at, run.ended_at or run.read_at)
        failed = "run_failed" if run.status is RunStatus.FAILED else None
        self._write(
            trace, "fanout.run", _RUN, None, span, attributes, error=failed, links=_first(run)
        )

    def _trace(self, run_id: str) -> _Trace:
        now = time.monotonic()
        kept_until, trace = self._traces.get(run_id, (0.0, None))
        if trace is None or kept_until < now:
            trace = _Trace.of(self._find_run(run_id), self._provider)
            if len(self._traces) >= _MAX_RUNS:
                self._traces.clear()
            self._traces[run_id] = (now + _RUNS_KEPT_S, trace)
        return trace

    def _write(
        self,
        trace: _Trace,
        name: str,
        path: str,
        parent: str | None,
        span: tuple[float, float],
        attributes: Mapping[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        error: str | None = None,
        links: list[Link] | None = None,
    ) -> None:
        if not trace.is_sampled:
            return
        known = {key: value for key, value in attributes.items() if value is not None}
        if error is not None:
            known["error.type"] = error
        self._ids.use(trace.trace_id, trace.span_id(path))
        started = self._tracer.start_span(
            name,
            # An empty context without a parent: never the current context of this thread.
            Context() if parent is None else trace.context(parent),
            kind,
            known,
            links,
            start_time=_nanoseconds(span[0]),
        )
        if error is not None:
            # Without the message, which may quote a document.
            started.set_status(Status(StatusCode.ERROR))
        started.end(_nanoseconds(max(span)))

    def close(self) -> None:
        """See Telemetry."""
        # The SDK would wait half a minute for an unreachable collector.
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        flush.join(_CLOSE_S)
        if flush.is_alive():
            self._exporter.shutdown()


_RUN = "run"  # the path of a run's own span


class _Trace:
    """The trace of a run, or of its latest retry."""

    def __init__(self, name: str, *, is_sampled: bool = True) -> None:
        self._name = name
        self.is_sampled = is_sampled
        self.trace_id = _hash(name, 16)

    @classmethod
    def of(cls, run: RunRecord, provider: TracerProvider) -> _Trace:
        trace = cls(f"{run.run_id} {run.created_at!r} {run.reopened_at!r}")
        # Sampled by the root span, so that all workers sample the same runs, and whole runs.
        sample = provider.sampler.should_sample(Context(), trace.trace_id, "fanout.run")
        trace.is_sampled = sample.decision is Decision.RECORD_AND_SAMPLE
        return trace

    def span_id(self, path: str) -> int:
        return _hash(f"{self._name} {path}", 8)

    def context(self, path: str) -> Context:
        """Return the context of the children of the span of ``path``."""
        span_id = self.span_id(path)
        parent = SpanContext(self.trace_id, span_id, is_remote=True, trace_flags=_SAMPLED)
        return set_span_in_context(NonRecordingSpan(parent), Context())


def _first(run: RunRecord) -> list[Link]:
    """Return a link to the first trace of a run that was retried."""
    if run.reopened_at is None:
        return []
    first = _Trace(f"{run.run_id} {run.created_at!r} None")
    target = SpanContext(first.trace_id, first.span_id(_RUN), is_remote=True)
    return [Link(target)]


class _KnownIds(IdGenerator):
    """Gives the next span of this thread the ids that were set for it."""

    def __init__(self) -> None:
        self._next = threading.local()

    def use(self, trace_id: int, span_id: int) -> None:
        self._next.trace_id = trace_id
        self._next.span_id = span_id

    def generate_trace_id(self) -> int:
        return int(self._next.trace_id)

    def generate_span_id(self) -> int:
        return int(self._next.span_id)

    def is_trace_id_random(self) -> bool:
        # Samplers need bits that are as good as random; a hash has them.
        return True


def _hash(text: str, size: int) -> int:
    # Zero is no valid id.
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest()) or 1


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _short(text: object) -> str | None:
    return text[:_MAX_TEXT] if isinstance(text, str) else None


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [text]


def _resource() -> Resource:
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in named:
        return Resource.create()
    return Resource.create({"service.name": "fanout"})


def _limit_complaints() -> None:
    for name in _COMPLAINERS:
        logger = logging.getLogger(name)
        if _COMPLAINT_FILTER not in logger.filters:
            logger.addFilter(_COMPLAINT_FILTER)


_COMPLAINT_FILTER = RateLimitFilter(_COMPLAINTS_S)


def provider_and_model(model: str) -> tuple[str, str]:
    """Return ``gen_ai.provider.name`` and ``gen_ai.request.model`` of a model string.

    The provider of the local model, the fake and functions is ``fanout``.
    """
    provider, slash, name = model.removeprefix("litellm/").partition("/")
    if not slash:
        # The part after "?" says how the fake model behaves.
        return "fanout", model.partition("?")[0]
    return _PROVIDERS.get(provider, provider), name
