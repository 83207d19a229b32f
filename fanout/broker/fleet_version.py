"""Checks that a process has the wire version of its fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.broker import app as broker
from fanout.core.errors import WireVersionError

if TYPE_CHECKING:
    from fanout.stores import RedisStore

__all__ = ["check_as_client", "claim_wire", "foreign_run_problem", "own_version", "version_problem"]


def claim_wire(store: RedisStore, *, holder: str, ttl_s: float) -> None:
    """Claim the fleet's wire version for a worker, and check that it is the worker's.

    Args:
        store: The fleet's store.
        holder: The worker's unique name.
        ttl_s: Seconds that the claim lasts.

    Raises:
        WireVersionError: The fleet uses another version of the wire format.
        BrokerError: The store does not answer.
    """
    _require("this worker", store.claim_wire(broker.WIRE_VERSION, holder=holder, ttl_s=ttl_s))


def check_as_client(store: RedisStore, *, needs_room: bool = False) -> None:
    """Check that a client has the fleet's wire version.

    Args:
        store: The fleet's store.
        needs_room: Whether the client's next step fails on a full server.

    Raises:
        WireVersionError: The fleet uses another version of the wire format.
        BrokerError: The store does not answer, or is full.
    """
    _require("this client", store.wire_for(broker.WIRE_VERSION, needs_room=needs_room))


def own_version() -> int:
    """Return the version that this process writes."""
    return broker.WIRE_VERSION


def _require(who: str, spoken: int) -> None:
    problem = version_problem(who, spoken=spoken, own=broker.WIRE_VERSION)
    if problem is not None:
        raise WireVersionError(problem, spoken=spoken, own=broker.WIRE_VERSION)


def foreign_run_problem(wire: int | None) -> str | None:
    """Return why workers of this version cannot process a run, or None if they can."""
    if wire in {None, broker.WIRE_VERSION}:
        return None
    return (
        f"the run is written in version {wire} of the wire format, and the workers speak version "
        f"{broker.WIRE_VERSION}: submit it with the fanout that the workers have"
    )


def version_problem(who: str, *, spoken: int, own: int) -> str | None:
    """Return why a process of version ``own`` may not join a fleet, or None if it may."""
    if spoken == own:
        return None
    newer = "has a newer fanout than" if own > spoken else "has an older fanout than"
    return (
        f"{who} {newer} the fleet: it speaks version {own} of the wire format, the fleet version "
        f"{spoken}; install the fleet's fanout here, or let the fleet's runs end and stop all its "
        f"workers first: then the next one to start sets the version"
    )
