"""Scripts that a full server carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

__all__ = ["SmallScript"]


class SmallScript:
    """A script whose writes are few bytes, and which a full server carries out all the same.

    Otherwise nobody could pause or stop the runs that have filled it, nor see which workers live.
    Servers before version 7 refuse it all the same.
    """

    def __init__(self, client: redis.Redis, text: str) -> None:
        self._plain = client.register_script(text)
        self._despite = client.register_script(f"#!lua flags=allow-oom\n{text}")

    def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it."""
        try:
            return self._plain(keys=keys, args=args)
        except OutOfMemoryError:
            return self._despite(keys=keys, args=args)
