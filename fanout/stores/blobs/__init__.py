"""Where the large parts of runs are kept: in the run store itself, or as files outside it."""

from fanout.stores.blobs.base import MARKER, RUN_MARKER, Blobs, blob_name
from fanout.stores.blobs.files import FileBlobs, check_storage, make_blobs

__all__ = [
    "MARKER",
    "RUN_MARKER",
    "Blobs",
    "FileBlobs",
    "blob_name",
    "check_storage",
    "make_blobs",
]
