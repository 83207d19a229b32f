"""``ParallelCalls``: the whole pattern in one call."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, overload

from fanout.client.job_runner import JobRunner, noted, result_of
from fanout.client.loop_threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from os import PathLike

    from fanout.client.trials import Trial
    from fanout.core.spec import ReduceName
    from fanout.inputs.documents import AsyncChunks, Chunks
    from fanout.runs.branch_output import AnswerT, Output
    from fanout.runs.estimate_result import Estimate
    from fanout.runs.results import Result
    from fanout.runs.status import Status

    Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
    OnBadDocument = Callable[[str, str], None]

__all__ = ["ParallelCalls"]


class ParallelCalls(JobRunner):
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

    @overload
    def run(
        self, chunks: Chunks | None = None, branch_prompt: None = None,
        aggregate_prompt: str | None = None, *, steps: Sequence[Mapping[str, Any]],
        aggregate_schema: object = None, inputs: Paths = (), samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[Any]: ...  # fmt: skip
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
            steps: Calls that follow each other, in place of ``branch_prompt``: dicts of the fields of
                ``StepSpec``. A ``schema`` may be a type, and a ``function`` a Python function.
            samples: The number of answers for each chunk and aspect; None is 1.
            reduce: ``none``, ``concat``, ``merge``, ``vote``, ``rank``, ``top``, ``table``, ``llm``,
                ``best`` or ``pairwise``.
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
            return noted(result_of(run, follow), warnings)

    @overload
    async def arun(
        self, chunks: AsyncChunks | None = None, branch_prompt: None = None,
        aggregate_prompt: str | None = None, *, steps: Sequence[Mapping[str, Any]],
        aggregate_schema: object = None, inputs: Paths = (), samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        progress: bool = False, on_progress: Callable[[Status], None] | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> Result[Any]: ...  # fmt: skip
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
            return noted(await own.result(follow), warnings)

    @overload
    def astream(
        self, chunks: AsyncChunks | None = None, branch_prompt: None = None,
        aggregate_prompt: str | None = None, *, steps: Sequence[Mapping[str, Any]],
        aggregate_schema: object = None, inputs: Paths = (), samples: int | None = None,
        reduce: ReduceName | None = None, group_by: str | None = None,
        on_bad_document: OnBadDocument | None = None, **options: Any,
    ) -> AsyncGenerator[Output[Any], None]: ...  # fmt: skip
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
            SpecError, InputError, ModelError, BrokerError: As ``run``.
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
        return self._client_of(spec).trial(spec, chunks, size=size)

    def resume(
        self,
        run_id: str,
        chunks: Chunks | None = None,
        *,
        functions: Mapping[str, Callable[[Any], Any]] | None = None,
        embed: Callable[[list[str]], Any] | None = None,
        retrieve: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
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
            functions: The functions of its steps that have died with its process, by the step's name.
            embed: The same for its ``embed``.
            retrieve: The same for the functions of its ``retrieve``, in their order.
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
        self._replace_step_functions(run, functions or {})
        self._replace_others(run, "embed", run.spec.embed_functions, embed)
        self._replace_others(run, "retrieve", run.spec.retrieval_functions, retrieve)
        with self._shown(on_progress, is_shown=progress) as follow:
            self._client.resume(run_id, chunks, on_bad_document=on_bad_document)
            if retry_failed and run.status().status.has_ended:
                run.retry_failed()
            return result_of(run, follow)
