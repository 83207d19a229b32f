"""The version of the messages and of the stored records."""

from __future__ import annotations

__all__ = ["WIRE_VERSION"]

# Raise it with any change that a worker or a client of the previous version cannot read. Embedded
# runs of the previous version are then unreadable, too: fanout.client.embedded.state reports it.
#   2: runs have turns in the queue of branches, and jobs have fields that version 1 refuses.
#   3: branches are published whole, and have no feed.
#   4: columns of rows have their types.
#   5: a chunk has a branch for each model.
#   6: usage counts cached, written and reasoning tokens, and has the known part of what is unknown.
#   7: branches may have steps.
#   8: stages of a reduce begin while branches go on.
#   9: an aggregate may be in pieces, and a job may have several.
WIRE_VERSION = 9
