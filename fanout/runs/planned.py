"""``split: model``: the run in which a model splits documents, and the documents that come of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import structs

from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.model_names import ANY_MODEL, takes_seed
from fanout.core.parts import Layout, Part
from fanout.core.plan_runs import NOT_SPLIT
from fanout.core.records import Document
from fanout.core.spec import make_spec
from fanout.core.tokens import utf8_bytes
from fanout.core.units import plural, share
from fanout.inputs.documents import Notice
from fanout.inputs.documents.rows import EMPTY
from fanout.inputs.plan_answers import (
    plan_prompt,
    plan_schema,
    proposed_parts,
    tiles,
    wants_subtasks,
)
from fanout.inputs.planned_parts import covered
from fanout.inputs.splitters import make_splitter, splitter_of
from fanout.inputs.token_counters import make_counter
from fanout.llm import context_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Chunk, Outcome
    from fanout.core.spec import RunSpec
    from fanout.inputs.splitters import Splitter
    from fanout.stores import RedisStore

__all__ = ["PlannedDocuments", "pieces", "plan_spec"]

# Parts of the context window: for the answer, which quotes the text, and for what is miscounted.
_ANSWER_SHARE = 0.25
_SAFETY = 0.85
_LEAST_ROOM = 64
_NO_PART = "the model found no part in it"


def plan_spec(spec: RunSpec, *, deadline_s: float | None) -> RunSpec:
    """Return the job in which a model splits the documents of a job.

    Args:
        spec: The job.
        deadline_s: Seconds that are left until its deadline.

    Raises:
        PromptError: A prompt has a misplaced brace.
    """
    model = spec.split_model or spec.model
    asked = (model, *(one for one in spec.fallback if one != model))
    return make_spec(
        model=model,
        fallback=asked[1:],
        prompt=plan_prompt(spec),
        schema=plan_schema(spec),
        # A quote that is not there is asked for once more.
        max_reasks=1,
        temperature=spec.temperature if model == spec.model else None,
        max_tokens=spec.split_max_tokens,
        seed=spec.seed if takes_seed(model) else None,
        tokenizer=spec.tokenizer,
        max_workers=spec.max_workers,
        priority=spec.priority,
        lane=spec.lane,
        timeout_s=spec.timeout_s,
        cache=spec.cache,
        fence=spec.fence,
        rate=spec.rate if model == spec.model else None,
        price={name: one for name, one in spec.price.items() if name in (*asked, ANY_MODEL)}
        or None,
        budget=spec.budget,
        retries=spec.retries,
        deadline_s=deadline_s,
    )


def pieces(spec: RunSpec, documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents as the pieces that a model is to split: whole ones, as far as they fit its window.

    Raises:
        SpecError: Nothing fits the window.
    """
    model = spec.split_model or spec.model
    window = (spec.context_tokens if model == spec.model else None) or context_tokens(model)
    count = make_counter(spec.tokenizer, model=model)
    asked = count(plan_prompt(spec)) + utf8_bytes(str(plan_schema(spec))) // 3
    room = int(window * (_SAFETY - _ANSWER_SHARE)) - asked
    if room < _LEAST_ROOM:
        raise SpecError(
            f"the window of {model} ({window:,} tokens) has no room for a text beside the prompt that "
            "splits it; give a larger one, or another split_model",
            field="context_tokens",
        )
    cut = make_splitter("markdown", chunk_tokens=room, count=count)
    for document in documents:
        if document.error is None and document.text.strip():
            parts = tiles(document.text, cut, most=lambda text: count(text) > room)
            yield structs.replace(document, parts=parts, keeps_layout=True)
        else:
            yield structs.replace(document, error=document.error or EMPTY)


class _Piece(NamedTuple):
    """A piece of a document, and how the model has split it; None if it was not asked."""

    chunk: Chunk
    outcome: Outcome | None


