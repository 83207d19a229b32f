"""What the commands on runs of a fleet share: the broker option, the client, and Ctrl-C."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.completion import complete_run
from fanout.errors import SettingsError
from fanout.runs import ErrorKind
from fanout.terminal import print_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from fanout.cli.progress import Progress
    from fanout.client import Client
    from fanout.handle import Run

__all__ = [
    "RUN_EPILOG",
    "Faults",
    "Stop",
    "broker_option",
    "fleet",
    "kind_option",
    "objects",
    "one_object",
    "one_run",
    "run_argument",
    "say",
]

_SHOWN_FAULTS = 5

RUN_EPILOG = "RUN is a run's id, what it alone begins with, or `latest`."
run_argument = click.argument("run_id", metavar="RUN", shell_complete=complete_run)
one_object = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
objects = click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")


kind_option = click.option(
    "--kind",
    "kinds",
    metavar="KIND",
    multiple=True,
    type=click.Choice([kind.value for kind in ErrorKind]),
    help=f"Only branches that failed so: {', '.join(ErrorKind)}; give several. [default: all]",
)


def broker_option(default: str = "$FANOUT_BROKER_URL") -> Callable[..., Any]:
    """Return the option that says where the fleet's server is."""
    help_text = f"The fleet's Redis server. [default: {default}]"
    return click.option("--broker-url", metavar="URL", help=help_text)


@contextmanager
def fleet(broker_url: str | None) -> Iterator[Client]:
    """Give a client of a fleet, which must be a lasting one.

    Raises:
        SettingsError: No broker is configured.
    """
    from fanout.client import Client
    from fanout.settings import load_settings

    if load_settings(broker_url=broker_url).broker_url is None:
        raise SettingsError(
            "no broker is configured: set FANOUT_BROKER_URL, or give --broker-url; "
            "without one a run lives in `fanout run` alone and ends with it"
        )
    with Client(broker_url) as client:
        yield client


@contextmanager
def one_run(broker_url: str | None, run_id: str) -> Iterator[Run]:
    """Give a run of a fleet by what its id begins with, or ``latest``.

    Raises:
        UnknownRunError: There is no such run.
        AmbiguousRunError: There are several.
    """
    with fleet(broker_url) as client:
        yield client.find(run_id)


def say(text: str, fields: dict[str, Any], *, as_json: bool) -> None:
    """Print a line for people, or its fields as one JSON object."""
    print_line(json.dumps(fields, ensure_ascii=False) if as_json else text)


class Stop:
    """Ctrl-C: once asks the run to stop, twice ends the program at once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._is_set = False
        self._is_armed = False
        self._previous: Any = None

    def arm(self) -> None:
        """From here on there is a run to stop; before, there is nothing to keep."""
        self._is_armed = True

    def is_set(self) -> bool:
        """Say whether the run shall stop."""
        return self._is_set

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._is_armed or self._is_set:
            raise KeyboardInterrupt
        self._is_set = True
        self._progress.note("stopping: what has finished is kept; Ctrl-C again to quit at once")


class Faults:
    """Says which documents cannot be used: the first few, and how many more."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0

    def __call__(self, name: str, reason: str) -> None:
        """Say it of one document."""
        self._count += 1
        if self._count <= _SHOWN_FAULTS:
            self._progress.note(f"skipping {name}: {reason}")

    def close(self) -> None:
        """Say how many more there were."""
        if self._count > _SHOWN_FAULTS:
            self._progress.note(f"skipping {self._count - _SHOWN_FAULTS:,} more documents")
