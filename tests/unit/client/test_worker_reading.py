"""``read_on: workers``: which jobs may have it, and what becomes of them."""

from __future__ import annotations

import gzip
import json
import time
from types import SimpleNamespace

import fsspec
import pytest

from fanout.client import worker_reading
from fanout.client.arguments import checked_spec
from fanout.client.worker_reading import (
    _requests,
    read_by_workers,
    require_readable,
    spec_after_reading,
    wait_until_ended,
)
from fanout.core.errors import BrokerError, InputError, PromptError, SpecError
from fanout.core.spec import make_spec
from fanout.inputs.documents import log_notice, parsing
from fanout.inputs.intake import checked_documents


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.md").write_text("# A\n\nDear Ann")
    (tmp_path / "letters/b.txt").write_text("Dear Bob")
    (tmp_path / "rows.csv").write_text("text\nDear Eve\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Reading:
    run_id = "abcdefgh"


def job(**fields):
    return checked_spec(
        {"model": "fake", "prompt": "{input}", "read_on": "workers", **fields}, has_documents=False
    )


def readable(**fields):
    return require_readable(job(**fields), has_documents=False, notify=log_notice)


def test_workers_get_each_file_by_its_absolute_path_under_the_name_that_the_client_gives(here):
    spec = job(inputs=["letters", "letters/b.txt"], max_document_mb=3)
    files = require_readable(spec, has_documents=False, notify=log_notice)
    requests = list(_requests(spec, files))
    assert [one.name for one in requests] == ["letters/a.md", "letters/b.txt", "letters/b.txt"]
    first = json.loads(requests[0].text)
    assert first["source"] == str(here / "letters/a.md")
    assert first["fields"]["max_document_mb"] == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["0", "1", "2", "3"]),
        ({"limit": 1}, ["0"]),
        ({"sample": 2, "seed": 1}, None),
        ({"limit": 1, "sample": 2, "seed": 1}, None),
        ({"where": "index > 0"}, ["1", "2", "3"]),
        ({"where": "document = many/2.txt"}, ["2"]),
        ({"limit": 1, "where": "index > 0"}, ["1"]),
        # Which documents these are shows only when all is read.
        ({"limit": 1, "where": "input contains a"}, ["0", "1", "2", "3"]),
    ],
)
def test_no_more_is_read_than_the_job_takes(here, fields, expected):
    (here / "many").mkdir()
    for number in range(4):
        (here / f"many/{number}.txt").write_text(f"Dear {number}")
    spec, notices = job(inputs=["many"], **fields), []
    files = require_readable(spec, has_documents=False, notify=notices.append)
    read = [one.name[5:-4] for one in _requests(spec, files)]
    if expected is None:
        by_client = job(inputs=["many"], **{**fields, "read_on": "client"})
        expected = [one.name[5:-4] for one in checked_documents(by_client, None)]
        assert len(expected) == fields.get("limit", 2)
    assert read == expected
    # The run after it takes all that was read, and chooses only what could not be chosen before.
    has_chosen = files.chosen is not None
    after = spec_after_reading(spec, Reading(), began_at=0.0, has_chosen=has_chosen)
    left = {name: getattr(after, name) for name in ("limit", "sample", "where")}
    assert any(left.values()) == ("contains" in fields.get("where", ""))
    taken = [one.text for one in notices if one.text.startswith("taken")]
    assert len(taken) == (has_chosen and bool(fields))


def test_a_job_that_chooses_no_file_is_refused_before_anything_is_read():
    with pytest.raises(InputError, match="where: no document meets"):
        readable(inputs=["letters"], where="index > 7")


class Interrupted:
    """A client whose user interrupts it once its run exists."""

    def __init__(self):
        self.cancelled, self.specs = [], []

    def submit(self, spec, documents, *, on_notice, on_created, should_stop):
        self.specs.append(spec)
        on_created("abc")
        list(documents)
        raise KeyboardInterrupt

    def run(self, run_id):
        self.cancelled.append(run_id)
        return self

    def cancel(self):
        raise BrokerError("away")


def test_a_reading_run_that_is_interrupted_while_it_is_submitted_is_cancelled():
    spec, client = job(inputs=["letters"], max_workers=3, max_document_mb=64), Interrupted()
    files = require_readable(spec, has_documents=False, notify=log_notice)
    with pytest.raises(KeyboardInterrupt):
        read_by_workers(client, spec, files, notify=log_notice, should_stop=None)
    assert client.cancelled == ["abc"]
    [reading] = client.specs
    assert (reading.max_workers, reading.max_document_mb) == (3, 64)


def test_the_folder_of_relative_inputs_counts(here, monkeypatch):
    monkeypatch.chdir("/")
    spec = job(inputs=["letters/a.md"], base_dir=str(here))
    files = require_readable(spec, has_documents=False, notify=log_notice)
    assert [place for _, place in files.source.places()] == [str(here / "letters/a.md")]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"inputs": ["-"]}, SpecError, "standard input is read by the client"),
        ({"inputs": ["letters", "run:abc"]}, SpecError, "run:abc is read by the client"),
        ({"inputs": ["letters"], "prompt": "{inptu}"}, PromptError, "inptu"),
        ({"inputs": ["letters"], "prompt": "{stars}"}, PromptError, "stars"),
        ({"inputs": ["letters"], "text_column": "body"}, SpecError, "text_column: has no effect"),
        ({"inputs": ["letters"], "delimiter": ";"}, SpecError, "delimiter: has no effect"),
        ({"inputs": ["letters"], "reduce": "vote", "group_by": "who"}, SpecError, "who"),
        ({"inputs": ["nothing"]}, InputError, "no such file"),
    ],
)
def test_a_job_that_could_not_be_run_is_refused_before_anything_is_read(fields, error, words):
    with pytest.raises(error) as caught:
        readable(**fields)
    assert words in str(caught.value)


