"""What the commands on runs of a fleet share: the broker option, the client, and Ctrl-C."""

from __future__ import annotations

import json
import signal
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fanout.cli.completion import complete_run
from fanout.core.errors import SettingsError
from fanout.core.plan_runs import NOT_SPLIT
from fanout.core.records import ErrorKind
from fanout.core.units import plural
from fanout.system.terminal import print_line, print_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import FrameType

    import redis

    from fanout.cli.progress import Progress
    from fanout.client.client import Client
    from fanout.client.run import Run
    from fanout.core.settings import Settings
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Notice
    from fanout.stores import RedisStore

__all__ = [
    "EMBEDDED",
    "RUN_EPILOG",
    "Faults",
    "Stop",
    "any_client",
    "broker_option",
    "broker_store",
    "client_for",
    "enqueued",
    "fleet",
    "half_stopped",
    "kept",
    "kind_option",
    "objects",
    "one_object",
    "one_run",
    "print_json",
    "progress_of",
    "run_argument",
    "say",
]

_SHOWN_FAULTS = 5
_NO_PARTS: Mapping[str, Iterable[str]] = MappingProxyType({})

RUN_EPILOG = "RUN is a run's id, what it alone begins with, or `latest`."
EMBEDDED = "$FANOUT_BROKER_URL, else embedded"
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
    from fanout.core.settings import load_settings

    if load_settings(broker_url=broker_url).broker_url is None:
        raise SettingsError(
            "no broker is configured: set FANOUT_BROKER_URL, or give --broker-url; without one "
            "there is no fleet, but `fanout run` begins runs, and `fanout runs` lists them"
        )
    with any_client(broker_url) as client:
        yield client


@contextmanager
def any_client(broker_url: str | None) -> Iterator[Client]:
    """Give a client of a fleet, or, where no broker is configured, of this user's own server.

    Meanwhile SIGTERM and SIGHUP do what Ctrl-C does: the client is closed in order.
    """
    from fanout.client.client import Client

    before = {number: signal.signal(number, _interrupt) for number in _stop_signals()}
    try:
        with Client(broker_url) as client:
            yield client
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def client_for(spec: RunSpec, settings: Settings, broker_url: str | None) -> Client:
    """Return a client for a job; where no broker is configured, it starts a worker of the job's size."""
    from fanout.client.client import Client

    return Client(broker_url, concurrency=None if settings.broker_url else spec.max_workers)


def progress_of(settings: Settings, *, is_quiet: bool, is_plain: bool = False) -> Progress:
    """Return what shows the progress of a run."""
    from fanout.cli.progress import Progress
    from fanout.core.queue_names import NO_CONSUMER

    # Without a broker, the client starts a worker itself: no hint to start one.
    idle = NO_CONSUMER if settings.broker_url else ""
    return Progress(is_quiet=is_quiet, is_plain=is_plain, idle=idle)


def _stop_signals() -> list[signal.Signals]:
    """Return the signals, besides Ctrl-C, that end a program, without those that `nohup` ignores."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def one_run(broker_url: str | None, run_id: str) -> Iterator[Run]:
    """Give a run by what its id begins with, or ``latest``.

    Raises:
        UnknownRunError: There is no such run.
        AmbiguousRunError: There are several.
    """
    with any_client(broker_url) as client:
        yield client.find(run_id)


@contextmanager
def broker_store(
    settings: Settings, *, timeout_s: float | None = None
) -> Iterator[tuple[RedisStore, redis.Redis]]:
    """Give the store on the server of the settings, or else on this machine's; and its client."""
    from fanout.core.settings import DEFAULT_BROKER_URL
    from fanout.stores import RedisStore, connect

    url = settings.broker_url or DEFAULT_BROKER_URL
    client = connect(url, ca_file=settings.broker_ca_file, timeout_s=timeout_s)
    with closing(RedisStore(client, prefix=settings.key_prefix)) as store:
        yield store, client


def print_json(record: Mapping[str, Any], parts: Mapping[str, Iterable[str]] = _NO_PARTS) -> None:
    """Print one JSON object, as a line.

    Args:
        record: The object.
        parts: The JSON of some of its values, in parts, as they may be larger than memory.
    """
    if not parts:
        print_line(json.dumps(record, ensure_ascii=False), is_data=True)
        return
    # Few commands have such values.
    from fanout.runs.spaced_json import object_json

    values = (
        (name, parts[name] if name in parts else [json.dumps(value, ensure_ascii=False)])
        for name, value in record.items()
    )
    print_parts(object_json(values))


def say(text: str, fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a line for people, or its fields as one JSON object."""
    if as_json:
        print_json(fields)
    else:
        print_line(text)


class Stop:
    """Ctrl-C, SIGTERM and SIGHUP: one asks the run to stop, a second one ends the program."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._is_set = False
        self._run_id: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._is_deferring = False
        self._is_deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for the end of a step that it would leave half done."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        if self._is_deferred:
            raise KeyboardInterrupt

    def arm(self, run_id: str) -> None:
        """Stop this run from here on; before, the first signal ends the program."""
        self._run_id = run_id

    def is_set(self) -> bool:
        """Return whether the run should stop."""
        return self._is_set

    def __enter__(self) -> None:
        for number in (signal.SIGINT, *_stop_signals()):
            self._previous[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_deferring:
            self._is_deferred = True
            return
        if self._run_id is None:
            raise KeyboardInterrupt
        if self._is_set:
            self._progress.note(f"quitting at once; {half_stopped(self._run_id)}")
            raise KeyboardInterrupt
        self._is_set = True
        self._progress.note("stopping: what has finished is kept; Ctrl-C again to quit at once")


def kept(run_id: str) -> str:
    """Return how to get what a run has given, and the rest of it."""
    return (
        f"run {run_id} is kept: `fanout results {run_id}` gives what has finished, "
        f"`fanout resume {run_id}` goes on"
    )


def half_stopped(run_id: str) -> str:
    """Return how to go on with a run that was left while it was being stopped."""
    return (
        f"run {run_id} is kept: `fanout results {run_id}` gives what has finished; "
        f"`fanout resume {run_id}` ends it in order, then `fanout retry {run_id}` does the rest"
    )


def enqueued(total: int) -> str:
    """Return how much of a run is in the queue."""
    return f"{plural(total, 'branch is', 'branches are')} enqueued"


class Faults:
    """Prints which documents cannot be used: the first few, and how many more."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0

    def __call__(self, name: str, reason: str) -> None:
        """Print why a document cannot be used, unless a warning tells of all that a model did not split."""
        if reason.startswith(NOT_SPLIT):
            return
        self._count += 1
        if self._count <= _SHOWN_FAULTS:
            self._progress.note(f"skipping {name}: {reason}")

    def notice(self, notice: Notice) -> None:
        """Print a notice about an input; a warning even if the user wants no progress."""
        if notice.is_warning:
            self._progress.warn(notice.text)
        else:
            self._progress.note(notice.text)

    def close(self) -> None:
        """Say how many more there were."""
        if self._count > _SHOWN_FAULTS:
            more = plural(self._count - _SHOWN_FAULTS, "more document", "more documents")
            self._progress.note(f"skipping {more}")
