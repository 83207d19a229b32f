"""The exceptions that fanout raises, as one tree.

::

    FanoutError
    ├── InputError            a document, a file or a folder cannot be used
    ├── SpecError             a field of a job is wrong
    │   └── PromptError       a prompt template is wrong
    ├── SettingsError         an environment variable is wrong
    ├── BrokerError           the broker cannot be reached or refuses
    │   └── StorageError      the storage of inputs and outcomes cannot be reached or refuses
    ├── ModelError            a model cannot be used at all: unknown, no key, no server
    ├── LLMError              one call to a model failed, with the kind of failure
    ├── WireVersionError      a fleet uses another version of the wire format than this process
    ├── EmbeddedError         the embedded server or its worker did not start
    └── RunError              a run cannot do what the caller asks
        ├── StoredDataError   the stored data of a run is damaged, or larger than fanout writes it
        │   └── LostDataError a file with the input or the outcomes of a shard is missing
        ├── UnknownRunError   the run does not exist, or it has expired
        ├── AmbiguousRunError several run ids begin with the given prefix
        └── WaitTimeoutError  the run did not end within the timeout of a wait

Every message addresses the user: it names the field, file or line, the value, and the allowed values.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanout.core.rate_limits import SeenLimits
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
# Longer ones are cut.
_LONG_NAME = re.compile(r"([^.]{200})[^.]+")
_LONG_WORD = re.compile(r"(\S{1200})\S+")


class FanoutError(Exception):
    """The base class of all exceptions that fanout raises on purpose."""


class InputError(FanoutError):
    """A document, a file or a folder cannot be used.

    Attributes:
        source: The file or folder, or None where the input came from memory.
        line: The 1-based line in the source, or None.
        reason: What is wrong with it, without source and line.
    """

    def __init__(self, message: str, *, source: str | None = None, line: int | None = None) -> None:
        where = f"{source}, line {line}: " if source and line else f"{source}: " if source else ""
        super().__init__(_LONG_WORD.sub(r"\1...", where + message))
        self.source = source
        self.line = line
        self.reason = message


class SpecError(FanoutError):
    """A field of a job is wrong.

    Attributes:
        field: The field's name as the user writes it, or None where the job as a whole is wrong.
        reason: What is wrong with it, without its name.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        # A name may be as long as the job.
        field, message = (
            field and _LONG_NAME.sub(r"\1...", field),
            _LONG_WORD.sub(r"\1...", message),
        )
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.reason = message


class PromptError(SpecError):
    """A prompt template is wrong."""


class SettingsError(FanoutError):
    """An environment variable is wrong, or an argument that replaces one.

    Attributes:
        argument: The argument's name, or None for a variable.
        reason: What is wrong with it, without its name.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(f"{argument}: {message}" if argument else message)
        self.argument = argument
        self.reason = message


class BrokerError(FanoutError):
    """The broker cannot be reached, or refuses the credentials.

    Attributes:
        is_passing: Whether the fault may pass by itself, for example when the server restarts.
        is_refusal: Whether the broker answers, but refuses the command.
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
        usage: The usage that the provider reports for the call, or None.
        stop_after: The number of branches that must fail with this error, before any branch has
            succeeded, to stop the run. 1 stops it at once, even after successes; 0 never stops it.
            None takes the default of the kind: ``auth`` and ``budget`` stop a run, others do not.
        is_own: Whether the cause is certainly this prompt and not the provider. Such a failure
            does not count as an outage, and its branch does not wait for one to end.
        finish_reason: Why the generation ended, in the provider's words, or None.
        is_shed: Whether the provider has no capacity left for the lane of the call. It says nothing
            about calls in other lanes.
        limits: The provider's rate limits, as the reply's headers tell them, or None.
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
        finish_reason: str | None = None,
        is_shed: bool = False,
        limits: SeenLimits | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.limits = limits
        self.finish_reason = finish_reason
        self.is_shed = is_shed
        self.retry_after_s = _wait_s(retry_after_s)
        self.status = status
        self.usage = usage
        self.stop_after = stop_after
        self.is_own = is_own


def _wait_s(given: Any) -> float | None:
    """Return a wait in seconds, or None if a provider or a user's function gives no valid one."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    try:
        return max(0.0, float(given)) if math.isfinite(given) else None
    except OverflowError:
        return None


class WireVersionError(FanoutError):
    """A fleet uses another version of the wire format than this process.

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
    """A run cannot do what the caller asks."""


class StoredDataError(RunError):
    """The stored data of a run is damaged, or larger than fanout writes it."""


class LostDataError(StoredDataError):
    """A file with the input or the outcomes of a shard is missing."""


class UnknownRunError(RunError):
    """The run does not exist, or it has expired."""

    def __init__(self, run_id: str, where: str = "known to this broker") -> None:
        no_such = "no run is" if run_id == "latest" else f"no run {run_id!r} is"
        which = "all" if run_id == "latest" else "it"
        super().__init__(f"{no_such} {where} ({which} may have expired)")
        self.run_id = run_id


class AmbiguousRunError(RunError):
    """Several run ids begin with the given prefix.

    Attributes:
        run_ids: The ids of these runs, the newest first.
    """

    def __init__(self, prefix: str, statuses: dict[str, str]) -> None:
        named = [f"{run_id} ({status})" for run_id, status in statuses.items()]
        shown = ", ".join(named[:_SHOWN_IDS])
        more = f" and {len(named) - _SHOWN_IDS} more" if len(named) > _SHOWN_IDS else ""
        super().__init__(f"{len(named)} runs have ids that begin with {prefix!r}: {shown}{more}")
        self.run_ids = list(statuses)


class WaitTimeoutError(RunError):
    """The run did not end within the timeout of a wait. The run itself goes on."""
