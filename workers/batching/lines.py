"""Writes the file of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import StoredDataError

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.core.gathered import BatchRecord
    from fanout.stores import RedisStore

__all__ = ["WrittenLines", "write_lines"]


class WrittenLines(NamedTuple):
    """What the file of a batch has: the calls, that of its first line, and the size of all lines."""

    items: set[str]
    first_item: str
    bytes: int


def write_lines(store: RedisStore, batch: BatchRecord, path: Path) -> WrittenLines:
    """Write the lines of the calls of a batch to a file, but for those that are lost or damaged.

    Raises:
        BrokerError: The server does not answer.
    """
    items, first, size = set[str](), "", 0
    with path.open("wb") as file:
        for item, line in store.batch_lines(batch.number, first_item=batch.first_item):
            if isinstance(line, StoredDataError):
                continue
            size += file.write(line if line.endswith(b"\n") else line + b"\n")
            first = first or item
            items.add(item)
    return WrittenLines(items, first, size)
