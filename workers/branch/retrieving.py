"""Finds the passages for the prompts of a branch, in an index or by a function of the user."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import LostDataError
from fanout.core.lanes import first_lane
from fanout.core.records import ErrorKind
from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes
from fanout.inputs.retrieval_prompts import has_context
from fanout.inputs.step_prompts import context_of as context_of_step
from fanout.inputs.token_counters import ratio_of
from fanout.llm import context_tokens
from fanout.retrieval.context import NO_PASSAGE, Context, context_of, room_bytes
from fanout.retrieval.passages import Passage, passages_from
from workers.branch.functions import call_function

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.cells import Cell
    from fanout.core.passage_uses import PassageUse
    from fanout.core.records import StepOutcome
    from fanout.core.retrieval import Retrieval
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.inputs.prompts import Template
    from fanout.inputs.step_prompts import StepPrompts
    from fanout.llm.callables import CallableLLM
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["RetrievalError", "Retriever"]

_NAME_BYTES = 12


class RetrievalError(Exception):
    """No passages could be looked for.

    Attributes:
        kind: Why.
        stop_after: Stop the run after this many branches with the same failure; 0 for never.
    """

    def __init__(self, kind: ErrorKind, message: str, *, stop_after: int = 0) -> None:
        super().__init__(f"retrieval: {message}")
        self.kind = kind
        self.stop_after = stop_after


class Retriever:
    """Finds the passages for the prompts of one branch; the same query is looked for once.

    Args:
        claim: The right to make the calls of the branch.
        context: The context of this worker process.
        spec: The job.
        calls: Has what functions have found in earlier deliveries, and gets what they find in this one.

    Attributes:
        uses: The passages of the last prompt.
    """

    def __init__(self, claim: Claim, context: WorkerContext, spec: RunSpec, calls: Calls) -> None:
        self._claim = claim
        self._context = context
        self._run_id = claim.branch_id.run_id
        self._spec = spec
        self._calls = calls
        self._found: dict[tuple[Retrieval, str], list[Passage]] = {}
        self.uses: tuple[PassageUse, ...] = ()

    async def of_prompt(
        self,
        template: Template,
        values: Mapping[str, str],
        columns: Mapping[str, Cell],
        *,
        model: str,
    ) -> str:
        """Return the ``{context}`` of a prompt of a job without steps.

        Args:
            template: The prompt.
            values: The value of each other name of fanout.
            columns: The cells of the input's columns.
            model: The model that is asked.

        Raises:
            PromptError: A name has no value.

        For the other errors see ``find``.
        """
        spec = self._spec
        retrieval, query = spec.retrieval(), self._context.runs.query(self._run_id)
        if retrieval is None or query is None:
            return NO_PASSAGE
        found = await self.find(
            retrieval,
            query.render(values, columns),
            model=model,
            prompt=template.render({**values, "context": ""}, columns),
            system=spec.system,
            max_tokens=spec.max_tokens,
        )
        return found.text

    async def of_step(
        self,
        prompts: StepPrompts,
        step: StepSpec,
        values: Mapping[str, str],
        columns: Mapping[str, Cell],
        answers: Mapping[str, StepOutcome],
        *,
        model: str,
        sent_bytes: int = 0,
    ) -> dict[str, str]:
        """Return the values for ``{context}`` in the prompt of a step, and in the one that it judges.

        ``sent_bytes``: those of the answers that were sent back, with the feedback.

        Raises as ``of_prompt`` does.
        """
        spec, contexts = self._spec, dict[str, str]()
        steps = {one.name: one for one in spec.steps}
        # What was found for the step itself comes last.
        for one in (steps[name] for name in (step.judge, step.name) if name is not None):
            retrieval = spec.retrieval(one)
            template = prompts.templates.get(one.name)
            if retrieval is None or template is None or not has_context(template):
                self.uses = ()
                continue
            name = context_of_step(one.name)
            # A judge has the prompt that it judges within its own, with the answer.
            empty = {**values, context_of_step(step.name): "", **contexts, name: ""}
            found = await self.find(
                retrieval,
                prompts.query(one, values, columns, answers),
                model=model,
                prompt=prompts.render(step, empty, columns, answers),
                system=spec.system if step.system is None else step.system,
                max_tokens=spec.max_tokens if step.max_tokens is None else step.max_tokens,
                sent_bytes=sent_bytes,
            )
            contexts[name] = found.text
        return contexts

    async def find(
        self,
        retrieval: Retrieval,
        query: str,
        *,
        model: str,
        prompt: str,
        system: str | None,
        max_tokens: int | None,
        sent_bytes: int = 0,
    ) -> Context:
        """Return the passages for a prompt, as many as there is room for.

        Args:
            retrieval: Where they come from, and how many.
            query: What is looked for.
            model: The model that is asked, whose window decides what fits.
            prompt: The prompt without the passages.
            system: Its system prompt.
            max_tokens: The longest answer; None is not known.
            sent_bytes: The bytes of earlier answers and feedback behind the prompt.

        Raises:
            RetrievalError: They cannot be looked for.
            CallStoppedError: The run was stopped, or this worker stops.
            StorageError: The index cannot be fetched now.
            ModelError: This worker cannot use the function, or lacks a package.
        """
        found = self._found.get((retrieval, query))
        if found is None:
            found = await self._look(retrieval, query)
            self._found[retrieval, query] = found
        spec = self._spec
        room = room_bytes(
            spec.context_tokens or context_tokens(model),
            bytes_per_token=ratio_of(spec.tokenizer) or float(BYTES_PER_TOKEN),
            prompt_bytes=utf8_bytes(prompt) + utf8_bytes(system or "") + sent_bytes,
            max_tokens=max_tokens,
        )
        made = context_of(found, room, is_fenced=spec.is_fenced(model))
        self.uses = made.uses
        return made

    async def _look(self, retrieval: Retrieval, query: str) -> list[Passage]:
        if retrieval.is_function:
            return await self._called(retrieval, query)
        passages = self._context.passages
        try:
            return await passages.search(self._run_id, retrieval.source, query, retrieval.top_k)
        except LostDataError as error:
            raise RetrievalError(ErrorKind.LOST, str(error)) from None

    async def _called(self, retrieval: Retrieval, query: str) -> list[Passage]:
        """Return what a function of the user finds, or has found in an earlier delivery.

        What a batch brings answers the prompt with those passages.
        """
        name = _name(retrieval, query)
        kept = self._calls.so_far.found.get(name)
        if kept is not None:
            return msgspec.json.decode(kept, type=list[Passage])
        found: list[Passage] = []

        async def ask(llm: CallableLLM) -> str:
            nonlocal found
            # A generator runs only as its passages are taken.
            taken = partial(passages_from, most=retrieval.top_k)
            found = await llm.call(query, retrieval.top_k, then=taken)
            return "found"

        spec = self._spec
        result = await call_function(
            self._claim,
            self._context,
            spec,
            retrieval.source,
            ask,
            instead=" that finds passages",
        )
        if result.kind is not None:
            message = result.message or "no passages"
            raise RetrievalError(result.kind, message, stop_after=result.stop_after)
        await self._keep(name, found)
        return found

    async def _keep(self, name: str, found: list[Passage]) -> None:
        """Keep what a function has found for further deliveries. Raises as Claim.checkpoint does."""
        calls = self._calls
        calls.so_far = calls.so_far.with_found(name, msgspec.json.encode(found))
        if first_lane(self._spec.lane) == "batch":
            # The call ends this delivery.
            await self._claim.checkpoint(msgspec.json.encode(calls.so_far))


def _name(retrieval: Retrieval, query: str) -> str:
    """Return what names a search."""
    searched = f"{retrieval.source} {retrieval.top_k} {query}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(searched, digest_size=_NAME_BYTES).hexdigest()
