"""Computes how many open files a worker needs, and raises the limit of its process to fit.

Each call in flight has a connection, which is an open file. A process may raise its soft limit of
open files by itself, up to its hard limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import SettingsError

try:
    import resource
except ImportError:  # the platform has no such limits
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["fitting_concurrency", "open_files_problem", "raise_open_file_limit"]

# Connections to the server, logs, modules during import, and further files of model clients.
_BASE = 128
# Each prefork child has pipes to its parent.
_PER_BRANCH = {"prefork": 6}


def fitting_concurrency(
    concurrency: int, *, pool: str = "asyncio", limits: ModuleType | None = resource
) -> int:
    """Return the most branches in flight, up to ``concurrency``, that the hard limit here allows."""
    if limits is None:
        return concurrency
    hard: int = limits.getrlimit(limits.RLIMIT_NOFILE)[1]
    if hard == limits.RLIM_INFINITY:
        return concurrency
    return max(0, min(concurrency, (hard - _BASE) // _PER_BRANCH.get(pool, 1)))


def open_files_problem(
    concurrency: int, *, setting: str, pool: str = "asyncio", limits: ModuleType | None = resource
) -> str | None:
    """Return why the hard limit of open files rules out a worker here, or None if it does not.

    Args:
        concurrency: Branches in flight.
        setting: The setting to lower, as the user knows it.
        pool: The worker's pool.
        limits: Python's ``resource``; None where the platform has no limits.
    """
    most = fitting_concurrency(concurrency, pool=pool, limits=limits)
    if limits is None or most == concurrency:
        return None
    _, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
    fitting = f"lower {setting} to {most:,}, or " if most else ""
    return (
        f"{_need(concurrency, pool)}, and this process may have {hard:,}: {fitting}raise its hard "
        "limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of Docker)"
    )


def raise_open_file_limit(
    *, concurrency: int, pool: str, limits: ModuleType | None = resource
) -> None:
    """Raise this process's soft limit if a worker needs more. Raises SettingsError.

    Also for a worker in a thread of another program, as a higher limit does no harm there.
    """
    if limits is None:
        return
    setting = "--concurrency (FANOUT_CONCURRENCY)"
    problem = open_files_problem(concurrency, setting=setting, pool=pool, limits=limits)
    if problem is not None:
        raise SettingsError(f"--concurrency: {problem}")
    soft, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
    needed = _needed(concurrency, pool)
    if soft == limits.RLIM_INFINITY or needed <= soft:
        return
    try:
        limits.setrlimit(limits.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:
        # macOS has a further limit below the hard limit.
        raise SettingsError(
            f"--concurrency: {_need(concurrency, pool)}, and this process's limit of {soft:,} "
            f"cannot be raised ({error}): lower --concurrency"
        ) from None


def _needed(concurrency: int, pool: str) -> int:
    return _BASE + _PER_BRANCH.get(pool, 1) * concurrency


def _need(concurrency: int, pool: str) -> str:
    return f"{concurrency:,} branches in flight need {_needed(concurrency, pool):,} open files"
