"""Makes jobs of arguments and submits them, for a runner of several jobs."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from fanout.client.arguments import checked_count, model_string, model_strings, paths
from fanout.client.client import Client
from fanout.client.loop_runs import LoopRun
from fanout.client.loop_threads import in_thread, pulled
from fanout.client.progress import ShownProgress
from fanout.client.step_functions import named_steps
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
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from typing import Self

    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import AsyncChunks, Chunks, Notice, Notify
    from fanout.llm import LLM
    from fanout.runs.results import Result
    from fanout.runs.status import Status

    Model = str | Callable[[str], str] | Callable[[str], Awaitable[str]] | LLM
    OnBadDocument = Callable[[str, str], None]

__all__ = ["JobRunner", "noted", "result_of"]


class JobRunner:
    """What runs the jobs of ``ParallelCalls``, whose arguments it takes."""

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
        # With that of functions, once a run has some that the worker of the first one does not have.
        self._clients = [self._client]
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _release, self._clients, self._known)

    def _client_of(self, spec: RunSpec) -> Client:
        """Return the client for a job: a worker in another process has no function of this one."""
        called = spec.all_called
        if (
            not self._is_embedded
            or self._client.has_functions(called)
            or not any(map(is_callable_model, called))
        ):
            return self._client
        with self._lock:
            if len(self._clients) == 1:
                own = Client(concurrency=self._max_workers)
                own.has_functions(called)
                self._clients.append(own)
            return self._clients[1]

    def _submitted(
        self,
        spec: RunSpec,
        chunks: Chunks | None,
        on_bad_document: OnBadDocument | None,
        warnings: list[str],
    ) -> Run:
        """Submit a run; Ctrl-C while its input is read cancels it."""
        created: list[str] = []
        client = self._client_of(spec)
        try:
            return client.submit(
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
                    client.run(run_id).cancel()
            raise

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
        loop, client = asyncio.get_running_loop(), self._client_of(spec)

        def submit(*, on_created: Callable[[str], None], should_stop: Callable[[], bool]) -> Run:
            items: Any = chunks
            if isinstance(chunks, AsyncIterable):
                items = pulled(chunks, loop, should_stop)
            return client.submit(
                spec,
                items,
                on_bad_document=on_bad_document,
                on_notice=_kept_in(warnings),
                on_created=on_created,
                should_stop=should_stop,
            )

        return LoopRun(submit, lambda run_id: client.run(run_id).typed(spec.types))

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
        for name in ("model", "models", "fallback", "retrieve", "embed"):
            if name in fields:
                fields[name] = self._named(fields[name])
        if "steps" in fields:
            fields["steps"] = named_steps(
                fields["steps"], self._known, is_embedded=self._is_embedded
            )
        if isinstance(fields.get("retrieve"), PathLike):
            fields["retrieve"] = fspath(fields["retrieve"])
        return make_spec(**{**own, **fields})

    def _named(self, models: Any) -> Any:
        """Return models of a run with the strings of functions in place of these."""
        if isinstance(models, (list, tuple)):
            return [self._named(one) for one in models]
        if not callable(models):
            return models
        self._known.append(model_string(models, is_embedded=self._is_embedded))
        return self._known[-1]

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
            self._replace(model, resolve_callable(function))

    def _replace_others(self, run: Run, field: str, called: Iterable[str], given: Any) -> None:
        """Put functions, in their order, in the place of those that a field of a run names."""
        if given is None:
            return
        own = list(given) if isinstance(given, (list, tuple)) else [given]
        theirs = list(filter(is_callable_model, dict.fromkeys(called)))
        if len(theirs) != len(own):
            raise RunError(
                f"{field}: run {run.run_id} has {plural(len(theirs), 'function', 'functions')} of a "
                f"Python process there (got {len(own)})"
            )
        for name, function in zip(theirs, own, strict=True):
            if not callable(function):
                raise RunError(f"{field}: must be a function (got {type(function).__name__})")
            self._replace(name, function)

    def _replace(self, name: str, function: Any) -> None:
        register_callable(function, name)
        weakref.finalize(self, unregister_callable, name)

    def _replace_step_functions(self, run: Run, functions: Mapping[str, Any]) -> None:
        """Put functions in the place of those of a run's steps, by the name of the step."""
        theirs = {
            step.name: step.function
            for step in run.spec.steps
            if step.function is not None and is_callable_model(step.function)
        }
        for name, function in functions.items():
            if name not in theirs:
                known = ", ".join(theirs) or "none"
                raise RunError(
                    f"run {run.run_id} has no step {name!r} with a function of a Python process "
                    f"(it has: {known})"
                )
            self._replace(theirs[name], function)

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


def noted(result: Result[Any], warnings: list[str]) -> Result[Any]:
    """Return a result with the warnings of its input."""
    return replace(result, notes=[*warnings, *result.notes])


def result_of(run: Run, on_progress: Callable[[Status], None] | None) -> Result[Any]:
    """Wait for a run, and return its result; Ctrl-C cancels it."""
    try:
        run.wait(on_progress=on_progress)
    except KeyboardInterrupt:
        run.cancel()
        raise
    return run.result()


def _release(clients: Iterable[Client], models: Iterable[str]) -> None:
    for client in clients:
        client.close()
    for model in filter(is_callable_model, models):
        unregister_callable(model)
