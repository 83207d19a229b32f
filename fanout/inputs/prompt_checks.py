"""Checks of a job's prompts and its groups against the columns of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.answer_parts import known_fields, missing_in
from fanout.core.cells import COLUMN, OWN
from fanout.core.errors import PromptError, SpecError
from fanout.core.step_answers import STEPS, may_not_run, step_of
from fanout.inputs.plan_answers import plan_prompt
from fanout.inputs.prompts import (
    AGGREGATE_NAMES,
    BRANCH_NAMES,
    NEIGHBOUR_NAMES,
    SPLIT_NAMES,
    Template,
    near_hint,
)
from fanout.inputs.retrieval_prompts import context_names, require_context
from fanout.inputs.step_prompts import StepPrompts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.spec import RunSpec

__all__ = ["group_columns", "label_leaks", "names_of", "output_gaps", "plan_templates", "query_names",
           "require_group", "require_labels", "require_prompts", "templates_of",
           "unnamed_groups"]  # fmt: skip

_GROUPS = ("document", "aspect", "model")


def templates_of(spec: RunSpec) -> list[Template]:
    """Return the templates of a job's prompts. Raises PromptError."""
    for reduce in spec.reductions:
        if reduce.prompt is not None:
            template = Template.parse(reduce.prompt, field=reduce.field("aggregate_prompt"))
            _require_no_column(template, reduce.group_by)
            template.require(AGGREGATE_NAMES)
    if spec.steps:
        _require_other_names(spec)
        prompts = StepPrompts(spec.steps)
        if prompts.needs_input:
            raise PromptError(
                "the prompt of one step must contain {input}, where the text goes in", field="steps"
            )
        _require_neighbours(spec, list(prompts.templates.values()))
        require_context(spec, prompts.templates)
        return prompts.own_templates
    found = [
        Template.parse(source, field="prompt" if aspect is None else f"aspects.{aspect}")
        for aspect, source in spec.prompts.items()
    ]
    _require_neighbours(spec, found)
    require_context(spec, dict(enumerate(found)))
    return found


def _require_no_column(template: Template, group_by: str | None) -> None:
    """Check that the prompt of an aggregate does not name its group by the column."""
    if group_by in template.names.difference(AGGREGATE_NAMES):
        raise PromptError(
            f"there is no {{{group_by}}} in the prompt of an aggregate: write {{group}}, which is its "
            f"{group_by}",
            field=template.field,
        )


def _require_other_names(spec: RunSpec) -> None:
    """Check that no step is called as what a model that splits documents gives. Raises SpecError."""
    for name in spec.step_names:
        if spec.split == "model" and name in SPLIT_NAMES:
            raise SpecError(
                f"{name!r} is a name of fanout's own in a job with split: model "
                f"({', '.join(SPLIT_NAMES)}); choose another one",
                field=f"steps.{name}.name",
            )


def plan_templates(spec: RunSpec) -> list[Template]:
    """Return the template with what a job says of how a model splits documents; empty without any.

    Raises:
        PromptError: It has a misplaced brace.
    """
    if spec.split != "model" or spec.split_prompt is None:
        return []
    # Its own braces come first: a message shows what stands there.
    Template.parse(spec.split_prompt, field="split_prompt")
    return [Template.parse(plan_prompt(spec), field="split_prompt")]


def names_of(spec: RunSpec) -> tuple[str, ...]:
    """Return the names of fanout that prompts of a job may have."""
    return (*query_names(spec), *context_names(spec))


def query_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the names of fanout that the template of what passages are looked for may have."""
    around = NEIGHBOUR_NAMES if spec.neighbours else ()
    return (*BRANCH_NAMES, *around, *(SPLIT_NAMES if spec.split == "model" else ()))


def _require_neighbours(spec: RunSpec, templates: list[Template]) -> None:
    """Check that a prompt has what the neighbours are for; functions of the user have it, too.

    Raises:
        SpecError: None has.
    """
    named = {name.removeprefix(OWN) for one in templates for name in one.names}
    if not spec.neighbours or spec.functions or named & {*NEIGHBOUR_NAMES}:
        return
    raise SpecError(
        "has no effect, as no prompt has {before} or {after}; leave it out, or write one of them",
        field="neighbours",
    )


def require_prompts(
    templates: list[Template],
    columns: frozenset[str],
    *,
    own: tuple[str, ...] = BRANCH_NAMES,
    text_column: str | None,
    text_columns: frozenset[str],
    needs_input: bool = True,
) -> None:
    """Check the prompts of a job against the columns of its input.

    Args:
        templates: The prompts.
        columns: The columns of the input.
        own: The names of fanout that prompts of the job may have.
        text_column: The column of the text, if the job names it.
        text_columns: The names that the column of the text may have; empty if there are no rows.
        needs_input: Whether each prompt must have the text; one of several steps need not.

    Raises:
        PromptError: A name is unknown or ambiguous.
    """
    for template in templates:
        _require_clear(template, text_column)
        _require_no_text(template, text_columns - columns)
        template.require(own, columns=columns, needs_input=needs_input)


def _require_clear(template: Template, text_column: str | None) -> None:
    """Check that no template uses a name of fanout that is also the text column."""
    if text_column in template.names and text_column in BRANCH_NAMES and text_column != "input":
        raise PromptError(
            f"{{{text_column}}} is not clear: it is the text column, whose text is {{input}}; "
            f"write {{{OWN}{text_column}}} for fanout's own",
            field=template.field,
        )


def _require_no_text(template: Template, text_columns: frozenset[str]) -> None:
    """Check that no template names the text by its column. Raises PromptError."""
    for name in sorted(template.names):
        column = name.removeprefix(COLUMN)
        if column in text_columns and column not in BRANCH_NAMES:
            raise PromptError(
                f"{{{name}}} is the column of the text: write {{input}} for it",
                field=template.field,
            )


def _groups(spec: RunSpec) -> tuple[str, ...]:
    """Return what of fanout's own a job may group by."""
    return (*_GROUPS, *(SPLIT_NAMES if spec.split == "model" else ()))