@dataclass(kw_only=True, slots=True)
class _Seen:
    """What documents have become: how many the model has split, and into how many parts that it named."""

    documents: int = 0
    parts: int = 0
    chars: int = 0
    missed: int = 0
    overlaps: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class PlannedDocuments:
    """The documents of a job, with the parts that a model has split them into.

    Args:
        store: Has the run in which it did.
        plan_id: That run, which has ended.
        spec: The job.
    """

    def __init__(self, store: RedisStore, plan_id: str, spec: RunSpec) -> None:
        self._store = store
        self._plan_id = StageId(plan_id, 0)
        self._is_of_subtasks = wants_subtasks(spec)
        self._cut: Splitter = splitter_of(spec)
        self._fills = spec.split_gaps == "fill"
        self._seen = _Seen()

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents, lazily, in their order."""
        self._seen = _Seen()
        for _, some in groupby(self._pieces(), key=attrgetter("chunk.document_index")):
            yield self._document(list(some))

    def _pieces(self) -> Iterator[_Piece]:
        for number in range(self._store.stage(self._plan_id).shards):
            shard_id = self._plan_id.shard(number)
            shard, outcomes = self._store.shard(shard_id), self._store.outcomes(shard_id)
            by_index = {outcome.index: outcome for outcome in outcomes.values()}
            for at, chunk in enumerate(shard.chunks, shard.first_chunk):
                yield _Piece(chunk, by_index.get(at))

    def _document(self, some: list[_Piece]) -> Document:
        first, seen = some[0].chunk, self._seen
        layout = first.layout or Layout()
        document = Document(
            name=first.document,
            index=first.document_index,
            text="".join(one.chunk.text for one in some),
            columns=first.columns,
            text_at=first.text_at,
            text_column=first.text_column,
            pages=layout.pages,
            page_numbers=layout.page_numbers,
            headings=layout.headings,
            error=first.error,
            parts=[],
        )
        if first.error is not None:
            return document
        before = seen.parts
        parts = [part for one in some for part in self._parts(one)]
        seen.documents += seen.parts > before
        if not self._is_of_subtasks:
            found = covered(document.text, parts, cut=self._cut if self._fills else None)
            seen.missed += found.missed
            seen.overlaps += found.overlaps
            seen.chars += sum(not char.isspace() for char in document.text)
            parts = found.parts
        error = None if parts else self._why_none(some)
        return structs.replace(document, parts=parts, error=error)

    def _parts(self, piece: _Piece) -> list[Part]:
        """Return the parts of a piece, by their place in the document."""
        chunk, outcome = piece
        if outcome is not None and outcome.output is not None:
            found, _ = proposed_parts(chunk.text, msgspec.json.decode(outcome.output))
            self._seen.parts += len(found)
        else:
            kind = None if outcome is None else outcome.kind
            self._seen.failed["not asked" if kind is None else kind.value] += 1
            # Without a subtask, nobody knows what to do.
            spans = () if self._is_of_subtasks else self._cut(chunk.text)
            found = [Part(start=start, end=end) for start, end in spans]
        return [
            structs.replace(one, start=chunk.start + one.start, end=chunk.start + one.end)
            for one in found
        ]

    def _why_none(self, some: list[_Piece]) -> str:
        failed = [one for one in some if one.outcome is None or one.outcome.output is None]
        return f"{NOT_SPLIT} ({_why(failed[0])})" if failed else _NO_PART

    def notices(self) -> Iterator[Notice]:
        """Yield what to say of the documents that were read."""
        seen = self._seen
        what = ("subtask", "subtasks") if self._is_of_subtasks else ("part", "parts")
        if seen.parts:
            documents = plural(seen.documents, "document", "documents")
            yield Notice(text=f"a model split {documents} into {plural(seen.parts, *what)}")
        if seen.missed:
            missed = f"{share(seen.missed, seen.chars)} of the text is in no part"
            if self._fills:
                yield Notice(text=f"{missed} that it named, and makes chunks without a title")
            else:
                yield Notice(text=f"{missed}, and is left out", is_warning=True)
        if seen.overlaps:
            yield Notice(
                text=f"{plural(seen.overlaps, 'part', 'parts')} began before the one before ended: "
                "what two share is in the later one"
            )
        if seen.failed:
            texts = plural(seen.failed.total(), "text", "texts")
            how = f"which {'is' if seen.failed.total() == 1 else 'are'} split as markdown"
            if self._is_of_subtasks:
                how = "whose branches fail as bad_request"
            # Notices are logged, and messages quote the text.
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in seen.failed.most_common())
            yield Notice(
                text=f"the model did not split {texts}, {how}: {kinds} (`fanout errors "
                f"{self._plan_id.run_id}` says why)",
                is_warning=True,
            )


def _why(piece: _Piece) -> str:
    if piece.outcome is None or piece.outcome.kind is None:
        return "it was not asked"
    return f"{piece.outcome.kind.value}: {piece.outcome.message}"
