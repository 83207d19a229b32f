"""Where the embedded server keeps answers: in one database for all clients and their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fanout.core.settings import UNIX_SCHEME

if TYPE_CHECKING:
    from fanout.client.embedded.server import EmbeddedServer
    from fanout.core.settings import Settings

__all__ = ["answers_settings", "server_settings"]

# The database that no client has to itself: see fanout.client.embedded.databases.
_DATABASE = 0


def server_settings(settings: Settings, server: EmbeddedServer) -> Settings:
    """Return the settings with the URL of the kept answers of an embedded server."""
    return settings.model_copy(update={"broker_url": server.url(_DATABASE)})


def answers_settings(settings: Settings) -> Settings:
    """Return the settings with the URL of the server that keeps answers.

    That of a fleet is its broker. Each client of the embedded server has a database to itself, and
    answers are in the one that all share, so a run finds those of an earlier one.
    """
    url = settings.broker_url or ""
    if not url.startswith(UNIX_SCHEME):
        return settings
    # Imported here: a worker of a fleet needs nothing of it.
    from fanout.client.embedded.state import StateFolder

    folder = StateFolder(settings.state_dir.expanduser().absolute())
    socket = f"{UNIX_SCHEME}{quote(str(folder.socket))}"
    if url.partition("?")[0] != socket:
        return settings
    return settings.model_copy(update={"broker_url": f"{socket}?db={_DATABASE}"})
