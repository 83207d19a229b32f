"""The groups of a shard's branches as hashes: 8 bytes for each branch, however long their names are.

They are of the run, so that nobody can make names for documents that have the same hash. Two names that
have it by chance are planned as one group, which costs time only: answers are put together by the names.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING

from fanout.core.errors import StoredDataError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MOST_BRANCHES", "decode_hashes", "encode_hashes", "group_hash"]

# What a shard may have at most, as its hashes are decompressed in memory.
MOST_BRANCHES = 100_000
_WIDTH = 8
# Branches of the same group often follow each other.
_LEVEL = 1


def group_hash(name: str, *, run_id: str) -> int:
    """Return 64 bits that stand for the name of a group in a run."""
    data = name.encode(errors="surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=_WIDTH, key=run_id.encode()).digest())


def encode_hashes(hashes: Iterable[int]) -> bytes:
    """Return the hashes of the branches of a shard, in order, as bytes."""
    return zlib.compress(_swapped(array("Q", hashes)).tobytes(), _LEVEL)


def decode_hashes(data: bytes) -> array[int]:
    """Return the hashes of the branches of a shard. Raises StoredDataError."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, MOST_BRANCHES * _WIDTH)
        if not inflater.eof or len(plain) % _WIDTH:
            raise StoredDataError("the groups of a shard in the store are damaged")
    except zlib.error as error:
        raise StoredDataError(f"the groups of a shard in the store are damaged ({error})") from None
    return _swapped(array("Q", plain))


def _swapped(hashes: array[int]) -> array[int]:
    """Return hashes with the byte order changed between that of this machine and the stored one."""
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes
