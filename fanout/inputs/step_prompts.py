"""The prompts of steps: templates that have the answers of earlier steps, and those of judges."""

from __future__ import annotations

from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from fanout.core.answer_parts import known_fields, missing_in
from fanout.core.cells import OWN
from fanout.core.errors import PromptError
from fanout.core.step_answers import step_text
from fanout.inputs.fences import OwnText, block
from fanout.inputs.prompts import Template, ambiguous, near_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from fanout.core.cells import Cell
    from fanout.core.records import StepOutcome
    from fanout.core.steps import StepSpec

__all__ = ["JUDGE_NAMES", "StepPrompts", "context_of", "feedback_reply"]

# What the prompt of a judge has beside the names of a branch.
JUDGE_NAMES = (
    "task",  # the prompt of the judged step
    "answer",  # its answer
    "criteria",  # what the answer is judged by
)
_INPUT = frozenset({"input", f"{OWN}input"})
# Short sentences and one thing at a time, as small models need it.
_JUDGE = """You check an answer to a task. These are the criteria:

{criteria}

The task was:

{task}

The answer is:

{answer}

Check the answer by each of the criteria, one after the other. "reasons": for each of the criteria one \
sentence that says whether the answer meets it. "pass": true if the answer meets all of them, false if it \
misses one. "score": from 0 (useless) to 10 (perfect). "feedback": what the author should change, or nothing \
if all is well."""
# What a judge is told of an answer with a shape.
_LABELS = "The answer had to be one of these labels: {labels}."
_FIELDS = "The answer had to be JSON of this schema: {schema}"
_REPLY = """A reviewer does not accept this answer:

{feedback}

Answer the task again. Give the whole new answer, and nothing about the review."""


def feedback_reply(feedback: str, criteria: Sequence[str] = (), *, is_fenced: bool = False) -> str:
    """Return what a model is told of an answer that a judge sent back.

    Args:
        feedback: What the judge says of it.
        criteria: What the judge goes by, for a judge that says nothing.
        is_fenced: Whether the words of the judge stand between fences.
    """
    text = feedback.strip()
    if text and is_fenced:
        text = block("feedback", text)
    return _REPLY.replace("{feedback}", text or _unmet(criteria))


def _unmet(criteria: Sequence[str]) -> str:
    if not criteria:
        return "It does not meet the criteria."
    return f"It does not meet all of these criteria:\n\n{_criteria(criteria)}"


def context_of(step: str) -> str:
    """Return the name under which values have the passages of a step."""
    return f"{step}\0context"


