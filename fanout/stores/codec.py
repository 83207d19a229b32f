"""Encodes and decodes stored records: JSON, compressed blobs, and the fields of hashes."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fanout.core.errors import StoredDataError
from fanout.core.fleet_records import Totals, WorkerRecord
from fanout.core.ids import BranchId
from fanout.core.latency import Latency, bucket_of
from fanout.core.records import QUANTITIES, ErrorKind, Outcome, RunStatus, Shard, Usage
from fanout.core.state import (
    Frontier,
    RunRecord,
    StageRecord,
)
from fanout.system.resources import memory_limit_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_SHARD_BYTES",
    "RUN_FIELDS",
    "decode_frontier",
    "decode_kinds",
    "decode_outcome",
    "decode_outcomes",
    "decode_owner",
    "decode_parked",
    "decode_piece",
    "decode_run",
    "decode_shard",
    "decode_size",
    "decode_stage",
    "decode_totals",
    "decode_wire",
    "decode_worker",
    "encode_frontier",
    "encode_kinds",
    "encode_outcome",
    "encode_outcomes",
    "encode_parked",
    "encode_piece",
    "encode_shard",
    "encode_worker",
    "held_positions",
]

# Level 1 halves JSON text at some 100 MB/s; higher levels cost more than the bytes they save.
_LEVEL = 1

# Limits of decompressed blobs: a few bytes can expand until they fill the reader's memory. A shard is
# about 8 MB (fanout.policy.packing) or one chunk; its outcomes are 500 answers of FANOUT_MAX_OUTPUT_KB.
MAX_SHARD_BYTES = 256_000_000
_MAX_OUTCOMES_BYTES = 2_000_000_000
_MAX_PIECE_BYTES = 64_000_000
# Also a limit: this fraction of the process's memory limit.
_SHARE_OF_MEMORY = 3

_MOST_DIGITS = 9

_T = TypeVar("_T")

RUN_FIELDS = (
    "status", "created_at", "ended_at", "stage", "base_stage", "halt", "deadline_at", "error",
    "paused", "retry", "reopened_at", "max_workers", "priority", "permits", "wire", "idle_s",
    "budget_usd", "budget_calls", "budget_tokens", "late", "ahead", "notice",
)  # fmt: skip

_encode = msgspec.json.Encoder().encode
_shard = msgspec.json.Decoder(Shard).decode
encode_outcome = encode_frontier = _encode
_frontier = msgspec.json.Decoder(Frontier).decode
decode_outcome = msgspec.json.Decoder(Outcome).decode
_outcomes = msgspec.json.Decoder(list[tuple[int, Outcome]]).decode


def encode_shard(shard: Shard) -> bytes:
    """Return a shard as a compressed blob. Raises StoredDataError if it is too large."""
    data = _encode(shard)
    if len(data) > MAX_SHARD_BYTES:
        name = shard.chunks[0].document
        raise StoredDataError(
            f"a chunk of {name} makes a shard of {len(data) / 1e6:,.0f} MB, and "
            f"{MAX_SHARD_BYTES / 1e6:,.0f} MB is the most: split it"
        )
    return zlib.compress(data, _LEVEL)


def _unpacked(blob: bytes, most: int, decode: Callable[[bytes], _T], what: str) -> _T:
    # Text and decoded value are in memory together.
    most = min(most, memory_limit_bytes() // _SHARE_OF_MEMORY)
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(blob, most)
        if inflater.eof:
            return decode(data)
    except (zlib.error, msgspec.MsgspecError, RecursionError) as error:
        raise StoredDataError(f"{what} in the store is damaged ({error})") from None
    if inflater.unconsumed_tail:
        raise StoredDataError(f"{what} in the store is larger than {most / 1e6:,.0f} MB")
    raise StoredDataError(f"{what} in the store is damaged (it is cut off)")


def decode_shard(blob: bytes) -> Shard:
    """Return the shard of a blob. Raises StoredDataError."""
    return _unpacked(blob, MAX_SHARD_BYTES, _shard, "a shard")


def encode_outcomes(outcomes: dict[int, Outcome]) -> bytes:
    """Return the outcomes of a shard, by position, as a compressed blob."""
    return zlib.compress(_encode(sorted(outcomes.items(), key=lambda item: item[0])), _LEVEL)


def decode_outcomes(blob: bytes) -> dict[int, Outcome]:
    """Return the outcomes of a blob, by position. Raises StoredDataError."""
    return dict(_unpacked(blob, _MAX_OUTCOMES_BYTES, _outcomes, "the outcomes of a shard"))


def encode_piece(piece: bytes) -> bytes:
    """Return a piece of an aggregate as a compressed blob."""
    return zlib.compress(piece, _LEVEL)


def decode_piece(blob: bytes) -> bytes:
    """Return the piece of a blob. Raises StoredDataError."""
    return _unpacked(blob, _MAX_PIECE_BYTES, bytes, "a piece of an aggregate")


def decode_size(size: bytes) -> range:
    """Return a shard's indices from its stored first index and count, which a name may follow."""
    first, count = (int(part) for part in size.split(b":")[:2])
    return range(first, first + count)


