"""Providers' keys from files, which protect a secret better than the environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fanout.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["key_files"]

_SUFFIX = "_API_KEY_FILE"


def key_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the keys from files: ``OPENAI_API_KEY`` if ``OPENAI_API_KEY_FILE`` is set.

    This works for every provider, as litellm uses names of the same form. An empty file is no key,
    so that a deployment can name files for all providers and fill only those that it uses.

    Raises:
        SettingsError: A file cannot be read, or the environment also holds the key.
    """
    files = {name: path for name, path in environ.items() if name.endswith(_SUFFIX) and path}
    keys = {}
    for name, path in sorted(files.items()):
        variable = name.removesuffix("_FILE")
        try:
            key = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SettingsError(f"{name}: cannot be read: {reason} (got {path!r})") from error
        if environ.get(variable) not in {None, "", key}:
            raise SettingsError(f"{name}: {variable} is set, too; set one of them")
        if key:
            keys[variable] = key
    return keys
