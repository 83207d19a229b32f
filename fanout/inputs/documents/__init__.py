"""Lazy readers of documents: from memory, files, folders, globs, rows and standard input."""

from fanout.inputs.documents.files import STDIN
from fanout.inputs.documents.memory import AsyncChunks, Chunks, Items, from_strings
from fanout.inputs.documents.notices import Notice, Notify, counted, log_notice
from fanout.inputs.documents.paths import FileSource

__all__ = [
    "STDIN",
    "AsyncChunks",
    "Chunks",
    "FileSource",
    "Items",
    "Notice",
    "Notify",
    "counted",
    "from_strings",
    "log_notice",
]
