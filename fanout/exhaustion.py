"""Whether an error says that a process, or its machine, has nothing left to go on with."""

from __future__ import annotations

import errno

__all__ = ["is_exhausted"]

# Descriptors of the process, of the machine; memory; threads or processes.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})


def is_exhausted(error: BaseException) -> bool:
    """Say whether this process, or machine, has no thread, descriptor or memory left for now."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTED
    # Python has no class for it.
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
