"""The schemes of the URLs of stores, and the packages that they need."""

from __future__ import annotations

__all__ = ["OBJECT_STORES", "READ_SCHEMES", "missing_package"]

# Object stores need no folders, and write a file as a whole or not at all.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
# What workers read unless their settings say otherwise: nothing whose URL names any host of a network.
READ_SCHEMES = ("file", *sorted(OBJECT_STORES))
_EXTRAS = {"s3": "s3", "s3a": "s3"}


def missing_package(scheme: str, otherwise: str) -> str:
    """Return what to do for a scheme whose package is missing.

    Args:
        scheme: The scheme.
        otherwise: What to do where no extra of fanout has the package.
    """
    extra = _EXTRAS.get(scheme)
    fix = f"pip install 'fanout-llm[{extra}]'" if extra else otherwise
    return f"{scheme}:// needs a package: {fix}"
