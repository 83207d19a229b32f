"""The exit statuses of the ``fanout`` command."""

from __future__ import annotations

__all__ = ["FAILURE", "INTERRUPTED", "USAGE"]

FAILURE = 1  # the run did not meet its policy, or something else failed
USAGE = 2  # wrong usage or input
INTERRUPTED = 130  # Ctrl-C, SIGTERM or SIGHUP
