"""``fanout watch``: follow a run or the whole fleet."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NoReturn

import click

from fanout.cli.completion import complete_run
from fanout.cli.delivery import conclude
from fanout.cli.facts import fleet_line
from fanout.cli.following import follow
from fanout.cli.progress import Follower, Progress
from fanout.cli.run_facts import wait_hint
from fanout.cli.session import (
    EMBEDDED,
    RUN_EPILOG,
    any_client,
    broker_option,
    fleet,
    kept,
    print_json,
)
from fanout.cli.speed import Meter, eta_s
from fanout.core.errors import BrokerError, UnknownRunError
from fanout.core.queue_names import NO_CONSUMER
from fanout.system.terminal import can_draw, print_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from fanout.cli.speed import Speed
    from fanout.client.client import Client
    from fanout.client.run import Run
    from fanout.observe.fleet import FleetStatus
    from fanout.runs.status import Status

__all__ = ["command"]

_LIVE_S = 0.5
_JSON_S = 1.0
_PLAIN_S = 10.0
# The largest share of the time spent reading the fleet, if that is slow.
_FLEET_SHARE = 0.1
_AWAY = "the broker does not answer; what it does goes on, and so does the waiting"


@click.command("watch", epilog=RUN_EPILOG)
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_run)
@broker_option(EMBEDDED)
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(0.1),
    help=f"Time between two looks. [default: {_LIVE_S} on a terminal, {_JSON_S:.0f} with --json, "
    f"else {_PLAIN_S:.0f}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object each time.")
def command(
    run_id: str | None,
    broker_url: str | None,
    interval_s: float | None,
    as_json: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Follow a run until it has ended; without a RUN, the whole fleet until Ctrl-C.

    Ctrl-C ends the watching, not the run. A run's exit status is 0 where it met its policy.
    """
    if run_id is None:
        with (
            fleet(broker_url) as client,
            closing(_fleet_view(client, interval_s, as_json=as_json)) as view,
        ):
            _watch_fleet(client, view)
    with any_client(broker_url) as client:
        run = client.find(run_id)
        try:
            status = follow(run, _run_view(client, run, interval_s, as_json=as_json))
        except KeyboardInterrupt:
            print_line(_left(client, run.run_id), err=True)
            raise
    return conclude(status, Progress(is_quiet=as_json))


def _left(client: Client, run_id: str) -> str:
    """Return what becomes of a run that is not watched any more."""
    # This command may have started the only worker of an embedded run.
    with suppress(BrokerError):
        if client.goes_on_without(run_id):
            text = f"run {run_id} goes on: `fanout watch {run_id}` follows it again"
            if not client.is_embedded:
                return text
            # The other process may be one that is about to end.
            return f"{text}; `fanout resume {run_id}` goes on with it when no process works on it"
    return kept(run_id)


def _run_view(client: Client, run: Run, interval_s: float | None, *, as_json: bool) -> Follower:
    if as_json:
        return _JsonRun(client, run, interval_s or _JSON_S)
    if can_draw(sys.stderr):
        return _LiveRun(client, run, interval_s or _LIVE_S)
    return Progress(plain_s=interval_s or _PLAIN_S, idle="" if client.is_embedded else NO_CONSUMER)


class _RunView(Follower, ABC):
    """Shows a run every ``interval_s`` seconds, and once it has ended."""

    def __init__(self, client: Client, run: Run, interval_s: float) -> None:
        self._client = client
        self._run = run
        self._interval_s = interval_s
        self._meter = Meter()
        self._fleet: FleetStatus | None = None
        self._due_at = self._fleet_due_at = float("-inf")

    def show(self, status: Status) -> None:
        now = time.monotonic()
        if now >= self._due_at or status.status.has_ended:
            self._due_at = now + self._interval_s
            self._show(status, self._meter.see(status.done, status.usage))

    @abstractmethod
    def _show(self, status: Status, speed: Speed) -> None: ...

    def _read_fleet(self) -> FleetStatus:
        """Return the state of the run's fleet, read less often if that is slow."""
        started_at = time.monotonic()
        if self._fleet is None or started_at >= self._fleet_due_at:
            self._fleet = self._client.fleet(self._run.run_id)
            now = time.monotonic()
            self._fleet_due_at = now + (now - started_at) / _FLEET_SHARE
        return self._fleet