def decode_owner(size: bytes) -> str:
    """Return the reduce that has written a shard, from its stored size; empty if it has no name."""
    return size.decode().partition(":")[2].partition(":")[2]


def held_positions(fields: dict[bytes, bytes], alive: set[str], now: float) -> frozenset[int]:
    """Return the positions that a live holder has claimed, from the fields of a shard's state.

    A claim is ``token holder until`` in the field ``t:position``.
    """
    claims = ((name, value) for name, value in fields.items() if name.startswith(b"t:"))
    parts = ((int(name[2:]), value.decode().split(" ")) for name, value in claims)
    return frozenset(
        position for position, (_, holder, until) in parts if holder in alive and float(until) > now
    )


def encode_parked(branch_id: BranchId) -> str:
    """Return a branch as a member of the set of parked branches."""
    return f"{branch_id.stage}:{branch_id.shard}:{branch_id.position}"


def decode_parked(run_id: str, member: bytes) -> BranchId:
    """Return the branch of a member, which does not name the run."""
    stage, shard, position = (int(part) for part in member.split(b":"))
    return BranchId(run_id, stage, shard, position)


def encode_kinds(kinds: frozenset[ErrorKind]) -> str:
    """Return kinds of error as one text."""
    return ",".join(sorted(kinds))


def decode_kinds(text: str) -> frozenset[ErrorKind]:
    """Return the kinds of error of a text."""
    return frozenset(ErrorKind(kind) for kind in text.split(",")) if text else frozenset()


def decode_run(run_id: str, values: list[bytes | None], *, read_at: float) -> RunRecord:
    """Return the run that the values of RUN_FIELDS describe at ``read_at``.

    Raises:
        StoredDataError: A value is invalid.
    """
    try:
        return _run(run_id, values, read_at)
    except ValueError as error:
        raise StoredDataError(f"the record of run {run_id} is damaged ({error})") from None


def _run(run_id: str, values: list[bytes | None], read_at: float) -> RunRecord:
    text = dict(zip(RUN_FIELDS, (v and v.decode() for v in values), strict=True))
    status = RunStatus(text["status"] or "")
    return RunRecord(
        run_id=run_id,
        status=RunStatus.PAUSED if text["paused"] and not status.has_ended else status,
        created_at=float(text["created_at"] or 0),
        reopened_at=float(text["reopened_at"]) if text["reopened_at"] else None,
        ended_at=float(text["ended_at"]) if text["ended_at"] else None,
        stage=int(text["stage"] or 0),
        ahead=int(text["ahead"] or 0),
        base_stage=int(text["base_stage"] or 0),
        halt=RunStatus(text["halt"]) if text["halt"] else None,
        deadline_at=float(text["deadline_at"]) if text["deadline_at"] else None,
        error=text["error"] or None,
        retry=decode_kinds(str(text["retry"] or "")),
        read_at=read_at,
        wire=decode_wire(values[RUN_FIELDS.index("wire")]),
        max_workers=int(text["max_workers"]) if text["max_workers"] else None,
        priority=float(text["priority"] or 1),
        permits_used=int(text["permits"] or 0),
        idle_s=float(text["idle_s"] or 0),
        has_budget=any(text[f"budget_{name}"] for name in ("usd", "calls", "tokens")),
        is_late=bool(text["late"]),
        notice=text["notice"] or None,
    )


def decode_frontier(held: bytes) -> Frontier:
    """Return how far a stage holds the outcomes of the one before. Raises StoredDataError."""
    try:
        return _frontier(held)
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"the frontier of a stage is damaged ({error})") from None


def decode_wire(held: bytes | None) -> int | None:
    """Return a run's wire version; None if it has none, -1 if the value is invalid."""
    if held is None:
        return None
    return int(held) if held.isdigit() and len(held) <= _MOST_DIGITS else -1


def latency_bucket(outcome: Outcome) -> int:
    """Return the bucket of the latency histogram for a branch; -1 if its duration is no call's."""
    return bucket_of(outcome.elapsed_s) if outcome.has_latency else -1


