"""``ParallelCalls``: the whole pattern in one call."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterable
from contextlib import aclosing, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

from fanout.client.arguments import checked_count, model_string, model_strings, paths
from fanout.client.client import Client
from fanout.client.loop_runs import LoopRun
from fanout.client.loop_threads import in_thread, pulled
from fanout.client.progress import ShownProgress
from fanout.core.errors import RunError, UnknownRunError
from fanout.core.field_names import canonical
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.core.units import plural
from fanout.inputs.documents import log_notice
from fanout.llm.callables import (
    is_callable_model,
    register_callable,
    resolve_callable,
    unregister_callable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
    from os import PathLike
    from typing import Self

    from fanout.client.run import Run
    from fanout.client.trials import Trial
    from fanout.core.spec import ReduceName, RunSpec
    from fanout.inputs.documents import AsyncChunks, Chunks, Notice, Notify
    from fanout.llm import LLM
    from fanout.runs.estimate import Estimate
    from fanout.runs.results import AnswerT, Output, Result
    from fanout.runs.status import Status

    Model = str | Callable[[str], str] | Callable[[str], Awaitable[str]] | LLM
    Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
    OnBadDocument = Callable[[str, str], None]

__all__ = ["ParallelCalls"]


class ParallelCalls:
    """Puts a prompt to every chunk in parallel, and reduces the answers.

    ``run`` blocks and needs no event loop, so it works in a script, a thread or a notebook cell;
    ``arun`` and ``astream`` are for an event loop. Threads and tasks may share a runner. ``close``,
    or the end of a ``with`` or ``async with`` block, stops an embedded fleet before the process ends.

    Args:
        llm: A model string (``openai/gpt-5-mini``, ``anthropic/...``, ``litellm/...``, ``local``,
            ``fake``), a dotted path ``package.module:callable``, or a callable ``str -> str``,
            sync or async; or a list of these, to each of which every prompt goes.
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
        llm: Model | Sequence[Model] | None = None,
        max_workers: int | None = None,
        *,
        broker_url: str | None = None,
    ) -> None:
        settings = load_settings(broker_url=broker_url)
        is_embedded = settings.broker_url is None
        self._max_workers = checked_count("max_workers", max_workers)
        llm = settings.model if llm is None else llm
        self._is_embedded = is_embedded
        self._models = model_strings(llm, is_embedded=is_embedded)
        # With the functions that single runs have as models of their own.
        self._known = list(self._models)
        self._client = Client(broker_url, concurrency=max_workers if is_embedded else None)
        self._finalizer = weakref.finalize(self, _release, self._client, self._known)

    @overload
    def run(
        self, chunks: Chunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: None = None,
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[str]: ...  # fmt: skip
    @overload
    def run(
        self, chunks: Chunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: type[AnswerT],
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[AnswerT]: ...  # fmt: skip
    @overload
    def run(
        self, chunks: Chunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: object,
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[Any]: ...  # fmt: skip
    def run(
        self,
        chunks: Chunks | None = None,
        branch_prompt: str | None = None,
        aggregate_prompt: str | None = None,
        *,
        progress: bool = False,
        on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Run the job and wait for its result.

        Args:
            chunks: The texts, rows with a ``text`` column, a mapping of names to texts, or a table or
                column of another library; read lazily.
            branch_prompt: The template of each branch; ``{input}`` is the chunk.
            aggregate_prompt: The template of the LLM aggregate; ``{input}`` is the joined outputs.
            schema: What each answer must be: a pydantic model, dataclass, TypedDict, Enum, ``Literal``
                or ``list[...]``, of which ``outputs`` then holds instances; or a JSON Schema, as a dict
                or file, and then it holds JSON values.
            aggregate_schema: The same for the answer of the LLM aggregate.
            inputs: Files, folders or globs (one, or several), in place of ``chunks``.
            aspects: Named templates, each put to every chunk, in place of ``branch_prompt``.
            samples: The number of answers for each chunk and aspect; None is 1.
            reduce: ``none``, ``concat``, ``merge``, ``vote``, ``rank``, ``top``, ``table`` or ``llm``.
            group_by: ``document``, ``aspect`` or a column: one aggregate for each value.
            progress: Whether to show the progress: a bar on a terminal (standard error) or in a
                notebook, a line every 10 s where standard error is neither.
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
        spec, warnings = self._spec(branch_prompt, aggregate_prompt, options), list[str]()
        with self._shown(on_progress, is_shown=progress) as follow:
            run = self._submitted(spec, chunks, on_bad_document, warnings)
            return _noted(_result(run, follow), warnings)

    def _submitted(
        self,
        spec: RunSpec,
        chunks: Chunks | None,
        on_bad_document: OnBadDocument | None,
        warnings: list[str],
    ) -> Run:
        """Submit a run; Ctrl-C while its input is read cancels it."""
        created: list[str] = []
        try:
            return self._client.submit(
                spec,
                chunks,
                on_bad_document=on_bad_document,
                on_notice=_kept_in(warnings),
                on_created=created.append,
            )
        except KeyboardInterrupt:
            for run_id in created:
                # An input without a branch leaves no run.
                with suppress(UnknownRunError):
                    self._client.run(run_id).cancel()
            raise

    @overload
    async def arun(
        self, chunks: AsyncChunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: None = None,
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[str]: ...  # fmt: skip
    @overload
    async def arun(
        self, chunks: AsyncChunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: type[AnswerT],
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[AnswerT]: ...  # fmt: skip
    @overload
    async def arun(
        self, chunks: AsyncChunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: object,
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[Any]: ...  # fmt: skip
    async def arun(
        self,
        chunks: AsyncChunks | None = None,
        branch_prompt: str | None = None,
        aggregate_prompt: str | None = None,
        *,
        progress: bool = False,
        on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Run the job as ``run`` does, without blocking the event loop.

        The input is read in a thread, and ``on_bad_document`` is called there; an async iterable
        is run by the loop, and so is ``on_progress``. Cancelling the task cancels the run: the
        task ends once calls in flight have ended, or after 10 s.
        """
        spec, warnings = self._spec(branch_prompt, aggregate_prompt, options), list[str]()
        own = self._of_loop(spec, chunks, on_bad_document, warnings)
        # What draws takes a while to load.
        with await in_thread(lambda: self._shown(on_progress, is_shown=progress)) as follow:
            return _noted(await own.result(follow), warnings)

    @overload
    def astream(
        self, chunks: AsyncChunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: None = None,
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> AsyncGenerator[Output[str], None]: ...  # fmt: skip
    @overload
    def astream(
        self, chunks: AsyncChunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: type[AnswerT],
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> AsyncGenerator[Output[AnswerT], None]: ...  # fmt: skip
    @overload
    def astream(
        self, chunks: AsyncChunks | None = None, branch_prompt: str | None = None,
        aggregate_prompt: str | None = None, *, schema: object,
        aggregate_schema: object = None, inputs: Paths = (),
        aspects: Mapping[str, str] | None = None, samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> AsyncGenerator[Output[Any], None]: ...  # fmt: skip
    async def astream(
        self,
        chunks: AsyncChunks | None = None,
        branch_prompt: str | None = None,
        aggregate_prompt: str | None = None,
        *,
        on_bad_document: OnBadDocument | None = None,
        **options: Any,
    ) -> AsyncGenerator[Output[Any], None]:
        """Run the job as ``arun`` does, and yield each branch as it ends, failed or not.

        The first come while the input is still being read. Leaving the loop, or cancelling its task,
        cancels the run.
        """
        spec, warnings = self._spec(branch_prompt, aggregate_prompt, options), list[str]()
        own = self._of_loop(spec, chunks, on_bad_document, warnings)
        async with aclosing(own.outputs()) as outputs:
            async for output in outputs:
                yield output

    def estimate(
        self,
        chunks: Chunks | None = None,
        branch_prompt: str | None = None,
        aggregate_prompt: str | None = None,
        **options: Any,
    ) -> Estimate:
        """Return what ``run`` would use and cost with the same arguments, without a call.

        Raises:
            SpecError, InputError, BrokerError: As ``run``.
        """
        return self._client.estimate(self._spec(branch_prompt, aggregate_prompt, options), chunks)

    def trial(
        self,
        chunks: Chunks | None = None,
        branch_prompt: str | None = None,
        aggregate_prompt: str | None = None,
        *,
        size: int = 20,
        **options: Any,
    ) -> Trial:
        """Run a random sample of ``size`` chunks, and project the rest: see ``Client.trial``.

        Raises:
            SpecError, InputError, ModelError, BrokerError: As ``run``.
        """
        spec = self._spec(branch_prompt, aggregate_prompt, options)
        return self._client.trial(spec, chunks, size=size)

    def _shown(
        self, on_progress: Callable[[Status], None] | None, *, is_shown: bool
    ) -> ShownProgress:
        return ShownProgress(on_progress, is_shown=is_shown, is_embedded=self._client.is_embedded)

    def _of_loop(
        self,
        spec: RunSpec,
        chunks: AsyncChunks | None,
        on_bad_document: OnBadDocument | None,
        warnings: list[str],
    ) -> LoopRun:
        loop = asyncio.get_running_loop()

        def submit(*, on_created: Callable[[str], None], should_stop: Callable[[], bool]) -> Run:
            items: Any = chunks
            if isinstance(chunks, AsyncIterable):
                items = pulled(chunks, loop, should_stop)
            return self._client.submit(
                spec,
                items,
                on_bad_document=on_bad_document,
                on_notice=_kept_in(warnings),
                on_created=on_created,
                should_stop=should_stop,
            )

        return LoopRun(submit, lambda run_id: self._client.run(run_id).typed(spec.types))

    def _spec(
        self, branch_prompt: str | None, aggregate_prompt: str | None, options: dict[str, Any]
    ) -> RunSpec:
        if any(map(is_callable_model, self._models)) and not self._finalizer.alive:
            raise RunError("this runner is closed, and its function forgotten: make another one")
        own = {"model": self._models, "max_workers": self._max_workers}
        given = {
            "branch_prompt": branch_prompt,
            "aggregate_prompt": aggregate_prompt,
            **options,
            "inputs": paths(options.get("inputs", ())),
        }
        fields = canonical({name: value for name, value in given.items() if value is not None})
        if fields.get("models"):
            del own["model"]
        for name in ("model", "models", "fallback"):
            if name in fields:
                fields[name] = self._named(fields[name])
        return make_spec(**{**own, **fields})

    def _named(self, models: Any) -> Any:
        """Return models of a run with the strings of functions in place of these."""
        if isinstance(models, (list, tuple)):
            return [self._named(one) for one in models]
        if not callable(models):
            return models
        self._known.append(model_string(models, is_embedded=self._is_embedded))
        return self._known[-1]

    def resume(
        self,
        run_id: str,
        chunks: Chunks | None = None,
        *,
        retry_failed: bool = False,
        progress: bool = False,
        on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None,
    ) -> Result[Any]:
        """Resume a run whose process has died, and wait for its result.

        Its outcomes are kept. This runner's function takes the place of the run's function, which has
        died with its process.

        Args:
            run_id: The run.
            chunks: The same input again, if it is in no file and was not enqueued completely.
            retry_failed: Whether to retry the failed branches of a run that has ended.
            progress: As for ``run``.
            on_progress: As for ``run``.
            on_bad_document: As for ``run``.

        Raises:
            UnknownRunError: There is no such run.
            RunError: The input differs, or this runner has begun other runs of a function.
        """
        run = self._client.run(run_id)
        self._replace_functions(run)
        with self._shown(on_progress, is_shown=progress) as follow:
            self._client.resume(run_id, chunks, on_bad_document=on_bad_document)
            if retry_failed and run.status().status.has_ended:
                run.retry_failed()
            return _result(run, follow)

    def _replace_functions(self, run: Run) -> None:
        """Put this runner's functions, in their order, in the place of those of a run."""
        theirs = list(filter(is_callable_model, run.spec.all_models))
        own = list(filter(is_callable_model, self._models))
        if not theirs or not own:
            return
        if len(theirs) != len(own):
            raise RunError(
                f"run {run.run_id} calls {plural(len(theirs), 'function', 'functions')}, and this "
                f"runner has {len(own)}: give as many, in the same order"
            )
        for model, function in zip(theirs, own, strict=True):
            register_callable(resolve_callable(function), model)
            weakref.finalize(self, unregister_callable, model)

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

    async def __aenter__(self) -> Self:
        # It holds up the loop for a tenth of a second: now, and not in the first run.
        await in_thread(lambda: import_module("fanout.client.connections"))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await in_thread(self.close)


def _kept_in(warnings: list[str]) -> Notify:
    """Return a function that logs each notice, and adds warnings to the list."""

    def notify(notice: Notice) -> None:
        log_notice(notice)
        if notice.is_warning:
            warnings.append(notice.text)

    return notify


def _noted(result: Result[Any], warnings: list[str]) -> Result[Any]:
    return replace(result, notes=[*warnings, *result.notes])


def _result(run: Run, on_progress: Callable[[Status], None] | None) -> Result[Any]:
    try:
        run.wait(on_progress=on_progress)
    except KeyboardInterrupt:
        run.cancel()
        raise
    return run.result()


def _release(client: Client, models: Iterable[str]) -> None:
    client.close()
    for model in filter(is_callable_model, models):
        unregister_callable(model)
