"""What a worker process keeps of the runs that it works on: specs, shards, prompts."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from itertools import chain
from sys import getsizeof
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from fanout.core.answer_shape import AnswerShape, shape_of
from fanout.core.cells import cell_size
from fanout.core.errors import SettingsError, StoredDataError
from fanout.core.spec import RunSpec
from fanout.inputs.fold_prompts import aggregate_source
from fanout.inputs.prompts import Template
from fanout.inputs.retrieval_prompts import query_template, step_prompts_of
from fanout.llm.prices import price_of
from fanout.llm.prompt_plans import plan_of
from fanout.llm.step_plans import step_plan_of
from workers.context.batches import LoadingCache
from workers.context.prompt_frames import frame_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from fanout.core.records import Shard
    from fanout.core.reduces import Reduce
    from fanout.inputs.step_prompts import StepPrompts
    from fanout.llm.prompt_plans import PromptPlan
    from fanout.llm.step_plans import StepPlan
    from fanout.stores import RedisStore
    from workers.context.prompt_frames import PromptFrame

__all__ = ["RunCaches", "RunSteps"]

_SHARDS = 32
# The inputs of those shards, in memory.
_SHARD_BYTES = 16_000_000
_SPECS = 64


class RunSteps(NamedTuple):
    """The steps of a run, as its branches use them.

    Attributes:
        prompts: Their prompts.
        shapes: The shape of the answers of each; None is any text.
        plan: How their prompts are laid out; None for as their templates are written.
    """

    prompts: StepPrompts
    shapes: Mapping[str, AnswerShape | None]
    plan: StepPlan | None


def _input_bytes(shard: Shard) -> int:
    """Return about the bytes of memory that the inputs of a shard take."""
    chunks = chain(shard.chunks, shard.before, shard.after)
    return sum(getsizeof(chunk.text) + cell_size(chunk.columns) for chunk in chunks)


class RunCaches:
    """The caches of one store: two servers may have runs with the same id.

    Args:
        store: Where runs are loaded from.
        loaders: The threads that load for coroutines. Nothing else should use them: outcomes of other
            runs are written even if inputs cannot be loaded.

    Attributes:
        specs: The spec of a run id.
        indices: The indices of the branches of a shard.
        shards: The shard of a shard id.
        shape: Returns the shape of the answers of a run; None is any text.
        template: Returns the prompt template of a run and an aspect.
        frame: Returns what the branches of a run ask a model with the prompt of an aspect.
        reduce_frame: Returns what the nodes of a reduce of a run, by its name, ask a model.
        reduce_shape: Returns the shape of the answers of the calls of a reduce.
        steps: Returns the prompts and shapes of the steps of a run.
        query: Returns the template of what passages are looked for; None of a run without, or with steps.
        plan: Returns how the prompts of a run without steps are laid out; None for as its templates are
            written.
    """

    def __init__(self, store: RedisStore, loaders: Executor) -> None:
        self._store = store
        self._loaders = loaders
        self.specs = LoadingCache(self._load_spec, loaders, size=_SPECS)
        self.indices = LoadingCache(store.indices, loaders, size=_SHARDS * 8)
        self.shards = LoadingCache(
            store.shard, loaders, size=_SHARDS, weigh=_input_bytes, most_weight=_SHARD_BYTES
        )
        self.shape = lru_cache(maxsize=_SPECS)(self._load_shape)
        self.steps = lru_cache(maxsize=_SPECS)(self._load_steps)
        self.query = lru_cache(maxsize=_SPECS)(self._load_query)
        self.plan = lru_cache(maxsize=_SPECS)(self._load_plan)
        self.template = lru_cache(maxsize=_SPECS * 8)(self._load_template)
        self.frame = lru_cache(maxsize=_SPECS * 8)(self._load_frame)
        self.reduce_frame = lru_cache(maxsize=_SPECS * 2)(self._load_reduce_frame)
        self.reduce_shape = lru_cache(maxsize=_SPECS * 2)(self._load_reduce_shape)

    def _load_spec(self, run_id: str) -> RunSpec:
        try:
            spec = RunSpec.model_validate_json(self._store.spec(run_id))
        except ValidationError as error:
            # Field names only: the values are prompts.
            fields = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
            raise StoredDataError(
                f"the worker does not understand this run's {fields or 'spec'}: it may be of "
                "another version of fanout than the client"
            ) from None
        # The first price of a process takes 0.2 s: here that holds up no call. Where the file of prices
        # cannot be used, the branch says so.
        with suppress(SettingsError):
            for model in spec.all_models:
                price_of(model, spec.price)
        return spec

    def _load_template(self, run_id: str, aspect: str | None) -> Template:
        return Template.parse(self.specs.get(run_id).prompts[aspect])

    def _load_frame(self, run_id: str, aspect: str | None, model: str) -> PromptFrame:
        return frame_of(
            self.specs.get(run_id),
            model,
            self.template(run_id, aspect),
            shape=self.shape(run_id),
            retrieves=self.query(run_id) is not None,
        )

    def _load_reduce_frame(self, run_id: str, name: str, model: str) -> PromptFrame:
        reduce = self._reduce(run_id, name)
        template = Template.parse(aggregate_source(reduce), field=reduce.field("aggregate_prompt"))
        spec, shape = self.specs.get(run_id), self.reduce_shape(run_id, name)
        return frame_of(spec, model, template, shape=shape, reduce=reduce)

    def _load_steps(self, run_id: str) -> RunSteps:
        spec = self.specs.get(run_id)
        shapes = {step.name: shape_of(step.answer_schema, step.choices) for step in spec.steps}
        return RunSteps(prompts=step_prompts_of(spec), shapes=shapes, plan=step_plan_of(spec))

    def _load_query(self, run_id: str) -> Template | None:
        return query_template(self.specs.get(run_id))

    def _load_plan(self, run_id: str) -> PromptPlan | None:
        return plan_of(self.specs.get(run_id))

    def _load_shape(self, run_id: str) -> AnswerShape | None:
        spec = self.specs.get(run_id)
        return shape_of(spec.schema, spec.choices)

    def _load_reduce_shape(self, run_id: str, name: str) -> AnswerShape | None:
        return shape_of(self._reduce(run_id, name).call_schema)

    def _reduce(self, run_id: str, name: str) -> Reduce:
        """Return a reduce of a run. Raises StoredDataError if it has none of this name."""
        try:
            return self.specs.get(run_id).reduction_of(name)
        except KeyError:
            raise StoredDataError(f"the run has no reduce {name!r}") from None

    def close(self) -> None:
        """End the threads that load."""
        self._loaders.shutdown(cancel_futures=True)
