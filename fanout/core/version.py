"""The version of the messages and of the records in the store, for all who need to know it."""

from __future__ import annotations

__all__ = ["WIRE_VERSION"]

# Raised by a change that a worker or a client of the version before could not read. Embedded runs
# of the version before can then not be read either: fanout.client.embedded.state says so.
#   2: runs have turns in the queue of branches, and jobs have fields that version 1 refuses.
WIRE_VERSION = 2
