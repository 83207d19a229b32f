"""``ParallelCalls``: the whole pattern in one call."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fanout.client.arguments import checked_count, model_string, paths
from fanout.client.client import Client
from fanout.core.errors import RunError
from fanout.core.field_names import canonical
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.inputs.documents import log_notice
from fanout.llm.callables import (
    is_callable_model,
    register_callable,
    resolve_callable,
    unregister_callable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from os import PathLike
    from typing import Self

    from fanout.client.run import Run
    from fanout.core.spec import ReduceName, RunSpec
    from fanout.inputs.documents import Chunks, Notice, Notify
    from fanout.llm import LLM
    from fanout.runs.results import Result, Status

__all__ = ["ParallelCalls"]


class ParallelCalls:
    """Puts a prompt to every chunk in parallel, and reduces the answers.

    It blocks and needs no event loop, so it works in a script, a thread or a notebook cell. Threads may
    share a runner. ``close``, or the end of a ``with`` block, stops an embedded fleet before the
    process ends.

    Args:
        llm: A model string (``openai/gpt-5-mini``, ``anthropic/...``, ``litellm/...``, ``local``,
            ``fake``), a dotted path ``package.module:callable``, or a callable ``str -> str``,
            sync or async.
        max_workers: The most branches of a run in flight, in the whole fleet; without a broker, also
            the concurrency of the embedded worker.
        broker_url: The Redis server of a fleet; None is ``FANOUT_BROKER_URL``. Without either, a server
            and a worker are embedded.

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
        self._model = model_string(llm, is_embedded=is_embedded)
        self._client = Client(broker_url, concurrency=max_workers if is_embedded else None)
        self._finalizer = weakref.finalize(self, _release, self._client, self._model)

    def run(
        self,
        chunks: Chunks | None = None,
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
            samples: The number of answers for each chunk and aspect; None is 1.
            reduce: ``none``, ``concat``, ``merge``, ``vote``, ``rank`` or ``llm``.
            group_by: ``document``, ``aspect`` or a column: one aggregate for each value.
            on_progress: Called with the status several times a second.
            on_bad_document: Called with name and reason of each document that cannot be used.
            **options: Other fields of ``RunSpec`` under any of their names; ``model`` and
                ``max_workers`` replace the runner's.

        Returns:
            The result, also of a failed run: see its ``status`` and ``error``.

        Raises:
            SpecError, InputError, ModelError, BrokerError: As ``Client.submit`` does.
            RunError: The runner is closed, and its model was a function.
        """
        if is_callable_model(self._model) and not self._finalizer.alive:
            raise RunError("this runner is closed, and its function forgotten: make another one")
        given = {
            "inputs": paths(inputs),
            "branch_prompt": branch_prompt,
            "aspects": aspects,
            "samples": samples,
            "aggregate_prompt": aggregate_prompt,
            "reduce": reduce,
            "group_by": group_by,
            **options,
        }
        warnings: list[str] = []
        run = self._client.submit(
            self._spec(given), chunks, on_bad_document=on_bad_document, on_notice=_kept_in(warnings)
        )
        result = _result(run, on_progress)
        return replace(result, notes=[*warnings, *result.notes])

    def _spec(self, given: dict[str, Any]) -> RunSpec:
        own = {"model": self._model, "max_workers": self._max_workers}
        fields = {name: value for name, value in given.items() if value is not None}
        return make_spec(**{**own, **canonical(fields)})

    def resume(
        self,
        run_id: str,
        chunks: Chunks | None = None,
        *,
        retry_failed: bool = False,
        on_progress: Callable[[Status], None] | None = None,
        on_bad_document: Callable[[str, str], None] | None = None,
    ) -> Result:
        """Resume a run whose process has died, and wait for its result.

        Its outcomes are kept. This runner's function takes the place of the run's function, which has
        died with its process.

        Args:
            run_id: The run.
            chunks: The same input again, if it is in no file and was not enqueued completely.
            retry_failed: Whether to retry the failed branches of a run that has ended.
            on_progress: As for ``run``.
            on_bad_document: As for ``run``.

        Raises:
            UnknownRunError: There is no such run.
            RunError: The input differs, or this runner has begun other runs of a function.
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
        """The client of this runner, which can do more."""
        return self._client

    def close(self) -> None:
        """Stop an embedded fleet and release connections. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _kept_in(warnings: list[str]) -> Notify:
    """Return a function that logs each notice, and adds warnings to the list."""

    def notify(notice: Notice) -> None:
        log_notice(notice)
        if notice.is_warning:
            warnings.append(notice.text)

    return notify


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