def decode_stage(raw: dict[bytes, bytes]) -> StageRecord:
    """Return the stage of a hash."""
    counts = _Counts(raw)
    return StageRecord(
        shards=counts.number("written"),
        total=counts.number("total"),
        sealed="sealed" in counts.fields,
        succeeded=counts.number("succeeded"),
        failed=counts.number("failed"),
        kept_truncated=counts.number("cut"),
        kept_rejected=counts.number("rejected"),
        errors=counts.kinds("kind:"),
        again=counts.kinds("again:"),
        usage=counts.usage(),
        usage_of=counts.usage_of(),
        latency=counts.latency(),
        saved=counts.usage("saved:"),
    )


def decode_totals(raw: dict[bytes, bytes], of_runs: dict[bytes, bytes]) -> Totals:
    """Return the totals of two hashes. Earlier versions counted everything in the first."""
    counts, runs = _Counts(raw), _Counts(of_runs)
    ended = Counter(dict(counts.named("ended:"))) + Counter(dict(runs.named("ended:")))
    known = {status.value for status in RunStatus}
    return Totals(
        submitted=counts.number("submitted") + runs.number("submitted"),
        ended={RunStatus(status): number for status, number in ended.items() if status in known},
        succeeded=counts.number("succeeded"),
        errors=counts.kinds("kind:"),
        usage=counts.usage(whole=False),
        latency=counts.latency(),
        healed=counts.number("heals"),
        pauses=counts.number("pauses"),
        dropped=counts.number("dropped"),
        saved=counts.usage("saved:", whole=False),
    )


class _Counts:
    """Reads the fields of a hash that counts outcomes."""

    def __init__(self, raw: dict[bytes, bytes]) -> None:
        self.fields = {name.decode(): value for name, value in raw.items()}

    def number(self, name: str) -> int:
        return int(float(self.fields.get(name, b"0")))

    def named(self, prefix: str) -> list[tuple[str, int]]:
        """Return the rest of each name after a prefix with its count, if that is not 0."""
        names = [name for name in self.fields if name.startswith(prefix)]
        counted = ((name.removeprefix(prefix), self.number(name)) for name in names)
        return [(rest, number) for rest, number in counted if number]

    def kinds(self, prefix: str) -> dict[ErrorKind, int]:
        return {ErrorKind(kind): number for kind, number in self.named(prefix)}

    def latency(self) -> Latency:
        counts = {int(bucket): number for bucket, number in self.named("took:")}
        if not counts:
            # What a retry took back leaves an error of rounding in the sum.
            return Latency()
        return Latency(
            counts=counts,
            sum_s=max(0.0, float(self.fields.get("took_s", b"0"))),
            least_s=self._seconds(f"least:{min(counts)}"),
            most_s=self._seconds(f"most:{max(counts)}"),
        )

    def _seconds(self, name: str) -> float | None:
        value = self.fields.get(name)
        return None if value is None else float(value)

    def usage_of(self) -> dict[str, Usage]:
        """Return the usage by model."""
        prefix = "by:calls:"
        models = sorted(
            name.removeprefix(prefix) for name in self.fields if name.startswith(prefix)
        )
        return {model: self.usage("by:", f":{model}") for model in models}

    def usage(self, before: str = "", after: str = "", *, whole: bool = True) -> Usage:
        """Return the usage. If ``whole``, a sum with an unknown part is unknown.

        ``before`` and ``after`` are around the names of its fields.
        """
        calls = self.number(f"{before}calls{after}")
        sums: dict[str, Any] = {}
        at_least: dict[str, float] = {}
        for name in QUANTITIES:
            field = f"{before}{name}{after}"
            if field not in self.fields and calls:
                continue
            known = float(self.fields.get(field, b"0"))
            known = known if name == "cost_usd" else int(known)
            if not whole or f"{before}unknown:{name}{after}" not in self.fields:
                sums[name] = known
            elif known:
                at_least[name] = known
        return Usage(calls=calls, at_least=at_least, **sums)


class _StoredWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's record and the seconds for which it is valid."""

    worker: WorkerRecord
    ttl_s: float


def encode_worker(worker: WorkerRecord, ttl_s: float) -> bytes:
    """Return a worker's record as JSON."""
    return _encode(_StoredWorker(worker=worker, ttl_s=ttl_s))


def decode_worker(data: bytes, lapses_at: float) -> WorkerRecord:
    """Return a worker's record. ``lapses_at`` less its ttl is the time of its last heartbeat."""
    stored = _stored_worker(data)
    return msgspec.structs.replace(stored.worker, seen_at=lapses_at - stored.ttl_s)


_stored_worker = msgspec.json.Decoder(_StoredWorker).decode
