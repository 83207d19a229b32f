"""Encodes and decodes what is stored of models' rate limits: their use, what was learnt, and breakers."""

from __future__ import annotations

from typing import Any

import msgspec

from fanout.core.rate_limits import LearntLimits, LimitState
from fanout.policy.adaptive import CallWindow
from fanout.policy.outages import FORGET_S

__all__ = ["decode_learnt", "decode_limits", "decode_window", "encode_learnt", "encode_window"]

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


def encode_learnt(learnt: LearntLimits) -> bytes:
    """Return learnt limits as JSON."""
    return _encode(learnt)


def decode_learnt(data: bytes | None) -> LearntLimits | None:
    """Return learnt limits; None if there are none, or they cannot be read."""
    try:
        return None if data is None else _learnt(data)
    except msgspec.DecodeError:
        return None


_learnt = msgspec.json.Decoder(LearntLimits).decode


def encode_window(window: CallWindow) -> bytes:
    """Return a window of calls as JSON."""
    return _encode(window)


def decode_window(data: bytes | None) -> CallWindow | None:
    """Return a window of calls; None if there is none, or it cannot be read."""
    try:
        return None if data is None else _window(data)
    except msgspec.DecodeError:
        return None


_window = msgspec.json.Decoder(CallWindow).decode


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
