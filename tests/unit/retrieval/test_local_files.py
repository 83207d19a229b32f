"""The folder of indexes that processes share."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import pytest

from fanout.core.errors import LostDataError, StorageError
from fanout.retrieval.local_files import LocalIndexes, pieces_of

NAMES = [f"{n:032x}" for n in range(9)]
DATA = b"index" * 100


def digest(data):
    return blake2b(data, digest_size=16).hexdigest()


def test_an_index_is_fetched_once_for_all_that_wait_for_it(tmp_path):
    asked = []

    def pieces():
        asked.append(1)
        yield DATA[:200]
        yield DATA[200:]

    def fetch(_):
        return LocalIndexes(tmp_path).fetched(NAMES[0], pieces(), digest(DATA))

    with ThreadPoolExecutor(8) as threads:
        paths = {*threads.map(fetch, range(8))}
    [path] = paths
    assert path.read_bytes() == DATA == b"".join(pieces_of(path))
    assert len(asked) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_pieces_of_another_index_are_refused_and_leave_no_file(tmp_path):
    local = LocalIndexes(tmp_path)
    with pytest.raises(LostDataError, match="not complete"):
        local.fetched(NAMES[0], [DATA[:9]], digest(DATA))
    assert local.found(NAMES[0]) is None
    assert [one.suffix for one in local.folder.iterdir()] == [".lock"]
    for name in ("../../etc/passwd", "", "A" * 32):
        with pytest.raises(LostDataError):
            local.path(name)


def test_the_folder_keeps_to_its_size_and_what_was_used_last(tmp_path):
    local = LocalIndexes(tmp_path, most_bytes=3 * len(DATA))
    for at, name in enumerate(NAMES[:3]):
        path = local.fetched(name, [DATA], digest(DATA))
        os.utime(path, (at + 1, at + 1))
    old = local.folder / "x.unfinished"
    old.write_bytes(b"")
    os.utime(old, (1, 1))
    assert local.found(NAMES[0])
    local.fetched(NAMES[3], [DATA], digest(DATA))
    kept = {name for name in NAMES if local.path(name).exists()}
    assert kept == {NAMES[0], NAMES[2], NAMES[3]}
    assert not old.exists()
    # One that is larger than all there may be is kept while it is the newest.
    big = LocalIndexes(tmp_path, most_bytes=1).fetched(NAMES[5], [DATA], digest(DATA))
    assert big.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="FANOUT_CACHE_DIR"):
        LocalIndexes(tmp_path / "file")