class StepPrompts:
    """The prompts of the steps of a job.

    Args:
        steps: The steps.
        queries: The templates of what passages are looked for, by step.

    Raises:
        PromptError: A template has a misplaced brace, or names a step that does not come before it, or
            a field that its answer does not have.
    """

    def __init__(
        self, steps: Sequence[StepSpec], queries: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._steps = {step.name: step for step in steps}
        self.templates: dict[str, Template] = {}
        # The names in each template that stand for answers, with the part that says which.
        self._answers: dict[str, tuple[tuple[str, str], ...]] = {}
        # The same for what passages are looked for.
        self._queries: dict[str, Template] = {}
        self._query_answers: dict[str, tuple[tuple[str, str], ...]] = {}
        earlier: dict[str, StepSpec] = {}
        for step in steps:
            source = step.prompt or (_JUDGE if step.judge is not None else None)
            if source is not None:
                template = Template.parse(source, field=f"steps.{step.name}.prompt")
                self.templates[step.name] = template
                self._answers[step.name] = tuple(_answers(template, self._steps, earlier))
            if step.name in queries:
                field = f"steps.{step.name}.query"
                query = self._queries[step.name] = Template.parse(queries[step.name], field=field)
                self._query_answers[step.name] = tuple(_answers(query, self._steps, earlier))
            earlier[step.name] = step

    @cached_property
    def own_templates(self) -> list[Template]:
        """The templates that the job gives, without the names that stand for answers of steps."""
        found: list[Template] = []
        for name, template in self.templates.items():
            if self._steps[name].prompt is None:
                continue
            taken = {one for one, _ in self._answers[name]}
            if self._steps[name].judge is not None:
                taken |= {*JUDGE_NAMES}
            names = list(self._steps)
            others = tuple(names[: names.index(name)])
            if self._steps[name].judge is not None:
                others += JUDGE_NAMES
            bare = _without(template, taken)
            found.append(Template(bare.parts, bare.field, others))
        return found

    @cached_property
    def own_queries(self) -> list[Template]:
        """The templates of what passages are looked for, without the names that stand for answers."""
        return [
            _without(template, {one for one, _ in self._query_answers[name]})
            for name, template in self._queries.items()
        ]

    def require_clear(self, columns: Collection[str]) -> None:
        """Check that no name stands for an answer and for a column. Raises PromptError."""
        for templates, answers in (
            (self.templates, self._answers),
            (self._queries, self._query_answers),
        ):
            for step, found in answers.items():
                for name, _ in found:
                    if name in columns:
                        raise PromptError(ambiguous(name), field=templates[step].field)

    @property
    def needs_input(self) -> bool:
        """Whether no step has the text of the chunk although it could."""
        templates = [self.templates[step.name] for step in self._steps.values()
                     if step.judge is None and step.name in self.templates]  # fmt: skip
        has_functions = any(step.function for step in self._steps.values())
        return not has_functions and all(_INPUT.isdisjoint(one.names) for one in templates)

    def render(
        self,
        step: StepSpec,
        values: Mapping[str, str],
        columns: Mapping[str, Cell],
        answers: Mapping[str, StepOutcome],
        *,
        is_fenced: bool = False,
    ) -> str:
        """Return the prompt of a step as its template is written; see ``values_of``."""
        text_of = partial(step_text, answers=answers)
        own = self.values_of(step, values, columns, text_of, is_fenced=is_fenced)
        return self.templates[step.name].render(own, columns, is_fenced=is_fenced)

    def values_of(
        self,
        step: StepSpec,
        values: Mapping[str, str],
        columns: Mapping[str, Cell],
        text_of: Callable[[str], str],
        *,
        is_fenced: bool = False,
    ) -> dict[str, str]:
        """Return the value of each name of the prompt of a step that is no column.

        Args:
            step: The step.
            values: The value of each name of fanout.
            columns: The cells of the input's columns.
            text_of: Returns what stands for ``STEP`` or ``STEP.field``; raises KeyError for no such field.
            is_fenced: Whether what is not in the words of the user stands between fences.

        Raises:
            PromptError: A name has no value.
        """
        own = dict(values)
        if context_of(step.name) in values:
            own["context"] = values[context_of(step.name)]
        if step.judge is not None:
            judged = self._steps[step.judge]
            task = self.values_of(judged, values, columns, text_of, is_fenced=is_fenced)
            template = self.templates[judged.name]
            own["task"] = template.render(task, columns, is_fenced=is_fenced) + _shape_of(judged)
            own["answer"] = text_of(step.judge)
            own["criteria"] = _criteria(step.criteria)
        _add_answers(own, self._answers[step.name], text_of, self.templates[step.name].field)
        for name, part in self._answers[step.name]:
            if self._is_label(part):
                own[name] = OwnText(own[name])
        return own

    def references(self, step: StepSpec) -> list[str]:
        """Return ``STEP`` or ``STEP.field`` for each place in a prompt at which an answer stands."""
        parts = dict(self._answers[step.name])
        found: list[str] = []
        for name in self.templates[step.name].parts[1::2]:
            bare = name.removeprefix(OWN)
            if name in parts:
                found.append(parts[name])
            elif step.judge is not None and bare == "answer":
                found.append(step.judge)
            elif step.judge is not None and bare == "task":
                found += self.references(self._steps[step.judge])
        return found

    def answer_names(self, step: StepSpec) -> frozenset[str]:
        """Return the names in the prompt of a step that differ with the answers of steps."""
        names = {name for name, _ in self._answers[step.name]}
        return frozenset(names | {*JUDGE_NAMES} if step.judge is not None else names)

    def query(
        self,
        step: StepSpec,
        values: Mapping[str, str],
        columns: Mapping[str, Cell],
        answers: Mapping[str, StepOutcome],
    ) -> str:
        """Return what passages are looked for, for a step; see ``render``. Raises PromptError."""
        own, template = dict(values), self._queries[step.name]
        text_of = partial(step_text, answers=answers)
        _add_answers(own, self._query_answers[step.name], text_of, template.field)
        return template.render(own, columns)

    def _is_label(self, part: str) -> bool:
        """Say whether an answer is one of the labels that the job gives."""
        return bool(self._steps[part].choices) if part in self._steps else False


def _add_answers(
    own: dict[str, str],
    names: Sequence[tuple[str, str]],
    text_of: Callable[[str], str],
    field: str,
) -> None:
    """Add the values of names that stand for answers of steps. Raises PromptError."""
    for name, part in names:
        try:
            own[name] = text_of(part)
        except KeyError:
            head, _, path = part.partition(".")
            raise PromptError(
                f"the answer of step {head!r} has no field {path!r}, which the prompt uses",
                field=field,
            ) from None


def _without(template: Template, names: Collection[str]) -> Template:
    """Return a template without some of its names."""
    parts = tuple(
        "" if at % 2 and part in names else part for at, part in enumerate(template.parts)
    )
    return Template(_joined(parts), template.field)


def _shape_of(step: StepSpec) -> str:
    """Return what to add to the task of a step whose answer has a shape."""
    if step.choices:
        return "\n\n" + _LABELS.replace("{labels}", ", ".join(step.choices))
    if step.schema is not None:
        return "\n\n" + _FIELDS.replace("{schema}", msgspec.json.encode(step.schema).decode())
    return ""


def _criteria(criteria: Sequence[str]) -> str:
    if len(criteria) == 1:
        return criteria[0]
    return "\n".join(f"{number}. {one}" for number, one in enumerate(criteria, 1))


def _answers(
    template: Template, steps: Mapping[str, StepSpec], earlier: Mapping[str, StepSpec]
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in sorted(template.names):
        bare = name.removeprefix(OWN)
        head, _, path = bare.partition(".")
        if head not in steps:
            continue
        if head not in earlier:
            known = ", ".join(f"{{{one}}}" for one in earlier) or "none"
            raise PromptError(
                f"{{{name}}} is the answer of a step that does not come before this one (earlier: "
                f"{known})",
                field=template.field,
            )
        is_label, schema = bool(earlier[head].choices), earlier[head].answer_schema
        missing = path if is_label else missing_in(schema, path)
        if missing:
            fields = known_fields(schema or {})
            hint = near_hint(missing, fields)
            listed = ", ".join(fields) or ("none, as it is a label" if is_label else "none")
            raise PromptError(
                f"{{{name}}}: the answer of step {head!r} has no field {missing!r};{hint} its fields: "
                f"{listed}",
                field=template.field,
            )
        found.append((name, bare))
    return found


def _joined(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return parts without the empty names among them."""
    out: list[str] = [parts[0]]
    for at in range(1, len(parts), 2):
        if parts[at]:
            out += parts[at : at + 2]
        else:
            out[-1] += parts[at + 1]
    return tuple(out)
