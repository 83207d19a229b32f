"""Estimates of jobs: what they would use and cost, without a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.client.arguments import checked_spec
from fanout.client.past_runs import run_opener, with_full_ids
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.inputs.documents import Notice, log_notice
from fanout.inputs.intake import checked_documents
from fanout.llm.enforcement import unenforced
from fanout.llm.registry import require_model
from fanout.policy.token_ratio import TokenSums
from fanout.retrieval.reading import expected_contexts
from fanout.runs.estimate import Estimator
from fanout.runs.plan_estimate import PlanEstimator
from fanout.runs.token_counts import require_reduce_room, with_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from fanout.client.client import Client
    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Chunks, Notify
    from fanout.runs.estimate_result import Estimate
    from fanout.stores import RedisStore

__all__ = ["estimate_job", "estimator_of", "planner_of"]


def estimate_job(
    client: Client,
    given: RunSpec | Mapping[str, Any],
    documents: Chunks | None,
    *,
    notify: Notify = log_notice,
) -> Estimate:
    """Return the estimate of a job; see ``Client.estimate``."""
    spec, source, estimator = estimator_of(client, given, documents, notify=notify)
    for line in unenforced(spec):
        notify(Notice(text=line))
    planner = planner_of(client, spec)
    for _ in estimator.documents(source if planner is None else planner.counted(source)):
        pass
    found = estimator.result()
    return found if planner is None else planner.added_to(found)


def planner_of(client: Client, spec: RunSpec) -> PlanEstimator | None:
    """Return what counts the calls in which a model splits documents; None if it does not."""
    if spec.split != "model":
        return None
    store = client.known_store()
    return PlanEstimator(spec, seen=_seen_in(store), places=_places(client, spec, store))


def _seen_in(store: RedisStore | None) -> Callable[[str], TokenSums]:
    def seen(model: str) -> TokenSums:
        return TokenSums() if store is None else store.token_sums(model)

    return seen


def estimator_of(
    client: Client,
    given: RunSpec | Mapping[str, Any],
    documents: Chunks | None,
    *,
    notify: Notify = log_notice,
) -> tuple[RunSpec, Iterator[Document], Estimator]:
    """Return a job as it would be run, its documents, and what counts them."""
    spec = with_full_ids(client, checked_spec(given, has_documents=documents is not None))
    for model in spec.all_models:
        require_model(model)
    source = checked_documents(spec, documents, notify=notify, open_run=run_opener(client))
    store = client.known_store()
    spec, source = with_tokenizer(spec, source, store)
    if spec.reduces_by_calls:
        require_reduce_room(spec, store)
    seen, limits = _seen_in(store), {} if store is None else store.limits()
    places = _places(client, spec, store)
    passages = expected_contexts(spec, open_run=run_opener(client))
    estimator = Estimator(spec, seen=seen, places=places, limits=limits, passages=passages)
    return spec, source, estimator


def _places(client: Client, spec: RunSpec, store: RedisStore | None) -> int | None:
    """Return how many calls of a run may be in flight; None if no worker is there to know."""
    if client.is_embedded:
        found = client.concurrency
    else:
        workers = store.workers() if store is not None else []
        found = sum(one.concurrency for one in workers if BRANCHES_QUEUE in one.queues)
    limits = [one for one in (found, spec.max_workers) if one]
    return min(limits, default=None)
