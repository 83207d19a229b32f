"""The exit statuses of the ``fanout`` command."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["CLOSED_PIPE", "FAILURE", "INTERRUPTED", "USAGE", "mute_stdout"]

FAILURE = 1  # the run did not meet its policy, or something else failed
USAGE = 2  # wrong usage or input
INTERRUPTED = 130  # Ctrl-C, SIGTERM or SIGHUP
CLOSED_PIPE = 141  # the reader closed standard output too early, as after SIGPIPE


def mute_stdout() -> None:
    """Discard further output: its reader is gone."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
