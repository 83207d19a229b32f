"""The client's half of a run: documents become chunks, shards, and messages."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, islice
from typing import TYPE_CHECKING

from fanout.admission import plan_lanes, shard_window
from fanout.documents import from_paths, from_strings
from fanout.errors import InputError, RunError
from fanout.prompts import AGGREGATE_NAMES, BRANCH_NAMES, Template
from fanout.runs import Document, RunStatus
from fanout.shards import pack
from fanout.splitters import make_splitter, split_documents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fanout.chords import Publisher
    from fanout.runs import Chunk, ErrorKind, Shard
    from fanout.spec import RunSpec
    from fanout.stores import Store

__all__ = ["Enqueuer", "checked_documents", "open_stage", "retry_failed", "unpark"]

_SHOWN_FAULTS = 3


def checked_documents(
    spec: RunSpec, documents: Iterable[str | Mapping[str, object] | Document] | None
) -> Iterator[Document]:
    """Return the documents of a run, once its prompts are known to fit them.

    The first usable document is read at once, as its columns are names that prompts may use.

    Raises:
        PromptError: A prompt is wrong, or has an unknown name.
        InputError: There is no document, or a source is at fault.
    """
    max_bytes = int(spec.max_document_mb * 1_000_000)
    templates = _templates(spec)
    if documents is None:
        source = from_paths(spec.inputs, text_column=spec.text_column, max_bytes=max_bytes)
    else:
        source = from_strings(documents, text_column=spec.text_column, max_bytes=max_bytes)
    head: list[Document] = []
    for document in source:
        head.append(document)
        if document.error is None:
            break
    else:
        raise _no_document(head)
    known = (*BRANCH_NAMES, *head[-1].columns)
    for template in templates:
        template.require(known)
    return map(_encodable, chain(head, source))


def _encodable(document: Document) -> Document:
    """Return a document whose texts have bytes: a lone surrogate, half a character, has none."""
    texts = (document.name, document.text, *document.columns, *document.columns.values())
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        return Document(
            name=document.name.encode("utf-8", "replace").decode(),
            index=document.index,
            error=f"it holds half of a character (a lone surrogate, at offset {error.start})",
        )
    return document


def _templates(spec: RunSpec) -> list[Template]:
    if spec.aggregate_prompt is not None:
        template = Template.parse(spec.aggregate_prompt, field="aggregate_prompt")
        template.require(AGGREGATE_NAMES)
    return [
        Template.parse(source, field="prompt" if aspect is None else f"aspects.{aspect}")
        for aspect, source in spec.prompts.items()
    ]


def _no_document(faulty: list[Document]) -> InputError:
    if not faulty:
        return InputError("there is no input: give files, folders, globs, or - for standard input")
    faults = [f"{document.name}: {document.error}" for document in faulty[:_SHOWN_FAULTS]]
    more = len(faulty) - len(faults)
    tail = f"; and {more} more" if more else ""
    return InputError(f"no document can be used: {'; '.join(faults)}{tail}")


class Enqueuer:
    """Writes the shards of a run and opens them while it goes on writing."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        on_bad_document: Callable[[str, str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._on_bad_document = on_bad_document
        self._should_stop = should_stop

    def enqueue(
        self, run_id: str, spec: RunSpec, documents: Iterator[Document], *, max_workers: int | None
    ) -> None:
        """Split, pack, write and publish; the run is ``running`` when this returns."""
        splitter = make_splitter(
            spec.split,
            chunk_tokens=spec.chunk_tokens,
            chunk_overlap_tokens=spec.chunk_overlap_tokens,
        )
        chunks = self._watched(split_documents(documents, splitter))
        shards = self._stoppable(run_id, pack(chunks, branches_per_chunk=spec.branches_per_chunk))
        try:
            open_stage(self._store, self._publisher, run_id, 0, shards, max_workers=max_workers)
        except InputError:
            # The source broke half-way: a part of the input must not look like all of it.
            self._store.delete_run(run_id)
            raise

    def _watched(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if chunk.error is not None and self._on_bad_document is not None:
                self._on_bad_document(chunk.document, chunk.error)
            yield chunk

    def _stoppable(self, run_id: str, shards: Iterator[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if self._should_stop is not None and self._should_stop():
                self._store.halt(run_id, RunStatus.CANCELLED)
                return
            yield shard


def open_stage(
    store: Store,
    publisher: Publisher,
    run_id: str,
    stage: int,
    shards: Iterable[Shard],
    *,
    max_workers: int | None,
) -> None:
    """Write the shards of a stage, publish the first, and seal it.

    How ``max_workers`` is spread depends on whether there are fewer shards than the window, so
    that many are held back at first. All of it may be done again: nothing is counted twice.
    """
    concurrency = sum(store.workers().values())
    stream = iter(shards)
    head: list[Shard] = []
    if max_workers is not None:
        lanes = plan_lanes(max_workers=max_workers, shards=None)
        head = list(islice(stream, lanes.window))
        lanes = plan_lanes(max_workers=max_workers, shards=len(head))
        store.set_lanes(run_id, stage, lanes)
    number = -1
    for number, shard in enumerate(chain(head, stream)):
        store.put_shard(run_id, stage, number, shard)
        grants = store.open_shards(run_id, stage, window=shard_window(concurrency))
        publisher.expand(run_id, stage, grants)
    store.seal_stage(run_id, stage)
    store.set_status(run_id, RunStatus.RUNNING if stage == 0 else RunStatus.REDUCING, stage=stage)
    publisher.seal(run_id, stage, shards=number + 1)


def unpark(store: Store, publisher: Publisher, run_id: str) -> int:
    """Publish the branches that were parked while a run was paused; return how many."""
    parked = store.take_parked(run_id)
    shards: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for branch in parked:
        shards[branch.stage, branch.shard, branch.feed].append(branch.position)
    for (stage, number, feed), positions in shards.items():
        publisher.branches(run_id, stage, number, positions, feed=feed)
    return len(parked)


def retry_failed(
    store: Store, publisher: Publisher, run_id: str, kinds: frozenset[ErrorKind] | None
) -> int:
    """Reopen a run that has ended for its failed branches; return how many they are.

    Shards without such branches pass through without a call, and the aggregate is made anew.

    Raises:
        RunError: The run has not ended.
    """
    run = store.run(run_id)
    record = store.stage(run_id, 0)
    known = record.errors if kinds is None else record.errors.keys() & kinds
    if run.status is RunStatus.SUCCEEDED and not known:
        return 0
    if not store.reopen_run(run_id):
        raise RunError(f"run {run_id} has not ended: wait for it, or cancel it, before a retry")
    count = sum(_reopen_shard(store, run_id, number, kinds) for number in range(record.shards))
    publisher.forget_root(run_id, 0)
    window = shard_window(sum(store.workers().values()))
    publisher.expand(run_id, 0, store.open_shards(run_id, 0, window=window))
    publisher.seal(run_id, 0, shards=record.shards)
    return count


def _reopen_shard(
    store: Store, run_id: str, number: int, kinds: frozenset[ErrorKind] | None
) -> int:
    outcomes = store.outcomes(run_id, 0, number)
    again = {
        position
        for position, outcome in outcomes.items()
        if outcome.kind is not None and (kinds is None or outcome.kind in kinds)
    }
    if again:
        store.reopen_shard(
            run_id,
            0,
            number,
            kept={at: outcome for at, outcome in outcomes.items() if at not in again},
            dropped=[outcomes[at] for at in sorted(again)],
        )
    return len(again)
