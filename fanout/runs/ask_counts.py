"""The calls of branches and their tokens, counted from chunks: of one prompt, or of each step."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from fanout.core.answer_shape import shape_of
from fanout.core.asks import asks_of
from fanout.core.records import BranchRef
from fanout.core.step_answers import answer_fields
from fanout.core.strict_schema import WRAPPED
from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes
from fanout.inputs.fences import blocks, with_rule
from fanout.inputs.prompt_layout import branch_values
from fanout.inputs.prompts import Template
from fanout.inputs.step_prompts import StepPrompts, context_of
from fanout.inputs.token_counters import make_counter, ratio_of
from fanout.llm.call_bounds import longest_answer
from fanout.llm.prompt_plans import plan_of
from fanout.llm.registry import known_context_tokens
from fanout.llm.step_plans import step_plan_of
from fanout.policy.estimates import Calls, answer_range, likely_answer
from fanout.policy.routes import Route, Runs, routes_of
from fanout.policy.token_ratio import KINDS, TokenRatio, bytes_by_kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fanout.core.asks import Ask
    from fanout.core.lanes import Lane
    from fanout.core.records import Chunk
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.inputs.fences import Fenced
    from fanout.policy.token_ratio import TokenSums

__all__ = ["AnswerTokens", "AskCounts"]

# Tokens of an end of an answer, and of quotes, beside a label.
_FRAME_TOKENS = 2
_IN_JSON = f'{{"{WRAPPED}": ""}}'
# Tokens that a server and fanout add to an answer that is sent back with feedback.
_TURN_TOKENS = 60.0
_LANE: Lane = "realtime"
_PASSAGES = "[passages]"


class AnswerTokens(msgspec.Struct, frozen=True):
    """Tokens of an answer on average: the fewest, likely, and the most; None if there is no limit."""

    least: float
    likely: float
    most: float | None


# What a function returns is not known.
_OF_FUNCTION = AnswerTokens(0.0, 100.0, 500.0)
_NOTHING = AnswerTokens(0.0, 0.0, 0.0)


class _Count:
    """The prompts of one kind of call."""

    def __init__(self, spec: RunSpec, ask: Ask) -> None:
        self.ask = ask
        self.system = with_rule(spec, ask.models[0], ask.system) or ""
        self.name = "" if ask.step is None else ask.step.name
        shape = shape_of(ask.schema, ask.choices)
        self._shape_bytes = 0 if shape is None else utf8_bytes(shape.in_words)
        self.kinds = [0.0] * len(KINDS)
        self.exact_tokens = 0
        self.prompts = 0

    def add(self, prompt: str) -> None:
        self.prompts += 1
        kinds = bytes_by_kind((prompt, self.system), shape_bytes=self._shape_bytes)
        self.kinds = [one + more for one, more in zip(self.kinds, kinds, strict=True)]


class AskCounts:
    """Counts the calls of branches, and the tokens of their prompts.

    Args:
        spec: The job.
        seen: What the fleet knows of the calls of each of its models.
        passages: About what the prompts of each step have as ``{context}``; those of a job without steps
            have an empty name.

    Attributes:
        is_exact: Whether a tokenizer counts the tokens.
        shown: The first prompt of each step, with placeholders for answers; of a job without steps, that of
            the first branch, with an empty name.
    """

    def __init__(
        self,
        spec: RunSpec,
        seen: Mapping[str, TokenSums],
        passages: Mapping[str, Fenced] = MappingProxyType({}),
    ) -> None:
        self._spec = spec
        self._seen = seen
        self._passages = {"context": passages.get("", blocks("passage", []))} | {
            context_of(name): text for name, text in passages.items()
        }
        self._steps = {step.name: step for step in spec.steps}
        self._counts = [_Count(spec, ask) for ask in asks_of(spec)]
        self._templates = {name: Template.parse(source) for name, source in spec.prompts.items()}
        self._prompts = StepPrompts(spec.steps)
        self._plan, self._step_plan = plan_of(spec), step_plan_of(spec)
        own = ratio_of(spec.tokenizer)
        self.is_exact = spec.tokenizer is not None and own is None
        self._exact = make_counter(spec.tokenizer, model=spec.model) if self.is_exact else None
        self.shown: dict[str, str] = {}

    @property
    def asks(self) -> list[Ask]:
        """The kinds of calls."""
        return [count.ask for count in self._counts]

    def add(self, chunk: Chunk, number: int) -> None:
        """Count the branches of a chunk, one of each aspect."""
        for count in self._counts:
            step = count.ask.step
            if step is not None:
                self._add(count, self._of_step(step, chunk, number, is_shown=False))
                if step.name not in self.shown:
                    prompt = self._of_step(step, chunk, number, is_shown=True)
                    self.shown[step.name] = self._without_passages(prompt)
                continue
            for aspect in self._templates:
                prompt = self._of_aspect(aspect, chunk, number)
                self.shown.setdefault("", self._without_passages(prompt))
                self._add(count, prompt)

    def _without_passages(self, prompt: str) -> str:
        """Return a prompt with a word for passages: what it will have is not known."""
        for text in filter(None, self._passages.values()):
            prompt = prompt.replace(text.fenced, _PASSAGES).replace(text, _PASSAGES)
        return prompt

    def _add(self, count: _Count, prompt: str) -> None:
        count.add(prompt)
        if self._exact is not None:
            count.exact_tokens += self._exact(prompt) + self._exact(count.system)

    def _of_aspect(self, aspect: str | None, chunk: Chunk, number: int) -> str:
        spec = self._spec
        ref = BranchRef(chunk=number, aspect=aspect, model=spec.model, sample=0)
        values = branch_values(chunk, ref, 0, chunk.around) | self._passages
        if self._plan is None:
            is_fenced = spec.is_fenced(spec.model)
            return self._templates[aspect].render(values, chunk.columns, is_fenced=is_fenced)
        return self._plan.prompt(chunk, ref, values, model=spec.model, chunks=1, lane=_LANE)[0]

    def _of_step(self, step: StepSpec, chunk: Chunk, number: int, *, is_shown: bool) -> str:
        ref = BranchRef(chunk=number, aspect=None, model=self._spec.model, sample=0)
        given = branch_values(chunk, ref, 0, chunk.around) | self._passages
        model = step.model or self._spec.model
        is_fenced = self._spec.is_fenced(model)
        values = self._prompts.values_of(
            step, given, chunk.columns, _placeholder if is_shown else _empty, is_fenced=is_fenced
        )
        if self._step_plan is None:
            template = self._prompts.templates[step.name]
            return template.render(values, chunk.columns, is_fenced=is_fenced)
        return self._step_plan.prompt(step, chunk, ref, values, model=model, chunks=1, lane=_LANE)[
            0
        ]

    def routes(
        self, times: tuple[float, float]
    ) -> list[tuple[Route, dict[tuple[str, str], Calls]]]:
        """Return the ways through the steps, each with its calls by step and model.

        Args:
            times: How often each prompt goes to each model, at least and at most.
        """
        low, high = times
        routes = routes_of(self._spec.steps) or []
        if not self._spec.steps:
            routes = [Route(share=1.0, runs={"": Runs()})]
        found = []
        for route in routes:
            calls = {
                (count.name, model): self._calls(count, model, share, route, low, high)
                for count in self._counts
                if count.name in route.runs
                for model, share in self._shares(count.ask)
            }
            found.append((route, calls))
        return found

    def _shares(self, ask: Ask) -> Iterator[tuple[str, float]]:
        """Yield the models of calls, each with how many branches of a prompt ask it."""
        branches = len(self._spec.models or (self._spec.model,))
        for model in ask.models:
            yield model, branches / len(ask.models)

    def _calls(
        self, count: _Count, model: str, share: float, route: Route, low: float, high: float
    ) -> Calls:
        runs, answer = route.runs[count.name], self.answer(count.ask, model)
        tokens = (
            float(count.exact_tokens)
            if self.is_exact
            else TokenRatio.fitted(self._seen[model]).tokens_of(count.kinds)
        )
        prompts, most = float(count.prompts) * share, answer.most
        of_answers = self._of_answers(count.ask.step, model, route)
        if of_answers.most is None:
            # The prompt has no known limit, so neither has the cost.
            most = None
        middle = (low + high) / 2
        turns = self._turns(count.ask.step, model, runs)
        input_low = tokens * share * runs.low + prompts * of_answers.least * runs.low
        likely = (tokens * share + prompts * of_answers.likely) * runs.likely
        largest = of_answers.likely if of_answers.most is None else of_answers.most
        input_high = (tokens * share + prompts * largest) * runs.high
        return Calls(
            calls_low=prompts * low * runs.low,
            calls_likely=prompts * middle * runs.likely,
            calls_high=prompts * high * runs.high,
            input_low=input_low * low,
            input_likely=(likely + prompts * turns.likely) * middle,
            input_high=(input_high + prompts * (turns.most or turns.likely)) * high,
            output_low=prompts * low * runs.low * answer.least,
            output_likely=prompts * middle * runs.likely * answer.likely,
            output_high=None if most is None else prompts * high * runs.high * most,
        )

    def _of_answers(self, step: StepSpec | None, model: str, route: Route) -> AnswerTokens:
        """Return the tokens of earlier answers in a prompt."""
        found = _NOTHING
        for name in () if step is None else self._prompts.references(step):
            head, _, path = name.partition(".")
            one = self._answer_of(head, model, route)
            if path:
                fields = max(1, len(answer_fields(self._steps[head])))
                one = AnswerTokens(0.0, one.likely / fields, one.most)
            found = _plus(found, one)
        return found

    def _answer_of(self, name: str, model: str, route: Route) -> AnswerTokens:
        """Return the tokens of the answer of a step to branches that ask a model."""
        if name not in route.runs:
            return _NOTHING
        ask = next((count.ask for count in self._counts if count.name == name), None)
        if ask is None:
            return _OF_FUNCTION
        return self.answer(ask, model if model in ask.models else ask.models[0])

    def _turns(self, step: StepSpec | None, model: str, runs: Runs) -> AnswerTokens:
        """Return the tokens of answers that are sent back with feedback, over all rounds."""
        judges = [] if step is None else [
            one for one in self._spec.steps if one.judge == step.name
        ]  # fmt: skip
        if step is None or not judges:
            return _NOTHING
        all_run = Route(share=1.0, runs={step.name: runs, judges[0].name: runs})
        turn = _plus(
            self._answer_of(step.name, model, all_run),
            self._answer_of(judges[0].name, model, all_run),
        )
        likely = _sent_back(runs.likely) * (turn.likely + _TURN_TOKENS)
        most = None if turn.most is None else _sent_back(runs.high) * (turn.most + _TURN_TOKENS)
        return AnswerTokens(0.0, likely, most)

    def answer(self, ask: Ask, model: str) -> AnswerTokens:
        """Return the tokens of an answer of a model."""
        if ask.choices:
            sizes = [_tokens(label) for label in ask.choices]
            # A label may come in the JSON that a server enforces: {"answer": "yes"}.
            longest = max(sizes) + _tokens(_IN_JSON) + _FRAME_TOKENS
            return AnswerTokens(min(sizes), sum(sizes) / len(sizes), longest)
        bound = ask.max_tokens or longest_answer(model) or known_context_tokens(model)
        given = 1.0 if ask.schema is None else _least_of(ask.schema)
        seen = self._seen[model]
        least, most = answer_range(least=given, most=bound, seen=seen)
        return AnswerTokens(least, likely_answer(least=least, most=most, seen=seen), most)

    def outputs(self) -> AnswerTokens:
        """Return the tokens of the outputs that a reduce gets."""
        model = self._spec.model
        if not self._spec.steps:
            return self.answer(self._counts[0].ask, model)
        all_run = Route(share=1.0, runs={name: Runs() for name in self._steps})
        found = [self._answer_of(step.name, model, all_run) for step in self._spec.final_steps]
        highs = [one.most for one in found if one.most is not None]
        return AnswerTokens(
            min(one.least for one in found),
            sum(one.likely for one in found) / len(found),
            max(highs) if len(highs) == len(found) else None,
        )


def _plus(one: AnswerTokens, other: AnswerTokens) -> AnswerTokens:
    most = None if one.most is None or other.most is None else one.most + other.most
    return AnswerTokens(one.least + other.least, one.likely + other.likely, most)


def _sent_back(runs: float) -> float:
    """Return how many answers the prompts of all rounds have: none, then one, then two."""
    return runs * (runs - 1) / 2


def _empty(_name: str) -> str:
    return ""


def _placeholder(name: str) -> str:
    step, _, path = name.partition(".")
    return f"[{path} in the answer of {step}]" if path else f"[the answer of {step}]"


def _tokens(text: str) -> float:
    return max(1.0, utf8_bytes(text) / BYTES_PER_TOKEN)


def _least_of(schema: Mapping[str, Any]) -> float:
    """Return about how many tokens the shortest answer with a schema has."""
    required = schema.get("required", ())
    if not isinstance(required, (list, tuple)):
        return 1.0
    # A name in quotes, a colon, a short value and a comma.
    return 1.0 + sum(_tokens(str(name)) + 3 for name in required)
