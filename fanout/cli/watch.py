"""``fanout watch``: a run, or a whole fleet, while it goes on."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from fanout.cli.completion import complete_run
from fanout.cli.delivery import conclude, follow
from fanout.cli.progress import Progress
from fanout.cli.session import broker_option, fleet
from fanout.cli.view import Meter, Screen, fleet_lines, run_lines
from fanout.errors import BrokerError, UnknownRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.client import Client
    from fanout.fleet import FleetStatus
    from fanout.handle import Run
    from fanout.results import Status

__all__ = ["command"]

# The workers say how they are every two seconds.
_FLEET_S = 1.0
_FRAME_S = 0.25


@click.command("watch")
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_run)
@broker_option()
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    help="How often --json, and the fleet, are shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object each time.")
def command(
    run_id: str | None,
    broker_url: str | None,
    interval_s: float,
    as_json: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Follow a run until it has ended; without a RUN, the whole fleet until Ctrl-C.

    Ctrl-C ends the watching, not the run. A run's exit status is 0 where it met its policy.
    """
    with fleet(broker_url) as client:
        if run_id is None:
            _watch_fleet(client, interval_s, as_json=as_json)
            return 0
        run = client.find(run_id)
        try:
            return _watch_run(client, run, interval_s, as_json=as_json)
        except KeyboardInterrupt:
            where = f"run {run.run_id} goes on: `fanout watch {run.run_id}` follows it again"
            click.echo(where, err=True)
            raise


def _watch_run(client: Client, run: Run, interval_s: float, *, as_json: bool) -> int:
    progress = Progress(is_quiet=as_json)
    if as_json:
        status = run.wait(on_progress=_every(interval_s, _JsonLines(client).show))
        _JsonLines(client).show(status)
    elif Screen.is_fit(sys.stderr):
        status = _on_screen(client, run, progress)
    else:
        status = follow(run, progress)
    return conclude(status, progress)


def _on_screen(client: Client, run: Run, progress: Progress) -> Status:
    screen, meter, look = Screen(sys.stderr), Meter(), _FleetLook(client)
    model = run.spec.model

    def show(status: Status) -> None:
        speed = meter.see(status.done, status.usage)
        screen.draw(run_lines(status, speed, look(), model))

    def away(_error: BrokerError) -> None:
        screen.clear()
        progress.away()

    try:
        return run.wait(on_progress=_every(_FRAME_S, show), on_away=away)
    finally:
        screen.clear()


def _every(interval_s: float, show: Callable[[Status], None]) -> Callable[[Status], None]:
    """Have a status shown only so often."""
    shown_at = float("-inf")

    def maybe(status: Status) -> None:
        nonlocal shown_at
        if not status.status.has_ended and time.monotonic() - shown_at >= interval_s:
            shown_at = time.monotonic()
            show(status)

    return maybe


class _FleetLook:
    """Looks at the fleet now and then, beside a run that is looked at more often."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: FleetStatus | None = None
        self._looked_at = float("-inf")

    def __call__(self) -> FleetStatus | None:
        if time.monotonic() - self._looked_at >= _FLEET_S:
            self._looked_at = time.monotonic()
            self._seen = self._client.fleet()
        return self._seen


class _JsonLines:
    """Prints a run's status, its speed, and the fleet, as one line of JSON each time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._meter = Meter()

    def show(self, status: Status) -> None:
        speed = self._meter.see(status.done, status.usage)
        fleet_now = self._client.fleet()
        record = {
            **status.to_dict(),
            "speed": speed.to_dict(),
            "queues": {queue.name: queue.waiting for queue in fleet_now.queues},
            "in_flight": fleet_now.in_flight,
        }
        click.echo(json.dumps(record, ensure_ascii=False))
        sys.stdout.flush()


def _watch_fleet(client: Client, interval_s: float, *, as_json: bool) -> None:
    is_live = not as_json and Screen.is_fit(sys.stdout)
    screen, meter = Screen(sys.stdout), Meter()
    while True:
        now = client.fleet()
        totals = now.totals
        done = totals.succeeded + sum(totals.errors.values())
        speed = meter.see(done, totals.usage)
        if as_json:
            click.echo(json.dumps({**now.to_dict(), "speed": speed.to_dict()}))
            sys.stdout.flush()
        else:
            lines = fleet_lines(now, list(_active(client)), speed)
            if is_live:
                screen.draw(lines)
            else:
                click.echo("\n".join([*lines, ""]))
        time.sleep(interval_s)


def _active(client: Client) -> Iterator[Status]:
    for run_id in client.active_runs():
        try:
            yield client.run(run_id).status()
        except UnknownRunError:
            # It was deleted meanwhile.
            continue
