"""Which functions a worker may import as models: what its ``FANOUT_ALLOWED_CALLABLES`` lists.

Importing a module runs it. A run names its function, and whoever reaches the broker can make a run:
so what may be imported is said where the worker is started, and nowhere else.
"""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING

from fanout.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["is_allowed", "require_allowed", "require_home"]

_MAX_SHOWN = 200
_HOME_IS_KNOWN = (FunctionType, BuiltinFunctionType, MethodType, type)


def is_allowed(path: str, allowed: Collection[str]) -> bool:
    """Say whether a list allows ``package.module:function``.

    An entry is ``package`` or ``package.module``, with all that is below it,
    ``package.module:function``, or ``*``.
    """
    return any(_covers(entry, path) for entry in allowed)


def _covers(entry: str, path: str) -> bool:
    if entry in {"*", path}:
        return True
    module = path.partition(":")[0]
    # On the boundaries of names: "acme" is not the beginning of "acme_evil".
    return ":" not in entry and f"{module}.".startswith(f"{entry}.")


def require_allowed(path: str, allowed: Collection[str]) -> None:
    """Make sure that a function may be imported. Raises ModelError."""
    if is_allowed(path, allowed):
        return
    listed = f"it allows {', '.join(sorted(allowed))}" if allowed else "it allows none"
    raise ModelError(
        f"the function {path[:_MAX_SHOWN]} may not be used on the workers: {listed}; list it, its "
        "module or its package in FANOUT_ALLOWED_CALLABLES where the workers run"
    )


def require_home(path: str, found: object, allowed: Collection[str]) -> None:
    """Make sure that a function is at home where the list allows it.

    A module that is allowed may import others: ``acme.tools:system`` must not be ``os.system``.

    Raises:
        ModelError: It is from elsewhere.
    """
    home = getattr(found, "__module__", None)
    if path in allowed or not isinstance(found, _HOME_IS_KNOWN) or home is None:
        return
    if not is_allowed(home, allowed):
        raise ModelError(
            f"the function {path[:_MAX_SHOWN]} is from the module {home}, which is not listed in "
            "FANOUT_ALLOWED_CALLABLES where the workers run; list the function itself to allow it"
        )
