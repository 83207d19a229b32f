"""One suite over every place where blobs can be kept, and what only files can suffer."""

from __future__ import annotations

import importlib
import secrets
import sys

import pytest

from fanout.errors import LostDataError, SettingsError, StorageError, StoredDataError
from fanout.stores import codec
from fanout.stores.blobs import FileBlobs, InlineBlobs, blob_name, check_storage, make_blobs

NAME = blob_name("r1", 0, 7, "in")


@pytest.fixture(params=["inline", "folder", "file://", "memory://"])
def blobs(request, tmp_path):
    if request.param == "inline":
        return make_blobs(None)
    places = {"folder": tmp_path, "file://": f"file://{tmp_path}"}
    # Of all who use it in this process, it is one.
    place = places.get(request.param, f"memory://{secrets.token_hex(4)}")
    return make_blobs(str(place))


@pytest.fixture
def folder(tmp_path):
    return FileBlobs(str(tmp_path), patience_s=0)


def files(tmp_path):
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())


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
    blobs.drop(NAME, held)
    blobs.drop(NAME, held)
    blobs.drop_all("r1")
    blobs.drop_all("r1")


def test_a_file_is_named_after_its_run_stage_and_shard(folder, tmp_path):
    held = folder.keep(NAME, b"text")
    [path] = files(tmp_path)
    assert path.startswith("r1/s0/7.in.")
    assert held.decode() == f"@{path[-8:]} {tmp_path}"


def test_a_run_is_deleted_with_all_its_files_and_without_those_of_others(folder, tmp_path):
    for run_id in ("r1", "r2"):
        folder.keep(blob_name(run_id, 0, 0, "in"), b"text")
        folder.keep(blob_name(run_id, 1, 0, "out"), b"text")
    folder.drop_all("r1/s1")
    assert [path[:5] for path in files(tmp_path)] == ["r1/s0", "r2/s0", "r2/s1"]
    folder.drop_all("r1")
    assert {path[:2] for path in files(tmp_path)} == {"r2"}


@pytest.mark.parametrize("run_id", ["..", "../other", "", ".", "a/b", "r1/s0/.."])
def test_nothing_but_a_run_is_deleted(folder, run_id):
    with pytest.raises(StorageError, match="no folder of a run"):
        folder.drop_all(run_id)


def test_a_folder_that_is_not_all_of_a_run_is_left_alone(folder, tmp_path):
    """Whoever can write to the server names what a worker deletes."""
    foreign = tmp_path / "backup" / "s0" / "letters.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    folder.keep("backup/result", b"x")
    folder.drop_all("backup")
    folder.drop_all("backup/s0")
    assert foreign.read_text() == "mine"


def test_a_lost_file_is_told_from_a_folder_that_is_not_mounted(tmp_path):
    root = tmp_path / "shared"
    root.mkdir()
    blobs = FileBlobs(str(root), patience_s=0)
    held = blobs.keep(NAME, b"text")
    blobs.drop_all("r1")
    with pytest.raises(LostDataError, match=f"{root}/{NAME}"):
        blobs.load(NAME, held)
    root.rmdir()
    with pytest.raises(StorageError, match="make it, or mount it") as caught:
        blobs.load(NAME, held)
    assert caught.value.is_passing


def test_whoever_keeps_nothing_outside_reads_the_files_of_others(folder):
    held = folder.keep(NAME, b"text")
    assert InlineBlobs().load(NAME, held) == b"text"


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
