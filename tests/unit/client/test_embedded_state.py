"""The state folder of embedded runs: whose it is, which version wrote it; and its locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fanout.client.embedded.state import FORMAT, StateFolder, format_problem
from fanout.core.errors import EmbeddedError
from fanout.core.settings import Settings, load_settings
from fanout.system.file_locks import FileLock, is_held

OWN = {"format": 1, "wire": 1}


def opened(path, wire=1):
    return StateFolder.open(Settings(state_dir=path), wire=wire)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({**OWN, "fanout": "0.1"}, None),
        (OWN, None),
        (
            {**OWN, "format": 2, "fanout": "9.9"},
            ["fanout 9.9 has", "format 2, wire 1", "reads for"],
        ),
        ({**OWN, "wire": 7, "fanout": "9.9"}, ["fanout 9.9 has", "format 1, wire 7"]),
        ({"format": 1}, ["another program has", "wire None"]),
        ([], ["another program has", "format unknown"]),
        ("x", ["another program has"]),
        (None, ["another program has"]),
    ],
)
def test_a_folder_of_another_version_is_reported(said, words):
    problem = format_problem("/state", None if said is None else json.dumps(said), OWN)
    if words is None:
        assert problem is None
        return
    assert all(
        word in problem for word in [*words, "nothing there was changed", "FANOUT_STATE_DIR"]
    )


def test_a_folder_is_made_for_its_user_alone(tmp_path):
    folder = opened(tmp_path / "deep" / "state")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    marker = json.loads((folder.path / "format.json").read_text())
    assert (marker["format"], marker["wire"]) == (FORMAT, 1)
    assert opened(folder.path).path == folder.path
    with pytest.raises(EmbeddedError, match="wire 1; this version reads format 1, wire 2"):
        opened(folder.path, wire=2)


def test_an_upgrade_that_is_cut_short_loses_nothing(tmp_path):
    """The marker is there as a whole or not at all, and before anything else is."""
    folder = opened(tmp_path / "state")
    (folder.path / "format.json.unfinished").write_text("{")
    (folder.path / "data").mkdir()
    assert opened(folder.path).data.is_dir()
    (folder.path / "format.json").unlink()
    with pytest.raises(EmbeddedError, match="another program has written"):
        opened(folder.path)
    assert (folder.path / "data").is_dir()


def test_a_folder_that_others_may_enter_is_refused_unless_it_is_empty(tmp_path):
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    opened(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o750)
    with pytest.raises(EmbeddedError, match=r"others may enter it .mode 750.; `chmod 700"):
        opened(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path):
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    os.chown(path, 12_345, -1)
    with pytest.raises(EmbeddedError, match="it belongs to user 12345, and not to you"):
        opened(path)


def test_a_link_in_place_of_the_folder_of_a_socket_is_refused(tmp_path):
    deep = tmp_path / ("d" * 120)
    socket = StateFolder(deep).socket
    assert len(str(socket)) < 100
    (tmp_path / "other").mkdir(mode=0o700)
    socket.parent.symlink_to(tmp_path / "other")
    try:
        with pytest.raises(EmbeddedError, match="is a link"):
            opened(deep)
    finally:
        socket.parent.unlink()


@pytest.mark.parametrize(
    ("home", "expected"),
    [("/x/state", "/x/state/fanout"), ("relative", ".local/state/fanout"), ("", ".local/state/f")],
)
def test_the_folder_is_where_programs_keep_their_state(monkeypatch, home, expected):
    monkeypatch.delenv("FANOUT_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", home)
    assert expected in str(load_settings().state_dir)


def test_a_lock_vanishes_with_the_process_that_holds_it(tmp_path):
    path = tmp_path / "lock"
    code = """
import pathlib, sys
from fanout.system.file_locks import FileLock
lock = FileLock(pathlib.Path(sys.argv[1]), is_shared=True)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        assert is_held(path)
        FileLock(path, is_shared=True, waits=False).release()
        with pytest.raises(BlockingIOError):
            FileLock(path, waits=False)
        process.kill()
    assert not is_held(path)


@pytest.mark.parametrize(
    ("url", "is_good"),
    [
        ("unix:///run/redis.sock", True),
        ("unix:///run/my%20redis.sock?db=3", True),
        ("unix://run/redis.sock", False),
        ("unix:///run/redis.sock?db=x", False),
        ("unix:///", False),
    ],
)
def test_a_broker_may_be_a_socket(url, is_good):
    from fanout.core.errors import SettingsError

    if is_good:
        assert load_settings(broker_url=url).broker_url == url
        return
    with pytest.raises(SettingsError, match="unix:///PATH/OF/SOCKET"):
        load_settings(broker_url=url)
