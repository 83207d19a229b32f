"""Where the large parts of runs are kept: in the run store itself, or as files outside it."""

from fanout.stores.blobs.base import Blobs, blob_name
from fanout.stores.blobs.files import FileBlobs, check_storage, make_blobs
from fanout.stores.blobs.marker import MARKER, RUN_MARKER, storage_problem

__all__ = [
    "MARKER",
    "RUN_MARKER",
    "Blobs",
    "FileBlobs",
    "blob_name",
    "check_storage",
    "make_blobs",
    "storage_problem",
]
