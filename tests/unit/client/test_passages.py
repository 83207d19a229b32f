"""The indexes of a run, as clients make them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from fanout.client.passages import Passages
from fanout.core.spec import make_spec
from fanout.retrieval.building import IndexBuilder
from tests.fakes import fake_store


def test_of_several_clients_of_a_machine_one_indexes(tmp_path, monkeypatch):
    (tmp_path / "kb.md").write_text("# Leave\n\n28 days.")
    spec = make_spec(
        model="fake", prompt="{input} {context}", retrieve="kb.md", base_dir=str(tmp_path)
    )
    store, have_read, built, told = fake_store(), Barrier(3), [], []
    read, finish = Passages._read, IndexBuilder.finish

    def read_together(*arguments):
        read(*arguments)
        have_read.wait(90)

    monkeypatch.setattr(Passages, "_read", read_together)
    monkeypatch.setattr(IndexBuilder, "finish", lambda self: built.append(1) or finish(self))
    passages = Passages(tmp_path / "cache", notify=told.append)
    with ThreadPoolExecutor(3) as threads:
        found = list(
            threads.map(lambda number: passages.stored(store, f"r{number}", spec), range(3))
        )
    assert found[0] == found[1] == found[2]
    assert (len(built), len(told)) == (1, 1)
    # A file that this machine has is sent to another server, and not made again.
    monkeypatch.setattr(Passages, "_read", read)
    assert passages.stored(fake_store(), "r9", spec).keys() == {"kb.md"}
    assert len(built) == 1
    assert not list((tmp_path / "cache").rglob("*.unfinished"))
