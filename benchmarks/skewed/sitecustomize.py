"""Makes ``time.sleep`` right on a host with a wrong clock: it uses the monotonic clock.

libfaketime 0.9.10 applies the wrong clock to the deadline of ``time.sleep``.
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
