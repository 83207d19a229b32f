"""The budgets of the Redis store: those of runs, and those of a fleet's days."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from msgspec import structs

from fanout.core.budgets import Amounts, BudgetLimits, BudgetReply, BudgetState
from fanout.core.errors import UnknownRunError
from fanout.stores.redis import budget_scripts
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.budgets import BudgetReport, BudgetStep

__all__ = ["RedisBudgets", "budget_fields"]

_NAMES = ("usd", "calls", "tokens")
_DAY_S = 86_400
# So many days what is reserved for calls of batches counts.
_BATCH_DAYS = 3
# So long that what is reserved for a batch is there for three days: what has been there for half of this
# time is kept for the whole of it when it is written again.
_KEPT_S = 7 * _DAY_S
# Calls that wait for the next day ask again every 10 seconds.
_FULL_S = 30.0


class RedisBudgets(RedisBase):
    """What budgets are left with. One script decides for all workers which calls fit."""

    @translated
    def report_budget(
        self, run_id: str, report: BudgetReport, *, dies_after_s: float
    ) -> BudgetReply:
        """Report what a process uses of a run's budget, and ask for further calls.

        Args:
            run_id: The run.
            report: What it uses, and what it asks for.
            dies_after_s: Seconds without a report after which a session counts as dead.

        Raises:
            UnknownRunError: There is no such run.
        """
        run = self._run(run_id)
        args = _args(report, dies_after_s, self._ttl_s, BudgetLimits())
        reply = self._call(budget_scripts.REPORT_BUDGET, [f"{run}:budget", run], args)
        if not reply:
            raise UnknownRunError(run_id)
        return _reply(reply)

    @translated
    def report_day_budget(
        self, name: str, report: BudgetReport, *, limits: BudgetLimits, dies_after_s: float
    ) -> BudgetReply:
        """Report what a process uses of a budget of the fleet for this day (UTC), and ask for more.

        For the arguments see ``report_budget``; the caller passes the limits.
        """
        args = _args(report, dies_after_s, _KEPT_S, limits)
        return _reply(self._call(budget_scripts.REPORT_BUDGET, [self._day_budget(name)], args))

    @translated
    def hold_budgets(self, steps: Sequence[BudgetStep]) -> list[BudgetReply | None]:
        """Take steps of calls that no process waits for; return the replies in order.

        One is None if there is no such run.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for step in steps:
                self._call(
                    budget_scripts.HOLD_BUDGET, self._hold_keys(step), self._hold_args(step), pipe
                )
            replies = pipe.execute()
        return [_reply(reply) if reply else None for reply in replies]

    def _hold_keys(self, step: BudgetStep) -> list[str]:
        if step.run_id:
            run = self._run(step.run_id)
            return [f"{run}:budget", f"{run}:budget:held", run]
        return [self._day_budget(step.day), f"{self._prefix}:budget-held:{step.day}"]

    def _hold_args(self, step: BudgetStep) -> list[Any]:
        ttl_s = self._ttl_s if step.run_id else _KEPT_S
        args = [step.call, int(not step.ends), 0, ttl_s, *_given(step.limits)]
        amounts = ("", "", "") if step.amounts is None else _numbers(step.amounts)
        args += [*amounts, int(step.is_reduce), *_numbers(step.guessed)]
        return [*args, *_numbers(step.left)]

    @translated
    def budget(self, run_id: str) -> BudgetState:
        """Return what is left of a run's budget. Raises UnknownRunError."""
        run = self._run(run_id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(run, "status", *(f"budget_{name}" for name in _NAMES))
            pipe.hmget(run, [f"budget_map_{name}" for name in _NAMES])
            pipe.hmget(f"{run}:budget", _SUMS)
            (status, *limits), of_map, sums = pipe.execute()
        self._require(run_id, status)
        of_map = [own or whole for own, whole in zip(of_map, limits, strict=True)]
        return _state([one or b"" for one in (*limits, *of_map)] + [one or b"0" for one in sums])

    @translated
    def day_budgets(self, names: Sequence[str]) -> tuple[list[BudgetState], float]:
        """Return what was used today (UTC) of budgets of the fleet, and the seconds to the next day.

        The states are in order; their limits are not stored, ``is_full`` says whether calls wait for the
        next day, and ``is_batched`` whether some are in batches.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for name in names:
                pipe.hmget(self._day_budget(name), ["day", "full", *_SUMS])
            time, *found = pipe.execute()
        now = seconds(time)
        day, used_s = divmod(now, _DAY_S)
        states = []
        batched = self._in_batches(names, int(day))
        for (stored, full_at, *sums), own in zip(found, batched, strict=True):
            is_today = stored is not None and int(stored) == int(day)
            numbers = [one or b"0" for one in sums] if is_today else [b"0"] * len(sums)
            state = _state([b""] * 6 + numbers)
            state = structs.replace(
                state,
                is_full=is_today and full_at is not None and now - float(full_at) < _FULL_S,
                is_batched=own.calls > 0,
                # The first report of a day counts them for that day.
                unsure=state.unsure if is_today else own,
            )
            states.append(state)
        return states, _DAY_S - used_s

    def _in_batches(self, names: Sequence[str], today: int) -> list[Amounts]:
        """Return what is reserved of budgets of the fleet for calls in batches: see HOLD_BUDGET."""
        days = range(today - _BATCH_DAYS + 1, today + 1)
        fields = [f"batched:{part}:{day}" for part in _NAMES for day in days]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(self._day_budget(name), fields)
            found = [[int(one or 0) for one in held] for held in pipe.execute()]
        return [
            Amounts(
                **{
                    part: sum(held[at * _BATCH_DAYS : (at + 1) * _BATCH_DAYS])
                    for at, part in enumerate(Amounts.__struct_fields__)
                }
            )
            for held in found
        ]

    @translated
    def set_budget(self, run_id: str, *, limits: BudgetLimits, map_limits: BudgetLimits) -> None:
        """Replace the limits of a run's budget; what it keeps for the reduce is for a new one.

        Raises:
            UnknownRunError: There is no such run.
        """
        run = self._run(run_id)
        fields = budget_fields(limits, map_limits)
        others = [f"budget_{part}{name}" for part in ("", "map_") for name in _NAMES]
        gone = [name for name in others if name not in fields]
        args = [self._ttl_s, len(gone), *gone, *(part for pair in fields.items() for part in pair)]
        self._require(run_id, self._call(budget_scripts.SET_BUDGET, [run, f"{run}:budget"], args))

    def _day_budget(self, name: str) -> str:
        return f"{self._prefix}:budget:{name}"


_SUMS = [f"{kind}:{name}" for kind in ("spent", "unsure", "held", "guessed") for name in _NAMES]


def budget_fields(limits: BudgetLimits, map_limits: BudgetLimits) -> dict[str, int]:
    """Return the fields of a run's record that have the limits of its budget."""
    fields = {}
    for part, of in (("", limits), ("map_", map_limits)):
        for name, limit in zip(_NAMES, (of.nano_usd, of.calls, of.tokens), strict=True):
            if limit is not None:
                fields[f"budget_{part}{name}"] = limit
    return fields


def _given(limits: BudgetLimits) -> list[Any]:
    """Return limits of all calls, and the same of the branches, as the scripts take them."""
    numbers = (limits.nano_usd, limits.calls, limits.tokens)
    return 2 * ["" if one is None else one for one in numbers]


def _args(report: BudgetReport, dies_after_s: float, ttl_s: int, limits: BudgetLimits) -> list[Any]:
    args: list[Any] = [report.session, report.number, dies_after_s, ttl_s, *_given(limits)]
    args += [*_numbers(report.held), *_numbers(report.spent), *_numbers(report.guessed)]
    args += _numbers(report.reduced)
    for most, is_reduce, left in report.asked:
        args += [*_numbers(most), int(is_reduce), *_numbers(left)]
    return args


def _numbers(amounts: Amounts) -> tuple[int, int, int]:
    return amounts.nano_usd, amounts.calls, amounts.tokens


def _reply(reply: list[bytes]) -> BudgetReply:
    granted = tuple(verdict == ord("1") for verdict in reply[0])
    return BudgetReply(granted=granted, state=_state(reply[1:]))


def _state(parts: list[bytes]) -> BudgetState:
    numbers = [int(part) if part else None for part in parts]
    limits, map_limits = (
        BudgetLimits(nano_usd=usd, calls=calls, tokens=tokens)
        for usd, calls, tokens in (numbers[0:3], numbers[3:6])
    )
    spent, unsure, held, guessed = (
        Amounts(nano_usd=usd, calls=calls, tokens=tokens)
        for usd, calls, tokens in cast(
            "list[list[int]]", [numbers[start : start + 3] for start in range(6, 18, 3)]
        )
    )
    return BudgetState(
        limits=limits,
        map_limits=map_limits,
        spent=spent,
        unsure=unsure,
        held=held,
        guessed=guessed,
    )
