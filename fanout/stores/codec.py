"""How records become bytes: JSON, and zlib where there are many."""

from __future__ import annotations

import zlib

import msgspec

from fanout.runs import Outcome, Shard

__all__ = [
    "decode_outcome",
    "decode_outcomes",
    "decode_shard",
    "encode_outcome",
    "encode_outcomes",
    "encode_shard",
]

# Level 1 halves JSON text at some 100 MB/s; higher levels cost more than the bytes they save.
_LEVEL = 1

_encode = msgspec.json.Encoder().encode
_shard = msgspec.json.Decoder(Shard).decode
_outcome = msgspec.json.Decoder(Outcome).decode
_outcomes = msgspec.json.Decoder(list[tuple[int, Outcome]]).decode


def encode_shard(shard: Shard) -> bytes:
    """Return a shard as a compressed blob."""
    return zlib.compress(_encode(shard), _LEVEL)


def decode_shard(blob: bytes) -> Shard:
    """Return the shard of a blob."""
    return _shard(zlib.decompress(blob))


def encode_outcome(outcome: Outcome) -> bytes:
    """Return one outcome as JSON."""
    return _encode(outcome)


def decode_outcome(data: bytes) -> Outcome:
    """Return the outcome of a JSON text."""
    return _outcome(data)


def encode_outcomes(outcomes: dict[int, Outcome]) -> bytes:
    """Return the outcomes of a shard, by position, as a compressed blob."""
    return zlib.compress(_encode(sorted(outcomes.items(), key=lambda item: item[0])), _LEVEL)


def decode_outcomes(blob: bytes) -> dict[int, Outcome]:
    """Return the outcomes of a blob, by position."""
    return dict(_outcomes(zlib.decompress(blob)))
