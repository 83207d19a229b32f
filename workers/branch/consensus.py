"""A branch that asks for one answer after another until their majority is certain enough.

How far it is, is written before each further call: a branch that is delivered again goes on from there,
and no answer is paid for twice but the one that was in flight.
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fanout.aggregators.parts import Fields
from fanout.aggregators.vote import Vote
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.answers import validated
from fanout.policy.consensus import question
from fanout.policy.progress import ENDS_ALIKE
from fanout.policy.retries import STOPS_RUN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.records import Outcome
    from fanout.core.spec import RunSpec
    from workers.branch.claims import Claim
    from workers.telemetry.reports import Calls

__all__ = ["ask_until_certain"]

_log = logging.getLogger(__name__)

_DIGEST_BYTES = 12
# Longer answers are compared in a thread: a JSON of megabytes takes seconds.
_COMPARED_AT_ONCE_CHARS = 8_000


async def ask_until_certain(
    ask: Callable[[str, int], Awaitable[Outcome]],
    claim: Claim,
    spec: RunSpec,
    calls: Calls,
    index: int,
) -> Outcome:
    """Ask for answers until their majority is certain enough, or all were asked for.

    Args:
        ask: Asks a model for an answer, with the number of the sample.
        claim: The right to make the calls.
        spec: Says which models to ask, how often at most, and until when.
        calls: Has what earlier deliveries have asked for, and gets the answers so far.
        index: The stage-wide index of the branch.

    Raises:
        CallStoppedError: See Claim.checkpoint. Also what ``ask`` raises.
    """
    so_far = calls.so_far
    models = spec.models or (spec.model,)
    most, certainty = len(models) * spec.samples, spec.certainty or 1.0
    is_written, vote = True, _vote(spec)
    # The models whose last failure has used up the time of the branch.
    late: set[str] = set()
    while not so_far.poll.is_decided(most=most, certainty=certainty):
        next_one = question(so_far.poll.asked, models=len(models))
        model = models[next_one.model]
        if model in late:
            so_far = calls.so_far = so_far.without_next()
            continue
        if not is_written:
            await claim.checkpoint(msgspec.json.encode(so_far))
        answer = await ask(model, next_one.sample)
        if len(models) > 1:
            # An answer of several models is that of none.
            answer = msgspec.structs.replace(answer, model=None)
        key = await _key(vote, answer)
        so_far = calls.so_far.with_outcome(answer, model=model, key=key)
        calls.so_far = so_far
        if calls.is_out_of_time:
            late.add(model)
        # Without a call there is nothing new to keep.
        is_written = is_written and not answer.attempts
        if len(models) > 1:
            continue
        if answer.kind is ErrorKind.BUDGET and not calls.stop_after:
            # The run's own budget has no room for another answer.
            return so_far.outcome(index)
        if _is_final(answer.kind, has_answer=so_far.poll.winner is not None):
            return so_far.outcome(index, is_stopped=True)
    return so_far.outcome(index)


def _is_final(kind: ErrorKind | None, *, has_answer: bool) -> bool:
    """Say whether the failure of the only model ends the branch."""
    return kind in STOPS_RUN or (kind in ENDS_ALIKE and not has_answer)


def _vote(spec: RunSpec) -> Vote:
    """Return a vote, as that over all branches of the run, to compare answers."""
    by = spec.by[:1] if spec.reduction == "vote" else ()
    return Vote(Fields(by=by, schema=spec.schema, choices=spec.choices))


async def _key(vote: Vote, answer: Outcome) -> bytes:
    """Return what is equal for equal answers."""
    text = answer.output or ""
    ballot = partial(_digest_of_ballot, vote)
    if len(text) <= _COMPARED_AT_ONCE_CHARS:
        return ballot(text)
    try:
        return await validated(ballot, text)
    except LLMError as error:
        # Better compare it as a text than lose it.
        _log.warning("a long answer is compared as text, not as a value: %s", error.kind)
        return _digest(text.encode())


def _digest_of_ballot(vote: Vote, text: str) -> bytes:
    return _digest(vote.ballot(text))


def _digest(compared: bytes) -> bytes:
    return hashlib.blake2b(compared, digest_size=_DIGEST_BYTES).digest()