def test_rows_are_read_by_the_client():
    with pytest.raises(InputError, match=r"rows\.csv: has rows.*read by the client.*read_on"):
        readable(inputs=["letters", "rows.csv"])


def test_a_folder_with_a_file_of_rows_is_refused_before_anything_is_read(here):
    (here / "letters/more.jsonl").write_text('{"text": "Dear Eve"}\n')
    with pytest.raises(InputError, match=r"letters/more\.jsonl: has rows.*read by the client"):
        readable(inputs=["letters"])


def test_compressed_text_is_read_by_the_client(here):
    (here / "c.txt.gz").write_bytes(gzip.compress(b"Dear Cid"))
    with pytest.raises(InputError, match=r"c\.txt\.gz: is compressed.*read by the client"):
        readable(inputs=["c.txt.gz"])


def test_workers_get_a_file_in_a_store_by_its_url():
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/a.pdf", b"%PDF-1.7")
    assert list(readable(inputs=["memory://bucket"]).source.places()) == [
        ("memory://bucket/a.pdf", "memory://bucket/a.pdf")
    ]
    fs.rm("/bucket", recursive=True)


def test_chunks_are_read_by_the_client():
    spec = make_spec(model="fake", prompt="{input}", read_on="workers")
    with pytest.raises(SpecError, match="read_on: has no effect: chunks"):
        require_readable(spec, has_documents=True, notify=log_notice)


def test_strict_refuses_what_the_search_for_files_leaves_out(here):
    (here / "letters/c.bin").write_bytes(b"\0\1")
    assert readable(inputs=["letters"])
    with pytest.raises(InputError, match="strict: left out"):
        readable(inputs=["letters"], strict=True)


def test_a_client_that_only_lists_needs_no_parser(here, monkeypatch):
    (here / "letters/c.pdf").write_bytes(b"%PDF-1.7")
    monkeypatch.setattr(parsing, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"fanout-llm\[documents\]"):
        list(checked_documents(job(inputs=["letters"], read_on="client"), None))
    source = readable(inputs=["letters"]).source
    assert [name for name, _ in source.places()][-1] == "letters/c.pdf"


def test_the_job_then_reads_what_the_workers_have_read_within_its_deadline():
    spec = job(inputs=["letters"], base_dir="/", deadline_s=60)
    after = spec_after_reading(spec, Reading(), began_at=time.monotonic() - 20)
    assert (after.inputs, after.read_on) == (("run:abcdefgh",), "client")
    assert 30 < after.deadline_s <= 40
    assert not after.model_fields_set & {"read_on", "base_dir"}
    with pytest.raises(InputError, match=r"deadline passed.*abcdefgh"):
        spec_after_reading(spec, Reading(), began_at=time.monotonic() - 61)


class Attended:
    """A client, and its run of a reading whose workers are away at times."""

    run_id = "r1"

    def __init__(self, workers, total=2, *, is_embedded=False):
        self.workers, self.total, self.is_embedded = workers, total, is_embedded
        self.is_cancelled = self.has_waited = False

    def submit(self, _spec, documents, *, on_created, **_options):
        assert list(documents)
        on_created(self.run_id)
        return self

    def status(self, workers=1):
        return SimpleNamespace(total=self.total, done=0, workers=workers)

    def cancel(self):
        self.is_cancelled = True

    def wait(self, *, on_progress):
        for workers in self.workers:
            on_progress(self.status(workers))
        self.has_waited = True


def read_with(run, should_stop=None):
    notices = []
    spec = job(inputs=["letters"])
    files = require_readable(spec, has_documents=False, notify=log_notice)
    reads = read_by_workers(run, spec, files, notify=notices.append, should_stop=should_stop)
    assert reads is run
    return [one.text for one in notices]


@pytest.mark.parametrize(
    ("workers", "is_embedded", "count"),
    [([1, 1], False, 0), ([0, 0, 0], False, 1), ([0, 1, 1, 0, 0], False, 2), ([0, 0], True, 0)],
)
def test_who_waits_for_workers_to_read_is_told_that_there_is_none(workers, is_embedded, count):
    first, *rest = read_with(Attended(workers, is_embedded=is_embedded))
    assert first == "the workers read 2 documents (run r1)"
    assert rest == ["no worker is consuming: start one with `fanout worker`"] * count


def test_who_waits_for_workers_is_told_now_and_then_how_far_they_are(monkeypatch):
    told = worker_reading._TELL_S
    times = iter([0.0, told - 1, told, told + 1, 2 * told, 3 * told])
    monkeypatch.setattr(worker_reading, "time", SimpleNamespace(monotonic=lambda: next(times)))
    notices = []

    def wait(*, on_progress):
        for done in (1, 2, 3, 1_400, 1_500):
            on_progress(SimpleNamespace(total=1_500, done=done, workers=1))

    run = SimpleNamespace(wait=wait)
    wait_until_ended(run, None, notices.append, what="texts", says_idle=True)
    assert [one.text for one in notices] == [
        "2 of 1,500 texts are done",
        "1,400 of 1,500 texts are done",
    ]


def test_one_document_is_one():
    assert read_with(Attended([1], total=1)) == ["the workers read 1 document (run r1)"]


def test_a_reading_that_is_stopped_is_not_waited_for():
    run = Attended([0] * 9)
    stops = iter([False, True])
    read_with(run, lambda: next(stops))
    assert (run.is_cancelled, run.has_waited) == (True, False)
