"""``ParallelCalls``: the whole pattern in one call."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from fanout.client.client import Client, checked_count
from fanout.core.errors import RunError, SpecError
from fanout.core.field_names import canonical
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.inputs.documents import log_notice
from fanout.llm.callables import (
    import_path,
    is_callable_model,
    register_callable,
    resolve_callable,
    unregister_callable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from typing import Self

    from fanout.client.run import Run
    from fanout.core.records import Document
    from fanout.core.spec import ReduceName
    from fanout.inputs.documents import Notice, Notify
    from fanout.llm import LLM
    from fanout.runs.results import Result, Status

__all__ = ["ParallelCalls"]


class ParallelCalls:
    """Puts a prompt to every chunk in parallel, and reduces the answers.

    Works from a script, a thread, or a notebook cell: it blocks, and needs no event loop. One
    runner may be used again and again, and by several threads; close it, or use it as a context
    manager, to stop an embedded fleet before the process ends.

    Args:
        llm: A model string (``openai/gpt-5-mini``, ``anthropic/...``, ``litellm/...``, ``local``,
            ``fake``), a dotted path ``package.module:callable``, or a callable ``str -> str``,
            sync or async.
        max_workers: The most branches of a run in flight, in the whole fleet; embedded, it is also
            the worker's concurrency.
        broker_url: The Redis server of a fleet; ``FANOUT_BROKER_URL`` where it is None. Without
            either, a server and a worker are embedded.

    Raises:
        SpecError: ``llm`` is a callable that workers on other machines could not import.
        BrokerError: No broker answers at the URL.
    """

    def __init__(
        self,
        llm: str | Callable[[str], str] | Callable[[str], Awaitable[str]] | LLM | None = None,
        max_workers: int | None = None,
        *,
        broker_url: str | None = None,
    ) -> None:
        settings = load_settings(broker_url=broker_url)
        is_embedded = settings.broker_url is None
        self._max_workers = checked_count("max_workers", max_workers)
        llm = settings.model if llm is None else llm
        self._model = _model_string(llm, is_embedded=is_embedded)
        self._client = Client(broker_url, concurrency=max_workers if is_embedded else None)
        self._finalizer = weakref.finalize(self, _release, self._client, self._model)

    def run(
        self,
        chunks: Iterable[str | Mapping[str, object] | Document] | None = None,
        branch_prompt: str | None = None,
        aggregate_prompt: str | None = None,
        *,
        inputs: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
        aspects: Mapping[str, str] | None = None,
        samples: int | None = None,
        reduce: ReduceName | None = None,
        group_by: str | None = None,
        on_progress: Callable[[Status], None] | None = None,
        on_bad_document: Callable[[str, str], None] | None = None,
        **options: Any,
    ) -> Result:
        """Run the job and wait for its result.

        Args:
            chunks: The texts, or rows with a ``text`` column; read lazily.
            branch_prompt: The template of each branch; ``{input}`` is the chunk.
            aggregate_prompt: The template of the LLM aggregate; ``{input}`` is the joined outputs.
            inputs: Files, folders or globs (one, or several), in place of ``chunks``.
            aspects: Named templates, each put to every chunk, in place of ``branch_prompt``.
            samples: How many answers to take for each chunk and aspect; 1 where it is None.
            reduce: ``none``, ``concat``, ``merge``, ``vote``, ``rank`` or ``llm``.
            group_by: ``document``, ``aspect`` or a column: one aggregate for each value.
            on_progress: Called with the status several times a second.
            on_bad_document: Called with name and reason of each document that cannot be used.
            **options: Any other field of ``RunSpec``: ``system``, ``temperature``, ``split``, ...,
                under any of its names. ``model`` and ``max_workers`` are this run's then.

        Returns:
            The result, also of a failed run: see its ``status`` and ``error``.

        Raises:
            SpecError: A field is wrong, or a prompt has an unknown name.
            InputError: There is no usable document at all.
            ModelError: The model cannot be used.
            BrokerError: The broker cannot be reached.
            RunError: The runner is closed, and its model was a function.
        """
        if is_callable_model(self._model) and not self._finalizer.alive:
            raise RunError("this runner is closed, and its function forgotten: make another one")
        given = {
            "inputs": _paths(inputs),
            "branch_prompt": branch_prompt,
            "aspects": aspects,
            "samples": samples,
            "aggregate_prompt": aggregate_prompt,
            "reduce": reduce,
            "group_by": group_by,
            **options,
        }
        fields = canonical({name: value for name, value in given.items() if value is not None})
        own = {"model": self._model, "max_workers": self._max_workers}
        notices: list[Notice] = []
        run = self._client.submit(
            make_spec(**{**own, **fields}),
            chunks,
            on_bad_document=on_bad_document,
            on_notice=_kept_in(notices),
        )
        result = _result(run, on_progress)
        warnings = [notice.text for notice in notices if notice.is_warning]
        return replace(result, notes=[*warnings, *result.notes]) if warnings else result

    def resume(
        self,
        run_id: str,
        chunks: Iterable[str | Mapping[str, object] | Document] | None = None,
        *,
        retry_failed: bool = False,
        on_progress: Callable[[Status], None] | None = None,
        on_bad_document: Callable[[str, str], None] | None = None,
    ) -> Result:
        """Go on with a run whose process has died, and wait for its result.

        What it has given is kept, and not asked for again. A function is called in place of the
        one that the run was begun with, as that has died with its process.

        Args:
            run_id: The run.
            chunks: The same input again, where not all of it was enqueued and it is in no file.
            retry_failed: Whether the failed branches of a run that has ended are tried again.
            on_progress: As for ``run``.
            on_bad_document: As for ``run``.

        Raises:
            UnknownRunError: There is no such run.
            RunError: The input is not the same as before, or this runner has begun other runs of
                a function.
        """
        run = self._client.run(run_id)
        model = run.spec.model
        if is_callable_model(model) and is_callable_model(self._model):
            register_callable(resolve_callable(self._model), model)
            weakref.finalize(self, unregister_callable, model)
        self._client.resume(run_id, chunks, on_bad_document=on_bad_document)
        if retry_failed and run.status().status.has_ended:
            run.retry_failed()
        return _result(run, on_progress)

    @property
    def client(self) -> Client:
        """The client behind the runner, for what goes beyond one call."""
        return self._client

    def close(self) -> None:
        """Stop an embedded fleet and release connections. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _paths(inputs: Any) -> tuple[str, ...]:
    """Return files as they are named; one may stand for a list of one."""
    given = (inputs,) if isinstance(inputs, (str, PathLike)) else tuple(inputs)
    for one in given:
        if not isinstance(one, (str, PathLike)):
            kind = type(one).__name__
            raise SpecError(f"must be paths (got {one!r}, a {kind})", field="inputs")
    return tuple(os.fspath(one) for one in given)


