"""What there is: records that say nothing of whether that is good."""

from __future__ import annotations

import msgspec

from fanout.broker.backlog import Queue  # noqa: TC001 - msgspec reads the annotation
from fanout.core.version import WIRE_VERSION
from fanout.stores import WorkerRecord  # noqa: TC001 - msgspec reads the annotation

__all__ = [
    "Connection", "EmbeddedFacts", "FleetFacts", "MachineFacts", "ModelFacts", "ServerFacts",
    "StorageFacts",
]  # fmt: skip


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is reached.

    Attributes:
        address: Where it is, without credentials.
        is_loopback: Whether that is this machine.
        has_tls: Whether the connection is encrypted.
        has_password: Whether a password is given.
        user: Who we are to the server; None where it does not say.
        ping_ms: The median round trip in milliseconds.
        pings: Of how many.
    """

    address: str
    is_loopback: bool
    has_tls: bool
    has_password: bool
    user: str | None
    ping_ms: float
    pings: int


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The server.

    Attributes:
        info: What INFO says; None: not allowed to look.
        config: What CONFIG GET says; None: not allowed to look.
        ahead_s: Seconds that its clock is ahead of this machine's; None: not allowed to look.
        write_problem: Why it refuses what a worker writes; None where it does not.
        storage_problem: Why ``FANOUT_STORAGE`` here is not what the fleet uses; None where it is.
        functions_missing: How many of this version's functions it lacks, where not everybody may
            load them.
    """

    info: dict[str, str] | None
    config: dict[str, str] | None
    ahead_s: float | None
    write_problem: str | None = None
    storage_problem: str | None = None
    functions_missing: int = 0


class FleetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet on a server.

    Attributes:
        workers: The live workers.
        queues: What waits.
        active: The runs that have not ended and are not paused.
        stalled: Those of them that have no message in the broker, and the status of each; None:
            not allowed to look.
        paused: How many runs are paused.
        prefix: The key prefix.
        other_prefixes: Key prefixes of other fleets in the same database.
        wire: The version of the wire format that the fleet speaks; None: nobody spoke yet.
        own_wire: This machine's.
        own_version: The version of fanout on this machine.
        visibility_timeout_s: After how many seconds a dead worker's messages come back.
    """

    workers: list[WorkerRecord]
    queues: tuple[Queue, ...]
    active: int = 0
    stalled: dict[str, str] | None = {}
    paused: int = 0
    prefix: str = "fanout"
    other_prefixes: tuple[str, ...] = ()
    wire: int | None = None
    own_wire: int = WIRE_VERSION
    own_version: str = ""
    visibility_timeout_s: float = 30.0


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed here.

    Attributes:
        python: The version of Python.
        fanout: The version of fanout.
        libraries: Name, what fanout asks for (as ``>=5.7,<5.8``), and what is installed, or None.
    """

    python: str
    fanout: str
    libraries: tuple[tuple[str, str, str | None], ...]


class EmbeddedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is used where no broker is configured.

    Attributes:
        start_s: Seconds until the embedded server answered, or None where it did not start.
        start_problem: Why not.
        cache_dir: Where the weights of the local model are kept.
        cache_problem: Why that cannot be written to, or None.
        has_extra: Whether the extra ``local`` is installed.
        has_weights: Whether the weights are there.
        has_pip: Whether they could be fetched.
    """

    start_s: float | None
    start_problem: str | None = None
    cache_dir: str = ""
    cache_problem: str | None = None
    has_extra: bool = True
    has_weights: bool = True
    has_pip: bool = True


class StorageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where inputs and outcomes are kept, outside the server.

    Attributes:
        storage: The folder or URL.
        took_s: Seconds that it took to write a file, to read and to delete it; None: it failed.
        problem: Why.
    """

    storage: str
    took_s: float | None = None
    problem: str | None = None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model can be used.

    Attributes:
        model: The model.
        asked: How many workers there are, one of which was asked; 0: it was checked here, as there
            is none; None: it was checked here, where the calls would be made.
        is_answered: Whether there was an answer.
        problem: Why it cannot be used, or None.
    """

    model: str
    asked: int | None
    is_answered: bool = True
    problem: str | None = None
