"""The URLs of files that are found below a URL."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from fsspec.core import url_to_fs

from fanout.inputs.documents import FileSource
from fanout.inputs.documents.remote import named, remote_file
from fanout.inputs.documents.urls import StoreRoot, with_base


@pytest.mark.parametrize(
    ("place", "top", "path", "url"),
    [
        ("s3://b", "b", "b/a.pdf", "s3://b/a.pdf"),
        ("s3://b/c/", "b/c", "b/c/a.pdf", "s3://b/c/a.pdf"),
        ("s3://b/**/*.pdf", "b/**/*.pdf", "b/c/a.pdf", "s3://b/c/a.pdf"),
        ("webhdfs://u@host:50070/c", "/c", "/c/a.pdf", "webhdfs://u@host:50070/c/a.pdf"),
        ("webhdfs://u@host:50070/", "/", "/a.pdf", "webhdfs://u@host:50070/a.pdf"),
        ("webhdfs:///c", "/c", "/c/a.pdf", "webhdfs:///c/a.pdf"),
        ("ftp://host/c/*.pdf", "/c/*.pdf", "/c/a.pdf", "ftp://host/c/a.pdf"),
        ("sftp://u@host/c", "/c", "/c/d/a.pdf", "sftp://u@host/c/d/a.pdf"),
        ("smb://host/share/c", "/share/c", "/share/c/a.pdf", "smb://host/share/c/a.pdf"),
        ("github://o:r@main/", "", "c/a.pdf", "github://o:r@main/c/a.pdf"),
        ("github://o:r@main/c", "c", "c/a.pdf", "github://o:r@main/c/a.pdf"),
        ("abfs://c@host.net/d", "c/d", "c/d/a.pdf", "abfs://c@host.net/d/a.pdf"),
        ("abfs://c@host.net", "c", "c/a.pdf", "abfs://c@host.net/a.pdf"),
        ("memory://b", "/b", "/b/a.pdf", "memory://b/a.pdf"),
        ("memory://", "", "/b/a.pdf", "memory:///b/a.pdf"),
        ("zip://*.pdf::s3://b/z.zip", "*.pdf", "a.pdf", "zip://a.pdf::s3://b/z.zip"),
        ("simplecache::s3://b/c", "b/c", "b/c/a.pdf", "simplecache::s3://b/c/a.pdf"),
        ("http://host/a.pdf?sig=x", "http://host/a.pdf", "http://host/a.pdf", None),
        ("sftp://host/c", "/c", "other/a.pdf", None),
    ],
)
def test_a_file_has_the_host_of_the_place_where_it_was_found(place, top, path, url):
    root = StoreRoot(place, top)
    if url is None:
        assert root.url(path) in {place, None}
    else:
        assert root.url(path) == url
    assert root.url(top) == place


def test_the_name_and_the_url_of_a_file_of_a_store_have_its_host():
    # Without a connection.
    place = remote_file("webhdfs://u:secret@host:50070/in/")
    found = named(place, "/in/a.pdf")
    assert found.url == "webhdfs://u:secret@host:50070/in/a.pdf"
    assert found.name == "webhdfs://u:[key]@host:50070/in/a.pdf"
    assert found.below("b").url == "webhdfs://u:secret@host:50070/in/a.pdf/b"
    assert url_to_fs(found.url)[0].url == place.store.url


def test_the_places_of_files_are_those_that_were_given():
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pipe({"/in/a.txt": b"a", "/in/c/b.txt": b"b"})
    urls = ["memory://in/a.txt", "memory://in/c/b.txt"]
    for inputs in (["memory://in"], ["memory://in/"], ["memory://in/**/*.txt"], urls):
        found = FileSource(inputs, max_bytes=100)
        assert list(found.places()) == [(url, url) for url in urls]
        assert [one.text for one in found.documents()] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "folder", "joined"),
    [
        ("../letters/a.txt", "jobs", "letters/a.txt"),
        ("../letters/*.txt", "work/jobs", "work/letters/*.txt"),
        ("../../letters", "work/jobs", "letters"),
        ("../../../letters", "work/jobs", "../letters"),
        ("..", "work/jobs", "work"),
        ("../letters", ".", "../letters"),
        ("../letters", "../jobs", "../letters"),
        ("../letters", "..", "../../letters"),
        ("../letters", "/", "/../letters"),
        ("./a/../b", "jobs", "jobs/a/../b"),
        ("/abs/a.txt", "jobs", "/abs/a.txt"),
        ("sqlite:///../a.db?table=T", "jobs", "sqlite:///a.db?table=T"),
        ("https://host/../a.txt", "jobs", "https://host/../a.txt"),
        # What is above a link is above what it leads to.
        ("../letters", "link", "link/../letters"),
        ("../../letters", "link/jobs", "link/../letters"),
    ],
)
def test_a_path_of_a_job_file_has_no_more_folders_than_it_needs(
    tmp_path, monkeypatch, given, folder, joined
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    assert with_base(given, Path(folder)) == joined