def _kept_in(notices: list[Notice]) -> Notify:
    """Return what tells a log of notices, and keeps them."""

    def notify(notice: Notice) -> None:
        log_notice(notice)
        notices.append(notice)

    return notify


def _model_string(llm: Any, *, is_embedded: bool) -> str:
    if llm is None:
        raise SpecError("is required: give llm=..., or set FANOUT_MODEL", field="llm")
    if isinstance(llm, str):
        if not llm.strip():
            raise SpecError("must not be empty: give a model, such as 'fake'", field="llm")
        return llm
    if not callable(llm) and not callable(getattr(llm, "complete", None)):
        kind = type(llm).__name__
        raise SpecError(
            "must be a model string such as 'openai/gpt-5-mini', a function str -> str, or an "
            f"object with an async complete(request) (got {kind})",
            field="llm",
        )
    path = import_path(llm)
    if path is not None and not is_embedded:
        return path
    if not is_embedded:
        name = getattr(llm, "__qualname__", type(llm).__name__)
        raise SpecError(
            f"{name} cannot be imported by workers on other machines: move it to module level in "
            "a module that they have, and name it as 'package.module:function'",
            field="llm",
        )
    return register_callable(llm)


def _result(run: Run, on_progress: Callable[[Status], None] | None) -> Result:
    try:
        run.wait(on_progress=on_progress)
    except KeyboardInterrupt:
        run.cancel()
        raise
    return run.result()


def _release(client: Client, model: str) -> None:
    client.close()
    if is_callable_model(model):
        unregister_callable(model)
