"""The budgets of runs: their limits, and how a retry replaces them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.asks import asks_of
from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits
from fanout.core.cells import OWN
from fanout.core.errors import RunError, SpecError
from fanout.core.spec import make_budget, stored_spec
from fanout.core.tokens import utf8_bytes
from fanout.inputs.comparison_prompts import comparison_frame
from fanout.inputs.fences import FENCE_BYTES, with_rule
from fanout.inputs.fold_prompts import aggregate_source
from fanout.inputs.prompt_checks import templates_of
from fanout.inputs.prompts import Template
from fanout.inputs.resolution_prompts import resolution_prompt
from fanout.inputs.step_prompts import StepPrompts
from fanout.policy.budgets import fits, map_limits, reduce_share
from fanout.runs.budget_status import BudgetStatus, amount_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fanout.core.asks import Ask
    from fanout.core.reduces import Reduce
    from fanout.core.spec import BudgetSpec, RunSpec
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = [
    "checked_budget",
    "has_room_for",
    "least_of_branch",
    "most_of_reduce",
    "new_limits",
    "require_kept",
    "require_room",
    "run_limits",
]

_NAMES = ("usd", "calls", "tokens")
_PARTS = Amounts.__struct_fields__


def run_limits(spec: RunSpec) -> tuple[BudgetLimits, BudgetLimits] | None:
    """Return what all calls of a run may use, and those of its branches; None without a budget."""
    return _with_map(spec, spec.budget.limits) if spec.budget.is_limited else None


def _with_map(spec: RunSpec, limits: BudgetLimits) -> tuple[BudgetLimits, BudgetLimits]:
    kinds = [reduce.kind for reduce in spec.reductions]
    return limits, map_limits(limits, reduce_share=reduce_share(kinds))


def require_kept(spec: RunSpec, limits: BudgetLimits) -> None:
    """Make sure that a budget can be kept: what a call uses at most must be known.

    Raises:
        SpecError: It cannot; the message names the model, and what to give.
    """
    # The prices of models take a while to load.
    from fanout.llm.call_bounds import unkept

    problem = unkept(spec, limits)
    if problem is not None:
        field, reason = problem
        raise SpecError(reason, field=f"budget.{field}")


def require_room(spec: RunSpec, limits: BudgetLimits) -> None:
    """Make sure that a budget has room for a call to each model that is asked first, and of the reduce.

    Of a job with steps, those of a route may be left out.

    Raises:
        SpecError: It has not; the message names the model, what each call may use, and what to give.
    """
    for call in _least_calls(spec, asks_of(spec)):
        if not call.is_needed:
            continue
        of_call = limits if call.reduce is not None else _with_map(spec, limits)[1]
        if not fits(call.most, used=NO_AMOUNTS, limits=of_call):
            raise _too_small(call, limits, of_call)


def least_of_branch(spec: RunSpec) -> Amounts:
    """Return what a budget must have room for if any branch of a job is to make its calls."""
    return _largest(
        call for call in _least_calls(spec, asks_of(spec)) if call.reduce is None and call.is_needed
    )


def _largest(calls: Iterable[_LeastCall]) -> Amounts:
    most = [call.most for call in calls]
    return Amounts(
        **{name: max((getattr(one, name) for one in most), default=0) for name in _PARTS}
    )


class _LeastCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a job whose document is empty: others may use more."""

    model: str
    most: Amounts
    max_tokens: int | None
    reduce: Reduce | None = None
    step: str = ""
    is_needed: bool = True


def _least_calls(spec: RunSpec, asks: list[Ask]) -> Iterator[_LeastCall]:
    from fanout.llm.call_bounds import CallBounds

    lane = "batch" if spec.lane == "auto" else spec.lane
    templates = StepPrompts(spec.steps).templates if spec.steps else {}
    for ask in asks:
        step = ask.step
        some = templates_of(spec) if step is None else [templates[step.name]]
        for model in ask.models:
            system = utf8_bytes(with_rule(spec, model, ask.system) or "")
            size = system + min(_least_bytes(one, spec, model) for one in some)
            yield _LeastCall(
                model=model,
                most=CallBounds(spec, model).least(size, ask.max_tokens, lane),
                max_tokens=ask.max_tokens,
                step="" if step is None else step.name,
                # A route may leave it out.
                is_needed=step is None or not step.when,
            )
    for reduce in spec.called_reductions:
        yield _LeastCall(
            model=reduce.model,
            most=CallBounds(spec, reduce.model).least(
                _reduce_bytes(spec, reduce), reduce.max_tokens, lane
            ),
            max_tokens=reduce.max_tokens,
            reduce=reduce,
        )


def _reduce_bytes(spec: RunSpec, reduce: Reduce) -> int:
    """Return the bytes of a prompt of a reduce without answers."""
    model = reduce.model
    if reduce.judges_pairs:
        frame = (
            resolution_prompt(reduce.by[0], "", "", reduce.criteria)
            if reduce.resolves
            else comparison_frame(reduce.criteria, has_task=False)
        )
        return utf8_bytes(with_rule(spec, model, None) or "") + utf8_bytes(frame)
    template = Template.parse(aggregate_source(reduce), field=reduce.field("aggregate_prompt"))
    system = utf8_bytes(with_rule(spec, model, spec.system) or "")
    return system + _least_bytes(template, spec, model)


