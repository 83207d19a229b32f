"""Detection of errors that mean that the process or its machine has run out of a resource."""

from __future__ import annotations

import errno

__all__ = ["is_exhausted"]

# File descriptors of the process and of the machine; memory; threads or processes; buffers.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})


def is_exhausted(error: BaseException) -> bool:
    """Say whether the process or machine has run out of threads, file descriptors or memory.

    The causes of the error count as well.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return True
    # Python has no class for this error.
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return True
    return error.__cause__ is not None and is_exhausted(error.__cause__)
