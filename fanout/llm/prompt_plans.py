"""How a run lays out its prompts, and which of them warm a provider's cache for others."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from fanout.core.cells import OWN
from fanout.inputs.fences import with_rule
from fanout.inputs.prompt_layout import common_parts, document_first, has_input, in_order
from fanout.inputs.prompts import Template
from fanout.inputs.token_counters import TokenCounter, ratio_of
from fanout.llm.prices import price_of
from fanout.policy.prefixes import Prefix, PromptCache, cache_rules, marked, pays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.core.lanes import Lane
    from fanout.core.records import BranchRef, Chunk
    from fanout.core.spec import RunSpec
    from fanout.core.spec_fields import PromptOrder
    from fanout.policy.prefixes import CacheRules

__all__ = ["PromptPlan", "plan_of"]

_KEY_BYTES = 12
_SAMPLE = frozenset({"sample", f"{OWN}sample"})


class PromptPlan:
    """The prompts of the branches of one run.

    Args:
        spec: The run's spec.
        templates: Its templates, by aspect.
        rules: How the providers of its models cache prompts, as far as that is known, by model.
        system: Its system prompt; None is that of the spec.
        order: Its order of prompts; None is that of the spec.
        varying: Names that differ between branches of a chunk, and from one template to another.
        in_turn: How many of the templates a branch asks, one after the other; None if each has a branch of
            its own.
        rounds: How many more calls of a branch there may be with them.
    """

    def __init__(
        self,
        spec: RunSpec,
        templates: Mapping[str | None, Template],
        rules: Mapping[str, CacheRules],
        *,
        system: str | None = None,
        order: PromptOrder | None = None,
        varying: frozenset[str] = frozenset(),
        in_turn: int | None = None,
        rounds: int = 0,
    ) -> None:
        self._templates = templates
        self._rules = rules
        self._order = order or spec.prompt_order
        every = list(templates.values())
        self._common = common_parts(every, varying)
        self._varying = varying | _SAMPLE
        self._is_at_once = in_turn is None
        self._asked = len(every) if in_turn is None else in_turn
        self._rounds = rounds
        self._is_input_common = has_input(every[0], self._common)
        self._has_aspects = len(every) > 1
        self._samples = spec.samples
        # The job has what was learnt before it began: its prompts must not change while it goes on.
        ratio = ratio_of(spec.tokenizer)
        self._tokens = TokenCounter() if ratio is None else TokenCounter(ratio)
        self._spec = spec
        given = spec.system if system is None else system
        self._system = with_rule(spec, next(iter(rules), spec.model), given) or ""
        self._system_tokens = self._tokens(self._system)

    def prompt(
        self,
        chunk: Chunk,
        ref: BranchRef,
        values: Mapping[str, str],
        *,
        model: str,
        chunks: int,
        lane: Lane,
    ) -> tuple[str, PromptCache | None]:
        """Return the prompt of a branch, and what to tell its provider of the cache.

        Args:
            chunk: Its chunk.
            ref: Its aspect and sample.
            values: The value of each name of fanout.
            model: The model that it asks.
            chunks: How many chunks the prompts of about the same time have.
            lane: How the call is bought.

        Raises:
            PromptError: A name has no value.
        """
        is_first = self.is_document_first(chunk)
        template = self._templates[ref.aspect]
        is_fenced = self._spec.is_fenced(model)
        laid_out = (
            document_first(template, values, chunk.columns, is_fenced=is_fenced)
            if is_first
            else in_order(template, values, chunk.columns, self._common, is_fenced=is_fenced)
        )
        rules = self._rules.get(model)
        if rules is None:
            return laid_out.text, None
        prefixes, key = self._of_run(ref, chunks, is_first=is_first), None
        own = self._of_chunk(chunk, ref, is_first=is_first)
        if own is not None and lane == "batch" and not self._is_at_once:
            # The other steps are in later batches, when no cache has it any more.
            own = msgspec.structs.replace(own, calls=self._samples)
        elif own is not None and rules.write <= 1:
            own = msgspec.structs.replace(own, calls=own.calls + self._rounds)
        if own is not None and pays(rules, own, lane):
            end = laid_out.shared if self._is_of_aspects(is_first=is_first) else len(laid_out.text)
            prefixes.append(msgspec.structs.replace(own, end=end))
            key = self._key(laid_out.text[:end])
        marks = marked(rules, prefixes, lane)
        return laid_out.text, PromptCache(marks=marks, key=key) if marks or key else None

    def is_document_first(self, chunk: Chunk) -> bool:
        """Say whether the prompts of a chunk begin with its text although their templates do not.

        It is the same for all models and lanes: so their answers can be compared, and kept.
        """
        if self._order == "document_first":
            return True
        if not self._has_aspects or self._is_input_common or self._order == "as_written":
            return False
        prefix = self._shared(chunk, literals=())
        return any(pays(rules, prefix) for rules in self._rules.values())

    def families(
        self, chunk: Chunk, ref: BranchRef, *, model: str, chunks: int, lane: Lane
    ) -> tuple[str, ...]:
        """Return names of the prefixes of which one call should be ahead of the others.

        The longer one comes last. In a batch, no call is ahead of another one.
        """
        rules = self._rules.get(model)
        if rules is None or lane == "batch":
            return ()
        is_first = self.is_document_first(chunk)
        names = [
            f"{model}/{ref.aspect or ''}" if prefix.end else model
            for prefix in self._of_run(ref, chunks, is_first=is_first)
            if pays(rules, prefix)
        ]
        own = self._of_chunk(chunk, ref, is_first=is_first)
        has_siblings = self._is_at_once or self._samples > 1
        if own is not None and has_siblings and pays(rules, own):
            aspect = "" if self._is_of_aspects(is_first=is_first) else ref.aspect
            names.append(f"{model}/{aspect}/{ref.chunk}")
        return tuple(names)

    def _is_of_aspects(self, *, is_first: bool) -> bool:
        """Say whether all branches of a chunk share its text, and not only the samples of one prompt."""
        return is_first or self._is_input_common

    def _of_chunk(self, chunk: Chunk, ref: BranchRef, *, is_first: bool) -> Prefix | None:
        """Return what branches of one chunk share, without its exact end."""
        template = self._templates[ref.aspect]
        if is_first:
            return self._shared(chunk, literals=())
        if self._is_input_common:
            return self._shared(chunk, literals=template.parts[: self._common : 2])
        if not self._varying.isdisjoint(template.names):
            return None
        whole = self._shared(chunk, literals=template.parts[::2])
        return msgspec.structs.replace(whole, calls=self._samples)

    def _shared(self, chunk: Chunk, *, literals: Sequence[str]) -> Prefix:
        # At least: values of other names may stand before the text.
        tokens = self._system_tokens + sum(map(self._tokens, literals))
        return Prefix(
            tokens=tokens + self._tokens(chunk.text),
            calls=self._asked * self._samples,
        )

    def _of_run(self, ref: BranchRef, chunks: int, *, is_first: bool) -> list[Prefix]:
        """Return what the prompts of different chunks share."""
        calls = chunks * self._asked * self._samples
        found = [Prefix(tokens=self._system_tokens, calls=calls)] if self._system else []
        head = self._templates[ref.aspect].parts[0]
        if not is_first and head.strip():
            tokens = self._system_tokens + self._tokens(head)
            found.append(Prefix(tokens=tokens, calls=chunks * self._samples, end=len(head)))
        return found

    def _key(self, shared: str) -> str:
        data = f"{self._system}\0{shared}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=_KEY_BYTES).hexdigest()


def plan_of(spec: RunSpec) -> PromptPlan | None:
    """Return the plan of a run without steps; None if its prompts are as its templates are written.

    Raises:
        PromptError: A template has a misplaced brace.
        SettingsError: The file of ``FANOUT_PRICES`` cannot be used.
    """
    if spec.steps:
        return None
    found = {
        model: cache_rules(model, price_of(model, spec.price))
        for model in spec.models or (spec.model,)
    }
    rules = {model: own for model, own in found.items() if own is not None}
    if not rules and spec.prompt_order != "document_first":
        return None
    templates = {name: Template.parse(source) for name, source in spec.prompts.items()}
    return PromptPlan(spec, templates, rules)
