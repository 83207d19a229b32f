"""Checks, on a worker, that its model can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.broker.app import Preflight
from fanout.core.errors import ModelError
from fanout.core.redaction import redacted

if TYPE_CHECKING:
    from workers.context.worker_context import WorkerContext

__all__ = ["check_model"]

_NOTE_TTL_S = 600
_MAX_MESSAGE = 1_000


async def _check(context: WorkerContext, model: str) -> None:
    await (await context.models.get(model)).check()


def check_model(context: WorkerContext, model: str, note: str) -> None:
    """Check ``model`` and store the result, a Preflight as JSON, as ``note``."""
    try:
        context.loop.wait_for(_check(context, model))
    except ModelError as error:
        answer = Preflight(message=redacted(str(error)), kind=error.kind)
    except Exception as error:  # noqa: BLE001 - the waiting client must get a result
        fault = redacted(f"{type(error).__name__}: {error}")[:_MAX_MESSAGE]
        answer = Preflight(message=f"the model {model} could not be checked: {fault}")
    else:
        answer = Preflight()
    context.connections.store.put_note(note, msgspec.json.encode(answer), ttl_s=_NOTE_TTL_S)
