"""What the prompts of a stage have in common, so that a branch adds only what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from fanout.core.lanes import first_lane
from fanout.inputs.fences import with_rule
from fanout.inputs.retrieval_prompts import has_context
from fanout.llm.base import LLMRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.answer_shape import AnswerShape
    from fanout.core.cells import Cell
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.inputs.prompts import Template
    from fanout.policy.prefixes import PromptCache

__all__ = ["PromptFrame", "frame_of"]


class PromptFrame(msgspec.Struct, frozen=True, kw_only=True):
    """What the branches of a stage ask one model with one of its prompts.

    Attributes:
        template: The prompt's template.
        is_fenced: Whether text that is not the user's own has fences.
        has_passages: Whether the prompt has passages.
        request: The request without its prompt, of the first sample.
    """

    template: Template
    is_fenced: bool
    has_passages: bool
    request: LLMRequest

    def rendered(self, values: Mapping[str, str], columns: Mapping[str, Cell]) -> str:
        """Return the prompt as its template is written. Raises PromptError: a name has no value."""
        return self.template.render(values, columns, is_fenced=self.is_fenced)

    def asks(
        self,
        prompt: str,
        *,
        sample: int,
        shape: AnswerShape | None,
        cache: PromptCache | None = None,
    ) -> LLMRequest:
        """Return the request of a branch.

        Args:
            prompt: Its prompt.
            sample: The number of its sample.
            shape: What its answer must be.
            cache: What its provider is told of the prompt cache.
        """
        common = self.request
        if cache is None and shape is common.shape and (not sample or common.seed is None):
            return structs.replace(common, prompt=prompt)
        seed = None if common.seed is None else common.seed + sample
        return structs.replace(common, prompt=prompt, seed=seed, shape=shape, cache=cache)


def frame_of(
    spec: RunSpec,
    model: str,
    template: Template,
    *,
    shape: AnswerShape | None,
    reduce: Reduce | None = None,
    retrieves: bool = False,
) -> PromptFrame:
    """Return what the branches of a run, or the nodes of a reduce, ask a model.

    Args:
        spec: The run's spec.
        model: The model.
        template: The template of the prompt.
        shape: What the answers must be; None is any text.
        reduce: The reduce; None for the branches.
        retrieves: Whether passages are found for the prompts of the run.
    """
    return PromptFrame(
        template=template,
        is_fenced=spec.is_fenced(model),
        has_passages=retrieves and reduce is None and has_context(template),
        request=LLMRequest(
            prompt="",
            system=with_rule(spec, model, spec.system),
            temperature=spec.temperature,
            max_tokens=spec.max_tokens if reduce is None else reduce.max_tokens,
            seed=spec.seed,
            stop=spec.stop,
            shape=shape,
            lane=first_lane(spec.lane),
        ),
    )
