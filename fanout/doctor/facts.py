"""The records of the facts that the doctor judges."""

from __future__ import annotations

import msgspec

from fanout.broker.backlog import Queue  # noqa: TC001 - msgspec reads the annotation
from fanout.core.fleet_records import WorkerRecord  # noqa: TC001 - msgspec reads the annotation
from fanout.core.version import WIRE_VERSION

__all__ = [
    "Connection", "EmbeddedFacts", "FleetFacts", "MachineFacts", "ModelFacts", "ServerFacts",
    "StorageFacts",
]  # fmt: skip


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The connection to the server.

    Attributes:
        address: The server's address, without credentials.
        user: The user of the connection; None if the server does not tell it.
        ping_ms: The median of so many ``pings``, in milliseconds.
    """

    address: str
    is_loopback: bool
    has_tls: bool
    has_password: bool
    user: str | None
    ping_ms: float
    pings: int


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The server. A fact is None if the user has no permission for its command.

    Attributes:
        ahead_s: Seconds by which its clock is ahead of this machine's.
        write_problem: Why it refuses the writes of workers; None if it does not.
        storage_problem: Why ``FANOUT_STORAGE`` here is not the fleet's; None if it is.
        functions_missing: How many of this version's functions it lacks; 0 if any user may load
            them.
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
        active: How many runs have not ended and are not paused.
        stalled: Those of them without a message in the broker, with the status of each; None: no
            permission to check.
        other_prefixes: Key prefixes of other fleets in the same database.
        wire: The fleet's version of the wire format; None if it is not set yet.
        visibility_timeout_s: Seconds after which a dead worker's messages return to the queue.
        limits: The rate limits that were learnt, in words, by model.
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
    limits: dict[str, str] = {}


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The installed versions on this machine.

    Attributes:
        libraries: Name, required versions (as ``>=5.7,<5.8``), and installed version, or None.
    """

    python: str
    fanout: str
    libraries: tuple[tuple[str, str, str | None], ...]


class EmbeddedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an embedded run.

    Attributes:
        start_s: Seconds until the embedded server answered, or None if it did not start.
        cache_dir: The folder of the local model's weights.
        cache_problem: Why that cannot be written to, or None.
        has_extra: Whether the extra ``local`` is installed.
        has_pip: Whether pip is installed, which can download the weights.
    """

    start_s: float | None
    start_problem: str | None = None
    cache_dir: str = ""
    cache_problem: str | None = None
    has_extra: bool = True
    has_weights: bool = True
    has_pip: bool = True


class StorageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The storage of inputs and outcomes outside the server.

    Attributes:
        took_s: Seconds to write, read and delete a file; None if that failed.
        problem: Why it failed, or None.
    """

    storage: str
    took_s: float | None = None
    problem: str | None = None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model can be used.

    Attributes:
        asked: The number of workers, one of which was asked. 0: this machine checked the model, as
            there is no worker. None: this machine checked it, as it would make the calls.
        is_answered: Whether a worker answered.
        problem: Why it cannot be used, or None.
        batches: Why no batches of it can be made: empty if they can, None if it has no batch API.
    """

    model: str
    asked: int | None
    is_answered: bool = True
    problem: str | None = None
    batches: str | None = None
