"""One suite over every place where blobs can be kept, and what only files can suffer."""

from __future__ import annotations

import importlib
import secrets
import shutil
import sys

import pytest

from fanout.core.errors import LostDataError, SettingsError, StorageError, StoredDataError
from fanout.core.ids import ShardId
from fanout.stores import codec
from fanout.stores.blobs import (
    MARKER,
    RUN_MARKER,
    Blobs,
    FileBlobs,
    blob_name,
    check_storage,
    make_blobs,
)
from fanout.stores.blobs.base import run_marker

NAME = blob_name(ShardId("r1", 0, 7), "in")


@pytest.fixture(params=["inline", "folder", "file://", "memory://"])
def blobs(request, tmp_path):
    if request.param == "inline":
        return make_blobs(None)
    places = {"folder": tmp_path, "file://": f"file://{tmp_path}"}
    # Of all who use it in this process, it is one.
    place = places.get(request.param, f"memory://{secrets.token_hex(4)}")
    return make_blobs(str(place))


STORAGE = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path):
    return FileBlobs(str(tmp_path), patience_s=0)


@pytest.fixture(params=["folder", "memory://"])
def marked(request, tmp_path):
    """A storage that is known by its id."""
    at = tmp_path if request.param == "folder" else f"memory://{secrets.token_hex(4)}"
    blobs = FileBlobs(str(at), patience_s=0)
    blobs.mark(STORAGE)
    return blobs


def files(tmp_path):
    found = (p for p in tmp_path.rglob("*") if p.is_file() and p.name not in {MARKER, RUN_MARKER})
    return sorted(str(p.relative_to(tmp_path)) for p in found)


def everything(blobs):
    fs, base = blobs._opened
    return sorted(path.removeprefix(f"{base}/") for path in fs.find(base))


def test_what_was_kept_is_loaded(blobs):
    held = blobs.keep(NAME, b"text")
    assert blobs.load(NAME, held) == b"text"


def test_who_writes_second_does_not_replace_what_the_first_has_written(blobs):
    first, second = blobs.keep(NAME, b"first"), blobs.keep(NAME, b"second")
    assert first != second
    blobs.drop(NAME, second)
    assert blobs.load(NAME, first) == b"first"


def test_dropping_what_is_gone_is_harmless(blobs):
    held = blobs.keep(NAME, b"text")
    for _ in range(2):
        blobs.drop(NAME, held)
        blobs.drop_all("r1")
    again = blobs.keep(NAME, b"text")
    assert blobs.load(NAME, again) == b"text"


def test_a_file_is_named_after_its_run_stage_and_shard(folder, tmp_path):
    held = folder.keep(NAME, b"text")
    [path] = files(tmp_path)
    assert path.startswith("r1/s0/7.in.")
    assert held.decode() == f"@{path[-8:]} {tmp_path}"


def test_a_run_is_deleted_with_all_its_files_and_without_those_of_others(marked):
    for run_id in ("r1", "r2"):
        marked.claim(run_id)
        marked.keep(blob_name(ShardId(run_id, 0, 0), "in"), b"text")
        marked.keep(blob_name(ShardId(run_id, 1, 0), "out"), b"text")
    assert marked.drop_all("r1/s1")
    kept = [path[:5] for path in everything(marked)]
    assert kept == [MARKER[:5], "r1/.f", "r1/s0", "r2/.f", "r2/s0", "r2/s1"]
    assert marked.drop_all("r1")
    assert marked.drop_all("r1"), "nothing is left"
    assert {path[:2] for path in everything(marked)} == {MARKER[:2], "r2"}
    # A late writer marks it again.
    if marked._is_folder:
        marked.claim("r1")
        assert f"r1/{RUN_MARKER}" in everything(marked)


@pytest.mark.parametrize(
    "marker",
    [
        None,
        b"",
        b"junk",
        run_marker("r2", STORAGE),
        run_marker("r1", "fedcba9876543210"),
        run_marker("r1", STORAGE) + b"x",
    ],
)
@pytest.mark.parametrize("folder", ["r1", "r1/s0"])
def test_nothing_is_deleted_without_the_runs_own_marker(marked, marker, folder, caplog):
    marked.keep(NAME, b"text")
    fs, base = marked._opened
    if marker is not None:
        fs.pipe_file(f"{base}/r1/{RUN_MARKER}", marker)
    before = everything(marked)
    assert not marked.drop_all(folder)
    assert everything(marked) == before
    [said] = caplog.messages
    words = "has no" if marker is None else "names another run or storage"
    assert f"/{folder} is left where it is" in said
    assert words in said


def test_nothing_is_deleted_or_claimed_in_a_storage_that_has_no_id(folder, tmp_path):
    with pytest.raises(StorageError, match="it has no id"):
        folder.claim("r1")
    folder.keep(NAME, b"text")
    (tmp_path / "r1" / RUN_MARKER).write_bytes(run_marker("r1", STORAGE))
    assert not folder.drop_all("r1")
    assert len(files(tmp_path)) == 1


def test_a_deletion_that_died_half_way_is_done_again(marked, monkeypatch):
    marked.claim("r1")
    for number in range(3):
        marked.keep(blob_name(ShardId("r1", 0, number), "in"), b"text")
    fs, _ = marked._opened
    remove = type(fs).rm

    def die(self, path, **more):
        remove(self, path[0])
        raise RuntimeError("died")

    monkeypatch.setattr(type(fs), "rm", die)
    with pytest.raises(StorageError, match="died"):
        marked.drop_all("r1")
    monkeypatch.undo()
    assert len(everything(marked)) == 4
    assert marked.drop_all("r1")
    assert everything(marked) == [MARKER]


