"""How the texts of a run are cut to tokens: by what the fleet has learnt of its model."""

from __future__ import annotations

from itertools import chain, islice
from math import ceil
from typing import TYPE_CHECKING

from fanout.aggregators import RULE_TOKENS, room_tokens
from fanout.core.errors import SpecError
from fanout.core.field_effects import SIZED_SPLITS
from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes
from fanout.inputs.comparison_prompts import comparison_frame, comparison_room
from fanout.inputs.fences import FENCE_TOKENS, with_rule
from fanout.inputs.fold_prompts import aggregate_source
from fanout.inputs.token_counters import bytes_tokenizer, ratio_of
from fanout.llm import context_tokens
from fanout.llm.prompt_plans import plan_of
from fanout.llm.step_plans import step_plan_of
from fanout.policy.token_ratio import TokenRatio, kept_ratio, script_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Document
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.stores import RedisStore

__all__ = [
    "ANSWER_TOKENS",
    "comparison_tokens",
    "packing_ratio",
    "reduce_room",
    "require_reduce_room",
    "with_tokenizer",
]

# Tokens reserved for an aggregate without a length limit.
ANSWER_TOKENS = 512

# The characters of an input that show how it is to be cut.
_SHOWN_CHARS = 20_000
_SHOWN_TEXTS = 50


def with_tokenizer(
    spec: RunSpec, documents: Iterator[Document], store: RedisStore | None
) -> tuple[RunSpec, Iterator[Document]]:
    """Return a job that says how its tokens are counted, and the documents.

    That is where chunks are filled up to a number of tokens, or the length of texts decides how prompts
    are laid out. The first document shows which kind of text they are. The job of a run keeps what was
    found, so that the same input gives the same chunks and prompts when it is read again.

    Args:
        spec: The job.
        documents: Its documents, of which the first is read.
        store: Has what the fleet knows; None if there is none yet.
    """
    if spec.tokenizer is not None or store is None:
        return spec, documents
    if spec.split not in SIZED_SPLITS and (plan_of(spec) or step_plan_of(spec)) is None:
        return spec, documents
    head: list[Document] = []
    shown = ""
    for document in documents:
        head.append(document)
        if document.error is None:
            shown = document.text[:_SHOWN_CHARS]
            break
    ratio = _cut_ratio(store, spec.model, shown)
    if ratio != BYTES_PER_TOKEN:
        given = spec.model_fields_set.copy()
        spec = spec.model_copy(update={"tokenizer": bytes_tokenizer(ratio)})
        spec.model_fields_set.intersection_update(given)
    return spec, chain(head, documents)


def packing_ratio(
    store: RedisStore, run_id: str, spec: RunSpec, reduce: Reduce, texts: Iterable[str]
) -> float:
    """Return the bytes per token by which a reduce packs the answers of a run into prompts.

    It is the same for all its stages, and when one of them is planned again.

    Raises:
        UnknownRunError: There is no such run.
    """
    ratio = ratio_of(spec.tokenizer)
    if ratio is not None:
        return ratio
    shown = "\n".join(text[:_SHOWN_CHARS] for text in islice(texts, _SHOWN_TEXTS))
    ratio = _cut_ratio(store, spec.model, shown)
    if reduce.kind == "llm" and not _has_room(spec, reduce, ratio):
        # The run was let begin by this one. An estimate must not lose what the branches were paid for: the
        # provider knows whether the prompt is too long.
        ratio = max(ratio, float(BYTES_PER_TOKEN))
    return store.fix_packing_ratio(run_id, ratio, reduce=reduce.name)


def _has_room(spec: RunSpec, reduce: Reduce, bytes_per_token: float) -> bool:
    try:
        reduce_room(spec, reduce, bytes_per_token)
    except SpecError:
        return False
    return True


def reduce_room(spec: RunSpec, reduce: Reduce, bytes_per_token: float) -> int:
    """Return how many tokens of answers fit one prompt of a reduce, at a quarter of their bytes.

    Raises:
        SpecError: Too few fit.
    """
    prompts = sum(map(utf8_bytes, _frame_of(spec, reduce)))
    room = _room_beside(spec, reduce, ceil(prompts / bytes_per_token))
    return int(room * bytes_per_token / BYTES_PER_TOKEN)


def _frame_of(spec: RunSpec, reduce: Reduce) -> tuple[str, str]:
    """Return the texts around the answers in each prompt of a reduce."""
    return aggregate_source(reduce), with_rule(spec, reduce.model, spec.system) or ""


def _room_beside(spec: RunSpec, reduce: Reduce, frame_tokens: int) -> int:
    """Return how many tokens of answers fit one prompt beside the texts around them.

    Raises:
        SpecError: Too few fit.
    """
    fence_tokens = FENCE_TOKENS * spec.is_fenced(reduce.model) + RULE_TOKENS * spec.sources
    return room_tokens(
        context_tokens=spec.context_tokens or context_tokens(reduce.model),
        template_tokens=frame_tokens + fence_tokens,
        answer_tokens=reduce.max_tokens or ANSWER_TOKENS,
    )


def require_reduce_room(spec: RunSpec, store: RedisStore | None = None) -> None:
    """Make sure that the prompts of a job's reduces have room for answers, before a call is made.

    Args:
        spec: The job.
        store: Has what the fleet knows of its models' tokens; None if that is not to be asked.

    Raises:
        SpecError: Those of one of them have none.
    """
    bytes_per_token = ratio_of(spec.tokenizer) or float(BYTES_PER_TOKEN)
    for reduce in spec.reductions:
        if reduce.kind == "llm":
            reduce_room(spec, reduce, bytes_per_token)
            if store is not None and spec.tokenizer is None:
                learnt = TokenRatio.fitted(store.token_sums(reduce.model))
                _room_beside(spec, reduce, learnt.tokens(_frame_of(spec, reduce)))
        elif reduce.compares and not reduce.resolves:
            frame = comparison_frame(reduce.criteria, has_task=reduce.kind == "best")
            window, verdict = comparison_tokens(spec, reduce)
            comparison_room(
                context_tokens=window,
                frame_tokens=ceil(utf8_bytes(frame) / bytes_per_token),
                answer_tokens=verdict,
            )


def comparison_tokens(spec: RunSpec, reduce: Reduce) -> tuple[int, int]:
    """Return the tokens of the window of the model that compares outputs, and those of its verdict."""
    window = spec.context_tokens or context_tokens(reduce.model)
    return window, reduce.max_tokens or ANSWER_TOKENS


def _cut_ratio(store: RedisStore, model: str, text: str) -> float:
    """Return the bytes per token of such texts, which changes only where it is far off."""
    script = script_of(text)
    kept = store.cut_ratio(model, script)
    learnt = TokenRatio.fitted(store.token_sums(model)).bytes_per_token(text)
    ratio = kept_ratio(kept, learnt)
    if ratio != (kept or BYTES_PER_TOKEN):
        store.keep_cut_ratio(model, script, ratio)
    return ratio
