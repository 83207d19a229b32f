"""Reading documents: from memory, files, folders, globs, rows and standard input; all lazily."""

from fanout.documents.memory import from_strings
from fanout.documents.paths import from_paths

__all__ = ["from_paths", "from_strings"]