def test_the_marker_is_written_once_for_a_run(marked, monkeypatch):
    written = []
    write = marked._write
    monkeypatch.setattr(
        marked, "_write", lambda path, blob: written.append(path) or write(path, blob)
    )
    for run_id in ("r1", "r2", "r1", "r1", "r2"):
        marked.claim(run_id)
    assert written == [f"r1/{RUN_MARKER}", f"r2/{RUN_MARKER}"]


@pytest.mark.parametrize("run_id", ["..", "../other", "", ".", "a/b", "r1/s0/.."])
def test_nothing_but_a_run_is_deleted(folder, run_id):
    with pytest.raises(StorageError, match="no folder of a run"):
        folder.drop_all(run_id)


def test_a_folder_that_is_not_all_of_a_run_is_left_alone(folder, tmp_path):
    """Any writer to the server can name what a worker deletes."""
    foreign = tmp_path / "backup" / "s0" / "letters.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    folder.mark(STORAGE)
    folder.claim("backup")
    folder.keep("backup/result", b"x")
    assert not folder.drop_all("backup")
    assert not folder.drop_all("backup/s0")
    assert foreign.read_text() == "mine"


def test_a_lost_file_is_told_from_a_folder_that_is_not_mounted(tmp_path):
    root = tmp_path / "shared"
    root.mkdir()
    blobs = FileBlobs(str(root), patience_s=0)
    held = blobs.keep(NAME, b"text")
    blobs.drop(NAME, held)
    with pytest.raises(LostDataError, match=f"{root}/{NAME}"):
        blobs.load(NAME, held)
    shutil.rmtree(root)
    with pytest.raises(StorageError, match="make it, or mount it") as caught:
        blobs.load(NAME, held)
    assert caught.value.is_passing


def test_a_process_without_storage_reads_the_files_of_others(folder):
    held = folder.keep(NAME, b"text")
    assert Blobs().load(NAME, held) == b"text"


def test_after_a_move_both_the_old_and_the_new_place_are_read(folder, tmp_path):
    inline, before = b"x inline", folder.keep(NAME, b"before")
    moved = tmp_path / "moved"
    moved.mkdir()
    blobs = FileBlobs(str(moved))
    assert blobs.load(NAME, inline) == inline
    assert blobs.load(NAME, before) == b"before"
    # Nor are those of others deleted.
    blobs.drop(NAME, before)
    assert folder.load(NAME, before) == b"before"


@pytest.mark.parametrize("root", ["http://internal:80/x", "simplecache::s3://bucket/x"])
@pytest.mark.parametrize("place", [None, "/tmp"])
def test_what_the_server_says_makes_nobody_fetch_any_url(root, place):
    with pytest.raises(StorageError, match="set FANOUT_STORAGE to that"):
        make_blobs(place).load(NAME, f"@0123abcd {root}".encode())


@pytest.mark.parametrize("held", [b"@", b"@xyz /etc/passwd", b"@0123abcd ", b"@0123abcd /a /b"])
def test_a_damaged_reference_is_damaged_data(folder, held):
    with pytest.raises(StoredDataError):
        codec.decode_shard(folder.load(NAME, held))


def test_a_storage_that_is_away_for_a_moment_is_waited_for(folder, tmp_path, monkeypatch):
    held = folder.keep(NAME, b"text")
    fs, _ = folder._opened
    failures = [OSError(5, "away"), RuntimeError("a client's own error")]
    read = type(fs).cat_file

    def cat_file(self, path):
        if failures:
            raise failures.pop()
        return read(self, path)

    monkeypatch.setattr(type(fs), "cat_file", cat_file)
    with pytest.raises(StorageError, match="a client's own error") as caught:
        folder.load(NAME, held)
    assert caught.value.is_passing
    assert FileBlobs(str(tmp_path), patience_s=5).load(NAME, held) == b"text"
    assert not failures


def test_the_words_of_a_client_are_redacted(folder, monkeypatch):
    fs, _ = folder._opened

    def refuse(_self, _path):
        raise RuntimeError("key AKIAIOSFODNN7EXAMPLE is unknown")

    held = folder.keep(NAME, b"text")
    monkeypatch.setattr(type(fs), "cat_file", refuse)
    with pytest.raises(StorageError) as caught:
        folder.load(NAME, held)
    assert "AKIA" not in str(caught.value)
    assert "is unknown" in str(caught.value)


def test_a_storage_that_can_be_used_is_left_as_it_was(tmp_path):
    check_storage(None)
    check_storage(str(tmp_path))
    assert files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_written_to_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for name, words in {"none": "not there: make it", "file": "not there"}.items():
        with pytest.raises(SettingsError) as caught:
            check_storage(str(tmp_path / name))
        message = str(caught.value)
        assert message.startswith(f"FANOUT_STORAGE: {tmp_path / name} cannot be written to")
        assert words in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("storage", "module", "words"),
    [
        ("s3://bucket/x", "s3fs", r"pip install 'fanout-llm\[s3\]'"),
        ("gs://bucket/x", "gcsfs", "gs:// needs a package"),
        ("nonsense://x", None, "nonsense:// is nothing that can be written to"),
    ],
)
def test_a_package_that_is_missing_is_named(storage, module, words, monkeypatch):
    if module is not None:
        # The package's attribute of this name is another thing.
        registry = importlib.import_module("fsspec.registry")
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(registry, "registry", {})
    with pytest.raises(SettingsError, match=words):
        check_storage(storage)