def _least_bytes(template: Template, spec: RunSpec, model: str) -> int:
    """Return the bytes of a prompt without what is put into it."""
    size = sum(map(utf8_bytes, template.parts[::2]))
    inputs = sum(name.removeprefix(OWN) == "input" for name in template.parts[1::2])
    return size + FENCE_BYTES * inputs * spec.is_fenced(model)


def _too_small(call: _LeastCall, limits: BudgetLimits, of_call: BudgetLimits) -> SpecError:
    name = next(name for name in _NAMES if _is_over(of_call, name, call.most))
    field = "max_tokens" if call.reduce is None else call.reduce.field("aggregate_max_tokens")
    smaller = f"give {field}" if call.max_tokens is None else f"give a smaller {field}"
    kept = " beside what is kept for the reduce" if of_call != limits else ""
    what = "call" if call.reduce is None else f"call of {call.reduce.words}"
    if call.step:
        what = f"call of step {call.step}"
    return SpecError(
        f"has no room{kept} for any {what} to {call.model}, each of which may use "
        f"{amount_words(name, getattr(call.most, name))} or more: {smaller}, or a larger budget "
        f"(got {_amount(limits, name)})",
        field=f"budget.{name}",
    )


def checked_budget(given: BudgetSpec | Mapping[str, Any]) -> BudgetSpec:
    """Return a budget. Raises SpecError if it is none."""
    budget = make_budget(given)
    if not budget.is_limited:
        raise SpecError(f"must have a limit: {', '.join(_NAMES)}", field="budget")
    return budget


def new_limits(
    store: RedisStore, run: RunRecord, budget: BudgetSpec
) -> tuple[BudgetLimits, BudgetLimits]:
    """Return what all calls of a run may use with a new budget, and those of its branches.

    What the run has spent counts. Limits that the new budget does not give stay.

    Raises:
        RunError: The run has no budget.
        SpecError: The run has spent as much, no call fits beside it, or the budget cannot be kept.
    """
    if not run.has_budget:
        raise RunError(
            f"run {run.run_id} was submitted without a budget, so what it has used is not counted: "
            "retry it without one"
        )
    spec, before = stored_spec(store.spec(run.run_id)), store.budget(run.run_id)
    given = budget.limits
    require_kept(spec, given)
    spent = BudgetStatus.of(before, has_ended=True).spent
    for name in _NAMES:
        limit, used = getattr(given, name), getattr(spent, name)
        if limit is not None and limit <= used:
            raise SpecError(
                f"must be more than the {amount_words(name, used)} that the run has spent (got "
                f"{limit})",
                field=f"budget.{name}",
            )
    parts = {part: getattr(given, part) for part in BudgetLimits.__struct_fields__}
    changed = {part: limit for part, limit in parts.items() if limit is not None}
    limits = msgspec.structs.replace(before.limits, **changed)
    _require_more(spec, limits, spent)
    return _with_map(spec, limits)


def has_room_for(spec: RunSpec, limits: BudgetLimits, spent: Amounts, *, is_reduce: bool) -> bool:
    """Return whether what is left has room for any call of a branch, or of a reduce.

    Args:
        spec: The job.
        limits: What these may use.
        spent: What the run has spent.
        is_reduce: Whether calls of a reduce are meant.
    """
    calls = [
        call
        for call in _least_calls(spec, _all_asks(spec))
        if (call.reduce is not None) is is_reduce
    ]
    # Functions alone use nothing of it.
    return not calls or any(fits(call.most, used=spent, limits=limits) for call in calls)


def most_of_reduce(spec: RunSpec) -> Amounts:
    """Return what a call of the reduces of a job may use at most if it has no answers."""
    return _largest(call for call in _least_calls(spec, []) if call.reduce is not None)


def _all_asks(spec: RunSpec) -> list[Ask]:
    return [ask._replace(models=(*ask.models, *spec.fallback)) for ask in asks_of(spec)]


def _require_more(spec: RunSpec, limits: BudgetLimits, spent: Amounts) -> None:
    """Make sure that what is left of a budget has room for any call. Raises SpecError."""
    calls = list(_least_calls(spec, _all_asks(spec)))
    if any(fits(call.most, used=spent, limits=limits) for call in calls):
        return
    least = min(calls, key=lambda call: (call.most.nano_usd, call.most.tokens)).most
    name = next(name for name in _NAMES if _is_over(limits, name, spent + least))
    raise SpecError(
        f"must be {amount_words(name, getattr(spent + least, name))} or more: the run has spent "
        f"{amount_words(name, getattr(spent, name))}, and each call may use "
        f"{amount_words(name, getattr(least, name))} or more (got {_amount(limits, name)})",
        field=f"budget.{name}",
    )


def _is_over(limits: BudgetLimits, name: str, used: Amounts) -> bool:
    limit = getattr(limits, name)
    return limit is not None and getattr(used, name) > limit


def _amount(limits: BudgetLimits, name: str) -> str:
    return f"{getattr(limits, name):.12g}"
