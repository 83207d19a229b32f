"""Inputs that are URLs: which are, and where a SQLite URL points."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import NamedTuple
from urllib.parse import unquote_plus

from fanout.core.errors import InputError
from fanout.core.redaction import redacted

__all__ = [
    "SqliteUrl",
    "StoreRoot",
    "is_relative",
    "is_url",
    "on_disk",
    "shown",
    "sqlite_url",
    "with_base",
]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:://|::)")
_SQLITE = "sqlite:"
_SLASH = "/"
_PARAMETERS = ("table", "query")


class SqliteUrl(NamedTuple):
    """A SQLite database, and what to read of it: a table, or the result of a query, or neither."""

    path: str
    table: str | None = None
    query: str | None = None


class StoreRoot(NamedTuple):
    """A place in a store: its URL, and its path there. They tell the URLs of other paths there.

    The paths of some stores begin with the host or bucket of the URL; those of others lack the host.
    """

    place: str
    path: str

    def url(self, path: str) -> str | None:
        """Return the URL of a path of this store; None if the place does not tell it."""
        if path == self.path:
            return self.place
        # In a chain of URLs, the path is that of the first that is a URL by itself.
        chain = self.place.split("::")
        at = next((at for at, one in enumerate(chain) if "://" in one), None)
        if at is None:
            return None
        scheme, _, rest = chain[at].partition("://")
        head = [f"{scheme}:", "", *rest.rstrip("/").split("/")]
        above = self.path.rstrip("/").split("/") if self.path else []
        while head and above and head[-1] == above[-1]:
            head.pop()
            above.pop()
        parts = (path if self.path else path.lstrip("/")).split("/")
        if parts[: len(above)] != above:
            return None
        chain[at] = _SLASH.join([*head, *parts[len(above) :]])
        return "::".join(chain)


def is_url(one: str) -> bool:
    """Say whether an input is a URL, and not the name of a file or folder."""
    return _SCHEME.match(one) is not None or one.lower().startswith(_SQLITE)


def shown(url: str) -> str:
    """Return a URL as messages and names of documents show it: without passwords and keys."""
    return redacted(url)


def shown_input(one: str) -> str:
    """Return an input as people may see it: a URL without passwords and keys."""
    return shown(one) if is_url(one) else one


def on_disk(one: str) -> str | None:
    """Return the path of an input on this machine; None for other URLs."""
    if one.lower().startswith(_SQLITE):
        return sqlite_url(one).path
    return None if is_url(one) else one


def with_base(one: str, base: Path) -> str:
    """Return an input whose relative path is relative to a folder."""
    path = on_disk(one)
    if path is None:
        return one
    if path == one:
        return _joined(base, one)
    head, mark, rest = one.partition("?")
    absolute_or_not = _joined(base, path)
    return f"{head[: len(_SQLITE)]}///{absolute_or_not}{mark}{rest}"


def _joined(base: Path, path: str) -> str:
    """Return a path below a folder: ``..`` at its beginning takes the folder away, unless it is a link.

    What is above a link is elsewhere. Documents are called by their paths: ``jobs/../letters/a.txt`` is
    ``letters/a.txt``.
    """
    head, _, rest = path.partition("/")
    while head == ".." and base.name not in ("", "..") and not base.is_symlink():
        base, path = base.parent, rest.lstrip("/")
        head, _, rest = path.partition("/")
    return str(base / path)


def sqlite_url(url: str) -> SqliteUrl:
    """Return what a URL such as ``sqlite:///file.db?table=T`` or ``?query=SELECT ...`` means.

    As in SQLAlchemy, a path after three slashes is relative, and one after four absolute. A query
    is the rest of the URL. It is taken as it is if it has spaces, and decoded if it has none.

    Raises:
        InputError: It is not such a URL.
    """
    place, mark, rest = url.partition("?")
    path = place[len(_SQLITE) :]
    if not path.startswith("///") or not path[3:]:
        raise InputError(
            "is not a SQLite URL: write sqlite:///FILE.db?table=TABLE or "
            "sqlite:///FILE.db?query=SELECT ...",
            source=url,
        )
    path = path[3:]
    if not mark:
        return SqliteUrl(path)
    name, _, value = rest.partition("=")
    if name not in _PARAMETERS or not value.strip():
        raise InputError(
            f"has the parameter {name!r}: a SQLite URL takes table=TABLE or query=SELECT ...",
            source=url,
        )
    plain = value if any(map(str.isspace, value)) else unquote_plus(value)
    return SqliteUrl(path, table=plain) if name == "table" else SqliteUrl(path, query=plain)


def is_relative(one: str) -> bool:
    """Say whether an input depends on the folder of the inputs."""
    path = on_disk(one)
    return path is not None and not PurePath(path).is_absolute()
