"""``read_on: workers``: a run in which workers read the documents, before the run that uses them."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.core.errors import FanoutError, InputError, SpecError
from fanout.core.field_effects import READING
from fanout.core.model_names import READER_MODEL
from fanout.core.queue_names import NO_CONSUMER
from fanout.core.records import Document
from fanout.core.spec import make_spec
from fanout.core.units import plural
from fanout.inputs.documents import STDIN, Notice
from fanout.inputs.intake import files_for_workers
from fanout.inputs.reader import ReadRequest, reading_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.client.client import Client
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Notify
    from fanout.inputs.intake import FilesToRead
    from fanout.runs.status import Status

__all__ = [
    "read_by_workers",
    "read_first",
    "require_readable",
    "spec_after_reading",
    "wait_until_ended",
]

# Seconds for one document with its wait for a core of the worker: parsing has its own deadline.
_TIMEOUT_S = 3_600.0
# Seconds between two notices of how far a reading is.
_TELL_S = 10.0
# The fields that choose documents.
_CHOICE = ("where", "sample", "limit")


def require_readable(spec: RunSpec, *, has_documents: bool, notify: Notify) -> FilesToRead:
    """Return the files of a job that workers are to read, after checking the job.

    Raises:
        SpecError, PromptError: The documents are not in files that workers could reach, or a
            prompt or field is wrong.
        InputError: An input does not exist, has rows or is compressed, or ``strict`` refuses what is
            left out.
    """
    if has_documents:
        raise SpecError(
            "has no effect: chunks are read by the client; leave it out", field="read_on"
        )
    for one in spec.inputs:
        if one == STDIN or one.startswith("run:"):
            what = "standard input" if one == STDIN else one
            raise SpecError(
                f"{what} is read by the client: leave it out of the inputs, or leave read_on out",
                field="read_on",
            )
    return files_for_workers(spec, notify=notify)


def read_first(
    client: Client,
    spec: RunSpec,
    files: FilesToRead,
    *,
    began_at: float,
    notify: Notify,
    should_stop: Callable[[], bool] | None,
) -> tuple[Run, RunSpec]:
    """Have the workers read the documents of a job; return the run of that, and the job after it.

    For arguments and errors see ``read_by_workers`` and ``spec_after_reading``.
    """
    run = read_by_workers(client, spec, files, notify=notify, should_stop=should_stop)
    has_chosen = files.chosen is not None
    return run, spec_after_reading(spec, run, began_at=began_at, has_chosen=has_chosen)


def read_by_workers(
    client: Client,
    spec: RunSpec,
    files: FilesToRead,
    *,
    notify: Notify,
    should_stop: Callable[[], bool] | None,
) -> Run:
    """Have the workers read the documents of a job; return the run of that.

    It has ended, unless ``should_stop`` returned True: then it is cancelled.

    If this process is interrupted meanwhile, also while it submits the run, the run is cancelled.

    Raises:
        InputError: There is no document.
        ModelError: The workers may not read documents.
        BrokerError: The broker cannot be reached.
    """
    created: list[str] = []
    try:
        run = client.submit(
            _reading_spec(spec),
            _requests(spec, files),
            on_notice=notify,
            on_created=created.append,
            should_stop=should_stop,
        )
        total = run.status().total
        documents = plural(total, "document", "documents")
        notify(Notice(text=f"the workers read {documents} (run {run.run_id})"))
        wait_until_ended(
            run, should_stop, notify, what="documents", says_idle=not client.is_embedded
        )
    except BaseException:
        for run_id in created:
            # Without a branch it leaves no run, and the error counts that ended the reading.
            with suppress(FanoutError):
                client.run(run_id).cancel()
        raise
    return run


def _reading_spec(spec: RunSpec) -> RunSpec:
    return make_spec(
        model=READER_MODEL,
        prompt="{input}",
        priority=spec.priority,
        max_workers=spec.max_workers,
        deadline_s=spec.deadline_s,
        timeout_s=_TIMEOUT_S,
        # The requests to read are inputs, too, and the answers decide how many fit into a shard.
        max_document_mb=max(1.0, spec.max_document_mb),
    )


def _requests(spec: RunSpec, files: FilesToRead) -> Iterator[Document]:
    fields = reading_fields(spec)
    for index, (name, place) in enumerate(files.source.places(files.chosen)):
        text = ReadRequest(source=place, fields=fields).to_prompt()
        yield Document(name=name, index=index, text=text)


class _StoppedError(Exception):
    """The caller wants no more of a reading."""


def wait_until_ended(
    run: Run,
    should_stop: Callable[[], bool] | None,
    notify: Notify,
    *,
    what: str,
    says_idle: bool,
) -> None:
    """Wait for the end of a run, or until it is stopped and cancelled; say now and then how far it is.

    Args:
        run: The run.
        should_stop: True stops it.
        notify: Receives notices.
        what: What its branches are made of, in the plural.
        says_idle: Whether to say once that nobody works.
    """
    is_idle = False
    told_at = time.monotonic()

    def on_progress(status: Status) -> None:
        nonlocal is_idle, told_at
        if should_stop is not None and should_stop():
            run.cancel()
            # Its end is the caller's to wait for: without a worker it may never come.
            raise _StoppedError
        was_idle, is_idle = is_idle, not status.workers and status.done < status.total
        if is_idle and not was_idle and says_idle:
            notify(Notice(text=NO_CONSUMER))
        now = time.monotonic()
        if now - told_at >= _TELL_S and status.done < status.total:
            told_at = now
            notify(Notice(text=f"{status.done:,} of {status.total:,} {what} are done"))

    with suppress(_StoppedError):
        run.wait(on_progress=on_progress)


def spec_after_reading(
    spec: RunSpec, run: Run, *, began_at: float, has_chosen: bool = False
) -> RunSpec:
    """Return the job whose input is what the workers have read.

    Args:
        spec: The job.
        run: The run that read the documents.
        began_at: When the job was submitted, by the monotonic clock.
        has_chosen: Whether the files that were read are those that the job chooses.

    Raises:
        InputError: The deadline has passed.
    """
    left_s = None
    if spec.deadline_s is not None:
        left_s = spec.deadline_s - (time.monotonic() - began_at)
        if left_s <= 0:
            raise InputError(
                f"the deadline passed while the workers read the documents (run {run.run_id})"
            )
    changed = {"inputs": (f"run:{run.run_id}",), "read_on": "client", "deadline_s": left_s}
    # A second choice would count the documents anew.
    choice = dict.fromkeys(_CHOICE) if has_chosen else {}
    after = spec.model_copy(update={**changed, **choice})
    # They had their effect.
    after.model_fields_set.difference_update(READING | {"read_on"} | choice.keys())
    return after
