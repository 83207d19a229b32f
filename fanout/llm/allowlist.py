"""The allowlist of functions that a worker may import as models: ``FANOUT_ALLOWED_CALLABLES``.

Importing a module runs its code. A run names its function, and anyone with access to the broker can
start a run. So only the environment of the worker decides what the worker may import.
"""

from __future__ import annotations

import re
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING

from fanout.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["is_allowed", "require_allowed", "require_home", "split_path"]

_MAX_SHOWN = 200
_NAME = r"[^\W\d]\w*"
_PATH = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})")
_DEFINED = (FunctionType, BuiltinFunctionType, type)


def split_path(path: str) -> tuple[str, str] | None:
    """Return the module and the name of ``package.module:function``; None for any other form.

    The name must be a single public name: attributes of a function (``f.__call__``,
    ``f.__globals__``) and methods of a class would reach objects that the list does not name.
    """
    match = _PATH.fullmatch(path)
    if match is None or match[2].startswith("_"):
        return None
    return match[1], match[2]


def is_allowed(path: str, allowed: Collection[str]) -> bool:
    """Say whether a list allows ``package.module:function``.

    An entry is ``package.module:function``, ``*``, or a ``package`` or ``package.module``, which
    includes all public modules below it.
    """
    parts = split_path(path)
    return parts is not None and any(_covers(entry, path, parts[0]) for entry in allowed)


def _covers(entry: str, path: str, module: str) -> bool:
    if entry in {"*", path}:
        return True
    # Compare whole names: "acme" must not allow "acme_evil".
    if ":" in entry or not f"{module}.".startswith(f"{entry}."):
        return False
    # Importing acme.__main__ would run the program.
    below = module[len(entry) :].split(".")
    return not any(part.startswith("_") for part in below)


def require_allowed(path: str, allowed: Collection[str]) -> tuple[str, str]:
    """Check that the worker may import a function; return its module and its name there.

    Raises:
        ModelError: The list does not allow the function, or the path is malformed.
    """
    parts = split_path(path)
    if parts is None:
        raise ModelError(
            f"the function {path[:_MAX_SHOWN]} cannot be used: after the colon stands one public "
            "name of the module, without dots (package.module:function)"
        )
    if is_allowed(path, allowed):
        return parts
    listed = f"it allows {', '.join(sorted(allowed))}" if allowed else "it allows none"
    raise ModelError(
        f"the function {path[:_MAX_SHOWN]} may not be used on the workers: {listed}; list it, its "
        "module or its package in FANOUT_ALLOWED_CALLABLES where the workers run"
    )


def require_home(path: str, found: object, allowed: Collection[str]) -> None:
    """Check that an object of a listed module is a function or class that the module defines.

    The module may have imported others: ``acme.tools:system`` must not be ``os.system``, nor an
    object whose class another module defines. An entry that names the function itself allows any
    object.

    Raises:
        ModelError: The module does not define the object.
    """
    if path in allowed or "*" in allowed:
        return
    module = path.partition(":")[0]
    home = found.__module__ if isinstance(found, _DEFINED) else None
    if home == module:
        return
    shown = path[:_MAX_SHOWN]
    if home is None:
        what = f"{shown} is an object of type {type(found).__name__}, not a function or class"
    else:
        what = f"the function {shown} is from the module {home}"
    raise ModelError(
        f"{what}: FANOUT_ALLOWED_CALLABLES of the workers lists a module or package, which allows "
        "what is defined there; list the function itself to allow it"
    )
