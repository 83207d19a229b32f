"""The command ``fanout cache``: the figures of the kept answers, and their deletion."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from fanout.cli.session import EMBEDDED, broker_option, one_object, print_json, say
from fanout.core.units import byte_size, dollars, percent, plural
from fanout.system.terminal import print_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.kept_answers import CacheStats
    from fanout.core.settings import Settings
    from fanout.stores import RedisStore

__all__ = ["command"]


@click.command("cache")
@click.argument("action", type=click.Choice(["stats", "clear"]), default="stats")
@broker_option(EMBEDDED)
@one_object
def command(
    action: Literal["stats", "clear"],
    broker_url: str | None,
    as_json: bool,  # noqa: FBT001 - a click flag
) -> None:
    """Say what the kept answers take and have saved (`stats`), or delete them all (`clear`)."""
    from fanout.core.settings import load_settings

    with _cache_store(load_settings(broker_url=broker_url)) as store:
        if action == "clear":
            count = store.clear_answers()
            store.sweep_files()
            say(
                f"{plural(count, 'answer', 'answers')} deleted", {"deleted": count}, as_json=as_json
            )
            return
        stats = store.cache_stats()
    if as_json:
        print_json({**msgspec.to_builtins(stats), "hit_rate": stats.hit_rate})
        return
    for line in _lines(stats):
        print_line(line)


def _lines(stats: CacheStats) -> Iterator[str]:
    kept = plural(stats.answers, "answer is", "answers are")
    yield f"{kept} kept, which take about {byte_size(stats.bytes)}"
    asked = stats.hits + stats.misses
    share = f" ({percent(stats.hits, asked)})" if asked else ""
    yield f"{stats.hits:,} of {plural(asked, 'request', 'requests')} answered from them{share}"
    yield f"{dollars(stats.saved_usd)} saved, as far as prices are known"
    yield f"{stats.kept:,} kept since the last clear, {stats.evicted:,} of them have made room"


@contextmanager
def _cache_store(settings: Settings) -> Iterator[RedisStore]:
    """Give the store of kept answers: of a fleet, or of this user's own server."""
    from fanout.broker.app import make_store

    if settings.broker_url is not None:
        with closing(make_store(settings)) as store:
            store.ping()
            yield store
        return
    from fanout.client.embedded.answers import server_settings
    from fanout.client.embedded.fleet import use_server

    server = use_server()
    try:
        server.wait()
        with closing(make_store(server_settings(settings, server))) as store:
            yield store
    finally:
        server.release()
