"""Raises the limit of open files of a worker to fit its connections, or rejects the concurrency.

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

__all__ = ["raise_open_file_limit", "soft_limit"]

# Connections to the server, logs, modules during import, and further files of model clients.
_BASE = 128
# Each prefork child has pipes to its parent.
_PER_BRANCH = {"prefork": 6}


def soft_limit(*, concurrency: int, pool: str, soft: int | None, hard: int | None) -> int | None:
    """Return the soft limit that a worker needs to set, or None if the present one suffices.

    Args:
        concurrency: Branches in flight.
        pool: The worker's pool.
        soft: Present soft limit, in files; None is unlimited.
        hard: Present hard limit, in files; None is unlimited.

    Raises:
        SettingsError: The concurrency needs more files than the hard limit allows.
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


def raise_open_file_limit(
    *, concurrency: int, pool: str, limits: ModuleType | None = resource
) -> None:
    """Raise this process's soft limit if a worker needs more. Raises SettingsError.

    Also for a worker in a thread of another program, as a higher limit does no harm there.
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
        # macOS has a further limit below the hard limit.
        raise SettingsError(
            f"--concurrency: {concurrency:,} branches in flight need {wanted:,} open files, and "
            f"this process's limit of {soft:,} cannot be raised ({error}): lower --concurrency"
        ) from None
