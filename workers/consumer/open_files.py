"""Open files: a worker makes room for its connections, or says at its start that it cannot.

Each call in flight has a connection, which is an open file. What a process may open is bounded
twice: by a soft limit, which it may raise by itself, up to a hard one, which it may not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import SettingsError

try:
    import resource
except ImportError:  # there are no such limits
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["make_room", "soft_limit"]

# Connections to the server, logs, modules while they are loaded, and what models open besides.
_BASE = 128
# A child has pipes to its parent.
_PER_BRANCH = {"prefork": 6}


def soft_limit(*, concurrency: int, pool: str, soft: int | None, hard: int | None) -> int | None:
    """Return the soft limit that a worker needs to set, or None where it has enough.

    Args:
        concurrency: Branches in flight.
        pool: The worker's pool.
        soft: What it may open now; None is any number.
        hard: To what it may raise that; None is any number.

    Raises:
        SettingsError: So many branches do not fit the hard limit.
    """
    each = _PER_BRANCH.get(pool, 1)
    wanted = _BASE + each * concurrency
    if soft is None or wanted <= soft:
        return None
    if hard is not None and wanted > hard:
        most = max(0, (hard - _BASE) // each)
        fitting = f"lower --concurrency (FANOUT_CONCURRENCY) to {most:,}, or " if most else ""
        raise SettingsError(
            f"--concurrency: {concurrency:,} branches in flight need {wanted:,} open files, and "
            f"this process may have {hard:,}: {fitting}raise its hard limit (ulimit -Hn, "
            "LimitNOFILE= of systemd, --ulimit nofile= of Docker)"
        )
    return wanted


def make_room(*, concurrency: int, pool: str, limits: ModuleType | None = resource) -> None:
    """Raise this process's soft limit where a worker needs more. Raises SettingsError.

    Also where the worker is in a thread of somebody's program: nothing is taken from that.
    """
    if limits is None:
        return
    soft, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
    infinite = limits.RLIM_INFINITY
    wanted = soft_limit(
        concurrency=concurrency,
        pool=pool,
        soft=None if soft == infinite else soft,
        hard=None if hard == infinite else hard,
    )
    if wanted is None:
        return
    try:
        limits.setrlimit(limits.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        # macOS has a limit below its hard one.
        raise SettingsError(
            f"--concurrency: {concurrency:,} branches in flight need {wanted:,} open files, and "
            f"this process's limit of {soft:,} cannot be raised ({error}): lower --concurrency"
        ) from None
