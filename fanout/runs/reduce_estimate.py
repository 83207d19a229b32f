"""How many calls one reduce of a job will make, and their tokens."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fanout.aggregators import RULE_TOKENS, group_key
from fanout.core.errors import SpecError
from fanout.core.step_answers import likely_answer
from fanout.core.tokens import BYTES_PER_TOKEN
from fanout.inputs.fences import FENCE_BYTES, with_rule
from fanout.inputs.fold_prompts import aggregate_source
from fanout.inputs.token_counters import ratio_of
from fanout.policy.estimates import Calls
from fanout.policy.reduce_ranges import (
    cluster_range,
    least_refine_range,
    least_tree_range,
    refine_range,
    tree_range,
)
from fanout.policy.token_ratio import TokenRatio, bytes_by_kind
from fanout.runs.comparison_estimate import comparison_calls, competitions, resolution_calls
from fanout.runs.token_counts import ANSWER_TOKENS, reduce_room

if TYPE_CHECKING:
    from fanout.core.records import Chunk
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.policy.token_ratio import TokenSums
    from fanout.runs.ask_counts import AnswerTokens

__all__ = ["ReduceEstimator"]

# Groups that are told apart; the chunks of more are taken to be in groups of the same sizes.
_MOST_GROUPS = 100_000


class ReduceEstimator:
    """Counts what one reduce by calls will use, chunk by chunk.

    Args:
        spec: The job.
        reduce: The reduce.
        seen: What the fleet knows of the calls of its model.
    """

    def __init__(self, spec: RunSpec, reduce: Reduce, seen: TokenSums) -> None:
        self.reduce = reduce
        self._spec = spec
        self._seen = seen
        self._chunks = 0
        self._groups: Counter[str] = Counter()
        # The chunks of the groups beyond these.
        self._ungrouped = 0

    def add(self, chunk: Chunk) -> None:
        """Count the branches of a chunk."""
        self._chunks += 1
        if self.reduce.kind != "best":
            for aspect in self._spec.aspect_names:
                self._count_group(chunk, aspect)

    def _count_group(self, chunk: Chunk, aspect: str | None) -> None:
        group_by = self.reduce.group_by
        group = group_key(
            group_by,
            document=chunk.document,
            aspect=aspect,
            model=None,
            columns=chunk.columns,
            steps=likely_answer(group_by, self._spec.steps, chunk.document_index),
        )
        if group in self._groups or len(self._groups) < _MOST_GROUPS:
            self._groups[group] += 1
        else:
            self._ungrouped += 1

    def calls(self, branches: Calls, outputs: AnswerTokens) -> Calls:
        """Return the calls of the reduce.

        Args:
            branches: The calls of the branches.
            outputs: The tokens of an output.
        """
        if self.reduce.resolves:
            answers = self._chunks * self._spec.branches_per_chunk
            return resolution_calls(self._spec, self.reduce, answers)
        if self.reduce.compares:
            sizes = competitions(
                self._spec, self.reduce, self._chunks, self._groups, self._ungrouped
            )
            return comparison_calls(self._spec, self.reduce, sizes, branches, outputs)
        return self._tree(outputs) if self._groups else Calls()

    def _tree(self, outputs: AnswerTokens) -> Calls:
        spec, reduce = self._spec, self.reduce
        learnt = TokenRatio.fitted(self._seen)
        system = with_rule(spec, reduce.model, spec.system) or ""
        fence = " " * FENCE_BYTES * spec.is_fenced(reduce.model)
        rule = " " * BYTES_PER_TOKEN * RULE_TOKENS * spec.sources
        frame = learnt.tokens_of(bytes_by_kind((aggregate_source(reduce), system, fence, rule)))
        ratio = ratio_of(spec.tokenizer) or float(BYTES_PER_TOKEN)
        try:
            room = float(reduce_room(spec, reduce, ratio))
        except SpecError:
            room = 1.0
        least, likely, most = outputs.least, outputs.likely, outputs.most
        partial = float(reduce.max_tokens or ANSWER_TOKENS)
        # Each answer of a prompt: its samples, and those of each model.
        each = spec.variants.count / len(spec.aspect_names)
        models = len(spec.models) if reduce.is_by_model else 1
        low = middle = high = Calls()
        folded = refine_range if reduce.refines else tree_range
        at_least = least_refine_range if reduce.refines else least_tree_range
        at_most = cluster_range if reduce.clusters else folded
        for count in self._groups.values():
            for _ in range(models):
                answers = count * each / models
                low = low.plus(at_least(answers, room, least, 1.0, frame))
                middle = middle.plus(folded(answers, room, likely, partial, frame))
                high = high.plus(at_most(answers, room, most or partial, partial, frame))
        all_groups = 1 + self._ungrouped / self._groups.total()
        if spec.sources and spec.max_reasks:
            # Each answer may be sent back once, with its citations.
            high = high.plus(high)
        return Calls(
            calls_low=low.calls_low * all_groups,
            calls_likely=middle.calls_low * all_groups,
            calls_high=high.calls_high * all_groups,
            input_low=low.input_low * all_groups,
            input_likely=middle.input_low * all_groups,
            input_high=high.input_high * all_groups,
            output_low=low.calls_low * all_groups,
            output_likely=middle.calls_low * all_groups * min(partial, max(likely, ANSWER_TOKENS)),
            output_high=high.calls_high * all_groups * partial,
        )
