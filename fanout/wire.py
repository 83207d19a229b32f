"""Who may speak to a fleet: processes whose messages and records have its version of the format."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fanout import broker
from fanout.errors import WireVersionError

if TYPE_CHECKING:
    from fanout.stores.base import Fleet

__all__ = ["claim_as_client", "claim_wire", "version_problem"]

# A client's claim covers what it does next: the run that it creates then holds the version.
_CLIENT_TTL_S = 10.0


def claim_wire(
    store: Fleet, *, holder: str, ttl_s: float, who: str, needs_room: bool = False
) -> None:
    """Say that a process speaks to the fleet, and make sure that it may.

    Args:
        store: The fleet's store.
        holder: Names the process.
        ttl_s: Seconds for which it says so.
        who: What the process is, for the message.
        needs_room: Whether what it does next is of no use while the server is full.

    Raises:
        WireVersionError: The fleet speaks another version of the wire format.
        BrokerError: The store does not answer.
    """
    spoken = store.claim_wire(
        broker.WIRE_VERSION, holder=holder, ttl_s=ttl_s, needs_room=needs_room
    )
    problem = version_problem(who, spoken=spoken, own=broker.WIRE_VERSION)
    if problem is not None:
        raise WireVersionError(problem, spoken=spoken, own=broker.WIRE_VERSION)


def claim_as_client(store: Fleet, *, needs_room: bool = False) -> None:
    """Make sure that a client may change what a fleet does. Raises as ``claim_wire`` does."""
    holder = f"client-{secrets.token_hex(6)}"
    claim_wire(store, holder=holder, ttl_s=_CLIENT_TTL_S, who="this client", needs_room=needs_room)


def version_problem(who: str, *, spoken: int, own: int) -> str | None:
    """Return why a process that speaks ``own`` may not speak to a fleet, or None where it may."""
    if spoken == own:
        return None
    newer = "has a newer fanout than" if own > spoken else "has an older fanout than"
    return (
        f"{who} {newer} the fleet: it speaks version {own} of the wire format, the fleet version "
        f"{spoken}; install the fleet's fanout here, or let the fleet's runs end and stop all its "
        f"workers first: then the next one to start sets the version"
    )