def group_columns(spec: RunSpec) -> frozenset[str]:
    """Return the columns by which a job groups its branches."""
    names = {reduce.group_by for reduce in spec.reductions if reduce.group_by is not None}
    return frozenset(
        by.removeprefix(COLUMN)
        for by in names.difference(_groups(spec))
        if not by.startswith(OWN) and not (spec.steps and by.startswith(STEPS))
    )


def require_group(
    spec: RunSpec, columns: frozenset[str], *, text_columns: frozenset[str] = frozenset()
) -> None:
    """Check that a job groups by something that there is.

    Args:
        spec: The job.
        columns: The columns of the input.
        text_columns: The names that the column of the text may have.

    Raises:
        SpecError: There is no such thing, or it is the text.
    """
    for reduce in spec.reductions:
        by, field = reduce.group_by, reduce.field("group_by")
        if by is None:
            continue
        if by.removeprefix(COLUMN) in text_columns - columns - {*_groups(spec)}:
            raise SpecError(f"{by!r} is the column of the text; name another", field=field)
        _require_group(spec, by, columns, field=field)


def _require_group(spec: RunSpec, by: str, columns: frozenset[str], *, field: str) -> None:
    if spec.steps and by.startswith(STEPS):
        problem = step_problem(spec, by)
        if problem is not None:
            raise SpecError(problem, field=field)
        return
    own = _groups(spec)
    if by in own and by in columns:
        raise SpecError(
            f"{by!r} is not clear: the input has a column of this name; write {COLUMN}{by} for "
            f"the column, or {OWN}{by} for fanout's own",
            field=field,
        )
    if by.removeprefix(OWN) not in own and by.removeprefix(COLUMN) not in columns:
        known = sorted({*own, *columns, *(STEPS + name for name in spec.step_names)})
        raise SpecError(
            f"there is no column {by!r};{near_hint(by, known)} known: {', '.join(known)}",
            field=field,
        )


def output_gaps(spec: RunSpec) -> Iterator[str]:
    """Yield a warning if branches may not run the step whose answer is to be their output."""
    for step in spec.final_steps if spec.output is not None else ():
        if may_not_run(step, spec.steps):
            ways = [f"{name} is {' or '.join(values)}" for name, values in step.when.items()]
            yield (
                f"output: step {step.name!r} runs only where {' and '.join(ways)}: branches that go "
                "another way have no output, and fail. Without output, the last step that ran gives it"
            )


def unnamed_groups(spec: RunSpec) -> Iterator[str]:
    """Yield a warning of each prompt that names the group of answers that have none."""
    for reduce in spec.reductions:
        if reduce.prompt is None or reduce.group_by is not None:
            continue
        template = Template.parse(reduce.prompt, field=reduce.field("aggregate_prompt"))
        if template.names & {"group", f"{OWN}group"}:
            yield f"{template.field}: {{group}} is empty, as the answers have no groups without group_by"


def step_problem(spec: RunSpec, name: str) -> str | None:
    """Return why ``steps.NAME`` or ``steps.NAME.field`` is nothing of a job; None if it is."""
    step, path = step_of(name, spec.steps)
    if step is None:
        known = [STEPS + one for one in spec.step_names]
        return f"there is no step {name!r};{near_hint(name, known)} known: {', '.join(known)}"
    if path and step.choices:
        return f"step {step.name!r} answers with a label, which has no field {path!r}"
    if path and step.is_text:
        return (
            f"step {step.name!r} answers with a text, which has no field {path!r}: give it a schema"
        )
    missing = missing_in(step.answer_schema, path)
    if missing:
        fields = known_fields(step.answer_schema or {})
        hint, listed = near_hint(missing, fields), ", ".join(fields) or "none"
        return (
            f"the answer of step {step.name!r} has no field {missing!r};{hint} its fields: {listed}"
        )
    return None


def require_labels(
    spec: RunSpec, columns: frozenset[str], *, text_columns: frozenset[str] = frozenset()
) -> None:
    """Check that the input has the columns of a job's labels.

    Args:
        spec: The job.
        columns: The columns of the input.
        text_columns: The names that the column of the text may have.

    Raises:
        SpecError: It has not, or one is the column of the text.
    """
    for column in spec.labels.values():
        if column in text_columns:
            raise SpecError(f"{column!r} is the column of the text; name another", field="labels")
        if column in columns:
            continue
        known = ", ".join(sorted(columns)) or "none"
        raise SpecError(
            f"there is no column {column!r};{near_hint(column, columns)} known: {known}",
            field="labels",
        )


def label_leaks(spec: RunSpec, templates: list[Template]) -> Iterator[str]:
    """Yield what is wrong with prompts that give the model the right answer."""
    labels = frozenset(spec.labels.values())
    for template in templates:
        for column in sorted(template.columns(names_of(spec)) & labels):
            yield (
                f"{template.field}: {{{column}}} is the column of the right answers: the model is told "
                "what it is measured by, and the evaluation says nothing"
            )
        if spec.id_column in labels and template.names & {"document", f"{OWN}document"}:
            yield (
                f"{template.field}: {{document}} is {spec.id_column!r}, the column of the right "
                "answers: the model is told what it is measured by"
            )
