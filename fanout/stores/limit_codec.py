"""Encodes and decodes what is stored of models' rate limits: their use, what was learnt, and breakers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fanout.core.rate_limits import LearntLimits, LimitState
from fanout.policy.adaptive import CallWindow
from fanout.policy.outages import FORGET_S

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decode_learnt", "decode_limits", "decode_window", "encode"]

_Record = TypeVar("_Record", LearntLimits, CallWindow)

_encode = msgspec.json.Encoder().encode

_AHEAD_FIELDS = {
    "r": "requests_ahead_s",
    "t": "tokens_ahead_s",
    "i": "tokens_ahead_s",
    "u": "tokens_ahead_s",
    "b": "blocked_s",
}
_OPENED, _BLOCKED = "o:", "b:"
_LEARNT, _WINDOW = "l", "a"


def encode(record: LearntLimits | CallWindow) -> bytes:
    """Return learnt limits, or a window of calls, as JSON."""
    return _encode(record)


def _reader(decode: Callable[[bytes], _Record]) -> Callable[[bytes | None], _Record | None]:
    """Return what reads a record; None if there is none, or it cannot be read."""

    def read(data: bytes | None) -> _Record | None:
        try:
            return None if data is None else decode(data)
        except msgspec.DecodeError:
            return None

    return read


decode_learnt = _reader(msgspec.json.Decoder(LearntLimits).decode)
decode_window = _reader(msgspec.json.Decoder(CallWindow).decode)


def decode_limits(raw: dict[bytes, bytes], now: float) -> dict[str, LimitState]:
    """Return the use of rate limits, in seconds from now, by model."""
    limits: dict[str, dict[str, Any]] = {}
    for name, value in raw.items():
        kind, _, model = name.decode().partition(":")
        if kind in _AHEAD_FIELDS:
            found = limits.setdefault(model, {})
            field = _AHEAD_FIELDS[kind]
            found[field] = max(found.get(field, 0.0), float(value) - now)
        elif kind == _LEARNT and (learnt := decode_learnt(value)) is not None:
            found = limits.setdefault(model, {})
            found["learnt"] = learnt.rates if learnt.rates.is_limited else None
            found["is_tight"] = learnt.is_tight
        elif kind == _WINDOW and (window := decode_window(value)) is not None:
            limits.setdefault(model, {})["calls_at_once"] = window.size and round(window.size)
        elif name.decode().startswith(_OPENED):
            blocked = float(raw.get((_BLOCKED + model).encode(), now))
            if now - blocked <= FORGET_S:
                limits.setdefault(model, {})["down_s"] = max(0.0, now - float(value))
    return {model: LimitState(**fields) for model, fields in limits.items()}
