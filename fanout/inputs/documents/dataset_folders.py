"""Folders that Hugging Face datasets saved: one dataset, or several as splits."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DATASET", "SPLITS", "is_dataset", "read_splits", "splits_error"]

# The files of a folder with a dataset, and of one with several such folders.
DATASET = ("state.json", "dataset_info.json")
SPLITS = "dataset_dict.json"


def is_dataset(path: str | Path) -> bool:
    """Say whether a folder is a dataset."""
    return all(os.path.isfile(f"{path}/{name}") for name in DATASET)  # noqa: PTH113 - as cheap


def read_splits(path: Path) -> bytes:
    """Return the file that names the splits; empty if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def splits_error(data: bytes) -> str:
    """Return the error of a folder with several datasets, one for each split."""
    try:
        names = [str(name) for name in json.loads(data)["splits"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = []
    return (
        f"has the splits {', '.join(names) or 'of a DatasetDict'}: name one or more, as "
        f"FOLDER/{names[0] if names else 'SPLIT'}"
    )
