"""The policy for refusals at random: those that fewer calls at once do not lower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fanout.policy.adaptive import CallWindow

__all__ = ["compared", "noisy"]

# The share of refused calls that may be noise, and the successes after which it is clear whether fewer
# calls at once have lowered it.
_LEAST_NOISE, _MOST_NOISE = 0.02, 0.6
_CLEAR = 60
# When noise is looked at again, and how many fewer of the calls may then succeed: else it is none.
_NOISE_SUCCESSES = 100
_WORSE = 0.75
_MORE = 1.5


def _refused_share(window: CallWindow) -> float:
    ended = window.done + window.refused
    return window.refused / ended if ended else 0.0


def compared(window: CallWindow) -> CallWindow:
    """Return the window with what the calls since its last decrease say about its size."""
    size, share = window.size or 1.0, _refused_share(window)
    now_is = msgspec.structs.replace(window, was=(size, share), since=(0.0, 0.0, 0.0))
    if window.is_starved or window.was is None or size >= window.was[0]:
        return now_is
    done, refused, sizes = window.since
    done, refused, sizes = (
        done + window.done,
        refused + window.refused,
        sizes + size * window.done,
    )
    if done < _CLEAR:
        return msgspec.structs.replace(window, since=(done, refused, sizes))
    before, share_before = window.was
    share = refused / (done + refused)
    # What would be refused if the provider had taken as many calls as before, and no more.
    beyond = max(0.0, 1 - (1 - share_before) * before * done / sizes)
    if not _LEAST_NOISE <= share <= _MOST_NOISE or share < (share_before + beyond) / 2:
        return now_is
    return msgspec.structs.replace(
        now_is,
        noise=share,
        size=before,
        ceiling=None,
        over_at=None,
        done=0,
        busy_s=0.0,
        refused=0,
        was=None,
    )


def noisy(window: CallWindow, noise: float) -> CallWindow | None:
    """Return a window whose refusals are noise; None if they are more than that."""
    if window.is_starved:
        return None
    if window.done < max(_NOISE_SUCCESSES, _MORE * (window.size or 1.0)):
        return window
    share = _refused_share(window)
    if share > 1 - _WORSE * (1 - noise):
        return None
    mean = (noise + share) / 2
    return msgspec.structs.replace(
        window,
        noise=mean if mean >= _LEAST_NOISE / 2 else None,
        done=0,
        busy_s=0.0,
        refused=0,
    )
