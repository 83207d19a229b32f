"""One branch: admit, call the model, write the outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.errors import ModelError, PromptError
from fanout.llm.base import LLMRequest
from fanout.llm.calls import CallResult, complete_with_retries, validate_json
from fanout.retries import STOPS_RUN
from fanout.runs import ErrorKind, Outcome, RunStatus, branch_ref
from fanout.shards import shard_chunk
from workers.inflight import CallStoppedError

if TYPE_CHECKING:
    from fanout.runs import BranchRef, Chunk
    from fanout.spec import RunSpec
    from workers.runtime import Runtime

__all__ = ["BranchFailed", "run_branch"]


class BranchFailed(Exception):  # noqa: N818 - Flower shows the name: it should read as a state
    """A branch ended with an error; its outcome, written before this is raised, has the details.

    It carries the kind alone, because logs and monitoring pages show it.
    """


def run_branch(
    runtime: Runtime, run_id: str, stage: int, number: int, position: int, feed: int
) -> None:
    """Process the branch at ``position`` of a shard.

    Raises:
        BranchFailed: It ended with an error, so that Celery counts the task as failed.
    """
    begun = runtime.store.begin(run_id, stage, number, position)
    if begun.verdict in {"done", "gone"}:
        return
    index = runtime.shard(run_id, stage, number).first + position
    if begun.verdict == "halted":
        message = "the run was stopped before this branch was called"
        outcome = Outcome(index=index, kind=ErrorKind.CANCELLED, message=message)
    elif begun.deliveries > runtime.settings.max_deliveries:
        message = f"the worker died {begun.deliveries - 1} times while it ran this branch"
        outcome = Outcome(index=index, kind=ErrorKind.POISONED, message=message)
    else:
        outcome = _answer(runtime, run_id, stage, number, index)
    if outcome.kind in STOPS_RUN:
        runtime.store.halt(run_id, RunStatus.FAILED, error=f"{outcome.kind}: {outcome.message}")
    recorded = runtime.store.record(run_id, stage, number, position, outcome, feed=feed)
    if recorded.next is not None:
        runtime.publisher.branch(run_id, stage, number, recorded.next, feed=feed)
    if outcome.kind is not None:
        raise BranchFailed(outcome.kind.value)


def _answer(runtime: Runtime, run_id: str, stage: int, number: int, index: int) -> Outcome:
    try:
        return _call(runtime, run_id, stage, number, index)
    except CallStoppedError:
        message = "the run was stopped during the call"
        return Outcome(index=index, kind=ErrorKind.CANCELLED, message=message, attempts=1)
    except PromptError as error:
        return Outcome(index=index, kind=ErrorKind.BAD_REQUEST, message=str(error))
    except ModelError as error:
        kind = error.kind or ErrorKind.BAD_REQUEST
        return Outcome(index=index, kind=kind, message=str(error))


def _call(runtime: Runtime, run_id: str, stage: int, number: int, index: int) -> Outcome:
    spec = runtime.spec(run_id)
    shard = runtime.shard(run_id, stage, number)
    aspects, samples = (spec.aspect_names, spec.samples) if stage == 0 else ((None,), 1)
    ref = branch_ref(index, aspects, samples)
    chunk = shard_chunk(shard, index, len(aspects) * samples)
    if chunk.error is not None:
        return Outcome(index=index, kind=ErrorKind.BAD_REQUEST, message=chunk.error)
    template = runtime.template(run_id, stage, ref.aspect)
    limit = spec.max_tokens if stage == 0 else spec.aggregate_max_tokens
    request = _request(spec, template.render(_values(chunk, ref)), limit, ref.sample)
    wants_json = stage == 0 and spec.output_format == "json"
    result = runtime.call_for(
        run_id,
        complete_with_retries(
            runtime.model(spec.model),
            request,
            policy=spec.retries,
            timeout_s=spec.timeout_s,
            validate=validate_json if wants_json else None,
        ),
    )
    return _outcome(index, result)


def _values(chunk: Chunk, ref: BranchRef) -> dict[str, str]:
    return {
        **chunk.columns,
        "input": chunk.text,
        "document": chunk.document,
        "index": str(ref.chunk),
        "aspect": ref.aspect or "",
        "sample": str(ref.sample),
    }


def _request(spec: RunSpec, prompt: str, max_tokens: int | None, sample: int) -> LLMRequest:
    return LLMRequest(
        prompt=prompt,
        system=spec.system,
        temperature=spec.temperature,
        max_tokens=max_tokens,
        seed=None if spec.seed is None else spec.seed + sample,
        stop=spec.stop,
    )


def _outcome(index: int, result: CallResult) -> Outcome:
    return Outcome(
        index=index,
        output=result.output,
        kind=result.kind,
        message=result.message,
        attempts=result.attempts,
        usage=result.usage,
        elapsed_s=result.elapsed_s,
    )
