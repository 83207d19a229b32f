"""Whether an error says that a process, or its machine, has nothing left to go on with."""

from __future__ import annotations

import errno

__all__ = ["is_exhausted"]

# Descriptors of the process, of the machine; memory; threads or processes.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})


def is_exhausted(error: BaseException) -> bool:
    """Say whether this process, or machine, has no thread, descriptor or memory left for now.

    Also of an error that was raised from such a one.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return True
    # Python has no class for it.
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return True
    return error.__cause__ is not None and is_exhausted(error.__cause__)