class _LiveRun(_RunView):
    """Draws a run as a live frame on the terminal; the last frame stays."""

    def __init__(self, client: Client, run: Run, interval_s: float) -> None:
        from fanout.cli.console import LiveFrame

        super().__init__(client, run, interval_s)
        self._frame = LiveFrame(sys.stderr)
        self._model = run.spec.named_models
        self._shown: tuple[Status, Speed, FleetStatus | None] | None = None
        self._refusal: str | None = None

    def _show(self, status: Status, speed: Speed) -> None:
        # The load of the fleet does not matter once the run has ended.
        self._shown = status, speed, None if status.status.has_ended else self._read_fleet()
        self._draw(self._refusal or wait_hint(status))

    def _draw(self, note: str) -> None:
        from fanout.cli.views import run_view

        if self._shown is not None:
            width = self._frame.width
            self._frame.draw(run_view(*self._shown, self._model, width=width, note=note))

    def away(self) -> None:
        self._draw(_AWAY)

    def refused(self, problem: str | None) -> None:
        self._refusal = problem

    def close(self) -> None:
        self._frame.close()


class _JsonRun(_RunView):
    """Prints a run's status, its speed and the load of the fleet as lines of JSON."""

    def _show(self, status: Status, speed: Speed) -> None:
        fleet_now, seconds = self._read_fleet(), eta_s(status, speed)
        record = {
            **status.to_dict(),
            "speed": speed.to_dict(),
            "eta_s": None if seconds is None else round(seconds, 1),
            "queues": {queue.name: queue.waiting for queue in fleet_now.queues},
            "concurrency": fleet_now.concurrency,
            "in_flight": fleet_now.in_flight,
        }
        print_json(record)


class _PlainFleet:
    """Shows the state of a fleet as a line on standard error."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s

    def show(self, now: FleetStatus, speed: Speed) -> None:
        print_line(fleet_line(now, speed), err=True)

    def away(self) -> None:
        """Say that the server does not answer."""
        print_line(_AWAY, err=True)

    def close(self) -> None:
        """Stop drawing; the last frame stays."""


class _JsonFleet(_PlainFleet):
    def show(self, now: FleetStatus, speed: Speed) -> None:
        print_json({**now.to_dict(), "speed": speed.to_dict()})

    def away(self) -> None:
        pass


def _fleet_view(client: Client, interval_s: float | None, *, as_json: bool) -> _PlainFleet:
    if as_json:
        return _JsonFleet(interval_s or _JSON_S)
    if can_draw(sys.stderr):
        return _LiveFleet(client, interval_s or _LIVE_S)
    return _PlainFleet(interval_s or _PLAIN_S)


def _watch_fleet(client: Client, view: _PlainFleet) -> NoReturn:
    """Show a fleet until Ctrl-C. Raises BrokerError if its server does not answer for too long."""
    from fanout.client.run import AWAY_S

    meter = Meter()
    answered_at = time.monotonic()
    while True:
        try:
            now = client.fleet()
            done = now.totals.succeeded + sum(now.totals.errors.values())
            view.show(now, meter.see(done, now.totals.usage))
            answered_at = time.monotonic()
        except BrokerError as error:
            if not error.is_passing or time.monotonic() - answered_at >= AWAY_S:
                raise
            view.away()
        time.sleep(view.interval_s)


class _LiveFleet(_PlainFleet):
    def __init__(self, client: Client, interval_s: float) -> None:
        from fanout.cli.console import LiveFrame

        super().__init__(interval_s)
        self._client = client
        self._frame = LiveFrame(sys.stderr)
        self._view: RenderableType = ""

    def show(self, now: FleetStatus, speed: Speed) -> None:
        from fanout.cli.views import SHOWN_RUNS, fleet_view

        runs = list(_newest(self._client, now, SHOWN_RUNS))
        self._view = fleet_view(now, runs, speed, width=self._frame.width)
        self._frame.draw(self._view)

    def away(self) -> None:
        from rich.console import Group

        self._frame.draw(Group(self._view, _AWAY))

    def close(self) -> None:
        self._frame.close()


def _newest(client: Client, now: FleetStatus, count: int) -> Iterator[Status]:
    for run_id in now.active[:count]:
        # One may have been deleted meanwhile.
        with suppress(UnknownRunError):
            yield client.run(run_id).status()
