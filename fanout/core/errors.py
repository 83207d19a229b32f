"""What can go wrong, as one tree.

::

    FanoutError
    ├── InputError            a document, a file or a folder is at fault
    ├── SpecError             a field of a job is wrong
    │   └── PromptError       a prompt template is wrong
    ├── SettingsError         an environment variable is wrong
    ├── BrokerError           the broker cannot be reached or refuses
    │   └── StorageError      the storage of inputs and outcomes cannot be reached or refuses
    ├── ModelError            a model cannot be used at all: unknown, no key, no server
    ├── LLMError              one call to a model failed, with the kind of failure
    ├── WireVersionError      a fleet speaks another version of the wire format than this process
    ├── EmbeddedError         the embedded server or its worker did not start
    └── RunError              a run cannot do what was asked of it
        ├── StoredDataError   what the store holds of a run is damaged, or too large to be ours
        │   └── LostDataError a file is not there in which an input or outcomes were kept
        ├── UnknownRunError   there is no such run, or it has expired
        ├── AmbiguousRunError several runs have ids that begin so
        └── WaitTimeoutError  the run had not ended when the waiting did

Every message is meant for the person who typed the command: it names the field, file or line,
the value, and what is allowed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanout.core.records import ErrorKind, Usage

__all__ = [
    "AmbiguousRunError",
    "BrokerError",
    "EmbeddedError",
    "FanoutError",
    "InputError",
    "LLMError",
    "LostDataError",
    "ModelError",
    "PromptError",
    "RunError",
    "SettingsError",
    "SpecError",
    "StorageError",
    "StoredDataError",
    "UnknownRunError",
    "WaitTimeoutError",
    "WireVersionError",
]


_SHOWN_IDS = 8


class FanoutError(Exception):
    """The root: catching it catches all that fanout raises on purpose."""


class InputError(FanoutError):
    """A document, a file or a folder is at fault.

    Attributes:
        source: The file or folder, or None where the input came from memory.
        line: The 1-based line in the source, or None.
    """

    def __init__(self, message: str, *, source: str | None = None, line: int | None = None) -> None:
        where = f"{source}, line {line}: " if source and line else f"{source}: " if source else ""
        super().__init__(where + message)
        self.source = source
        self.line = line


class SpecError(FanoutError):
    """A field of a job is wrong.

    Attributes:
        field: The field's name as the user writes it, or None where the job as a whole is wrong.
        reason: What is wrong with it, without its name.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.reason = message


class PromptError(SpecError):
    """A prompt template is wrong."""


class SettingsError(FanoutError):
    """An environment variable is wrong, or an argument that is given in place of one.

    Attributes:
        argument: The argument's name, or None where it is a variable.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(f"{argument}: {message}" if argument else message)
        self.argument = argument
        self.reason = message


class BrokerError(FanoutError):
    """The broker cannot be reached, or refuses the credentials.

    Attributes:
        is_passing: Whether it may be well again by itself, as after a restart.
        is_refusal: Whether the broker answers, and does not do what it is asked.
    """

    def __init__(self, message: str, *, is_passing: bool = False, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing
        self.is_refusal = is_refusal


class StorageError(BrokerError):
    """The storage of inputs and outcomes (``FANOUT_STORAGE``) cannot be reached, or refuses."""


class ModelError(FanoutError):
    """A model cannot be used at all: the provider is unknown, a key is missing, no server answers.

    Attributes:
        kind: The kind of error that a call would end with, or None where no call could be made.
    """

    def __init__(self, message: str, *, kind: ErrorKind | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class LLMError(FanoutError):
    """One call to a model failed.

    Attributes:
        kind: Why, from the closed list.
        retry_after_s: Seconds that the provider asked to wait, or None.
        status: The HTTP status, or None.
        usage: What the provider says that the call consumed, or None where it says nothing.
        stop_after: How many branches must fail alike, before any has succeeded, until their run is
            stopped: 1 stops it at once and whatever went well before, 0 never does. None is as the
            kind has it: ``auth`` and ``budget`` stop a run, others do not.
        is_own: Whether it is certain that this prompt fails, and not its provider: then it is not
            taken for an outage, nor waited out as one.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        usage: Usage | None = None,
        stop_after: int | None = None,
        is_own: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = _wait_s(retry_after_s)
        self.status = status
        self.usage = usage
        self.stop_after = stop_after
        self.is_own = is_own


def _wait_s(given: Any) -> float | None:
    """Return a time to wait, whatever a provider or a function of a user's gives for one."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    try:
        return max(0.0, float(given)) if math.isfinite(given) else None
    except OverflowError:
        return None


class WireVersionError(FanoutError):
    """A fleet speaks another version of the wire format than this process.

    Attributes:
        spoken: The fleet's version.
        own: This process's version.
    """

    def __init__(self, message: str, *, spoken: int, own: int) -> None:
        super().__init__(message)
        self.spoken = spoken
        self.own = own


class EmbeddedError(FanoutError):
    """The embedded server or its worker did not start."""


class RunError(FanoutError):
    """A run cannot do what was asked of it."""


class StoredDataError(RunError):
    """What the store holds of a run is damaged, or larger than fanout would have written it."""


class LostDataError(StoredDataError):
    """A file is not there in which the input or the outcomes of a shard were kept."""


class UnknownRunError(RunError):
    """There is no such run, or it has expired."""

    def __init__(self, run_id: str, where: str = "known to this broker") -> None:
        super().__init__(f"no run {run_id!r} is {where} (it may have expired)")
        self.run_id = run_id


class AmbiguousRunError(RunError):
    """Several runs have ids that begin so.

    Attributes:
        run_ids: These runs, the newest first.
    """

    def __init__(self, prefix: str, statuses: dict[str, str]) -> None:
        named = [f"{run_id} ({status})" for run_id, status in statuses.items()]
        shown = ", ".join(named[:_SHOWN_IDS])
        more = f" and {len(named) - _SHOWN_IDS} more" if len(named) > _SHOWN_IDS else ""
        super().__init__(f"{len(named)} runs have ids that begin with {prefix!r}: {shown}{more}")
        self.run_ids = list(statuses)


class WaitTimeoutError(RunError):
    """The run had not ended when the waiting did; the run itself goes on."""
