"""Python on a host whose clock is wrong: its sleeps go by the monotonic clock, which is not.

libfaketime 0.9.10 takes the moment until which ``time.sleep`` sleeps for one of the wrong clock.
"""

from __future__ import annotations

import threading
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex, /) -> None:
    lasts_s = float(seconds)
    if lasts_s < 0:
        raise ValueError("sleep length must be non-negative")
    threading.Event().wait(lasts_s)


time.sleep = _sleep
