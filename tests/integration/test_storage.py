"""Runs whose inputs and outcomes are files: in a folder, and in S3."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3

import pandas as pd
import pyarrow as pa
import pytest
import redis
from pyarrow import parquet as pq

from fanout import Client, ErrorKind, InputError, RunStatus, SettingsError
from fanout.core.spec import make_spec
from fanout.inputs.documents import FileSource
from fanout.stores.blobs import MARKER, RUN_MARKER, check_storage

from .conftest import BUCKET, wait_for

QUICK = {"max_attempts": 1}


def blobs_of(client, run_id):
    """What the server holds of the large parts of a run, by key."""
    with redis.Redis.from_url(client.broker_url) as server:
        keys = [*server.scan_iter(f"fanout:run:{run_id}*:in")]
        keys += [*server.scan_iter(f"fanout:run:{run_id}*:out")]
        return {key.decode(): server.get(key) for key in keys}


def files(folder):
    """What runs have there, without the markers."""
    markers = {MARKER, RUN_MARKER}
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in markers]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    # The client of these tests has it, and so have the workers that they start.
    monkeypatch.setenv("FANOUT_STORAGE", str(folder))
    return folder


def submit(client, count, **fields):
    spec = make_spec(**{"model": "fake", "prompt": "{input}", "retries": QUICK, **fields})
    return client.submit(spec, (f"text number {i}" for i in range(count)))


def test_a_run_lives_in_a_folder_from_its_input_to_its_deletion(folder, client, start_worker):
    start_worker("--concurrency", "16")
    model = "fake?fail_rate=0.1&fail_kind=timeout"
    run = submit(client, 700, model=model, reduce="concat", samples=1)
    run.wait(120)
    result = run.result()
    assert result.status is RunStatus.SUCCEEDED
    assert [branch.index for branch in result.branches] == list(range(700))
    assert 0 < len(result.errors) < 200
    held = blobs_of(client, run.run_id)
    assert len(held) == len(files(folder)) == 4
    assert all(value.startswith(b"@") for value in held.values())

    # Other outcomes, in other files; what was replaced is gone.
    run.retry_failed()
    run.wait(120)
    assert len(files(folder)) == 4
    assert blobs_of(client, run.run_id).keys() == held.keys()
    assert len(run.result().branches) == 700

    with Client(client.broker_url) as other:
        assert len(other.run(run.run_id).result().outputs) == 700
    run.delete()
    assert files(folder) == []


def test_branches_whose_input_the_folder_has_lost_end_as_lost(folder, client, start_worker):
    run = submit(client, 20)
    for path in files(folder):
        path.unlink()
    start_worker("--concurrency", "8", FANOUT_VISIBILITY_TIMEOUT_S="5")
    status = run.wait(120)
    assert status.errors == {ErrorKind.LOST: 20}


def test_while_the_folder_is_away_the_run_waits_and_loses_nothing(folder, client, start_worker):
    run = submit(client, 40, model="fake?latency_s=0.2")
    away = folder.rename(folder.with_name("away"))
    folder.mkdir()
    worker = start_worker("--concurrency", "8")
    folder.rmdir()
    wait_for(lambda: problem_of(client, worker), "the worker says that it takes no messages")
    assert run.status().done == 0
    away.rename(folder)
    assert run.wait(120).succeeded == 40


def problem_of(client, worker):
    (record,) = [each for each in client.fleet().workers if each.name == worker.name]
    return record.problem or ""


def test_a_worker_that_sees_an_empty_folder_ruins_no_run(folder, client, start_worker, tmp_path):
    """It has nothing mounted, or something else; another worker, which is slow, has it all."""
    empty = tmp_path / "empty"
    empty.mkdir()
    mounted = start_worker("--concurrency", "2")
    run = submit(client, 60, model="fake?latency_s=0.1")
    # As on a machine on which the same path is another folder.
    held = folder.rename(tmp_path / "held")
    folder.symlink_to(empty)
    sick = start_worker("--concurrency", "32")
    wait_for(lambda: problem_of(client, sick), "it says why it takes no messages")
    assert "has no marker: it is not mounted here" in problem_of(client, sick)
    with Client(client.broker_url) as other, pytest.raises(SettingsError, match="not mounted"):
        submit(other, 1)
    assert [path.name for path in empty.iterdir()] == []
    folder.unlink()
    (empty / MARKER).write_text("0123456789abcdef\n")
    folder.symlink_to(empty)
    wait_for(lambda: "another storage" in problem_of(client, mounted), "all see another one")
    folder.unlink()
    held.rename(folder)
    status = run.wait(120)
    assert (status.succeeded, status.failed) == (60, 0)
    wait_for(lambda: not problem_of(client, sick), "it takes messages again")
    assert "takes no messages: FANOUT_STORAGE" in sick.log.read_text()


def test_neither_a_client_nor_a_worker_begins_without_the_folder(
    client, start_worker, tmp_path, monkeypatch
):
    nowhere = tmp_path / "nowhere"
    worker = start_worker(is_refused=True, FANOUT_STORAGE=str(nowhere))
    monkeypatch.setenv("FANOUT_STORAGE", str(nowhere))
    with Client(client.broker_url) as other, pytest.raises(SettingsError, match="make it, or mou"):
        submit(other, 1)
    assert worker.process.wait(120) == 2
    said = worker.log.read_text()
    assert f"FANOUT_STORAGE: {nowhere} cannot be written to" in said
    assert "Traceback" not in said
    assert list(client.runs()) == []


def test_files_of_embedded_runs_stay_as_long_as_the_runs(folder):
    with Client(concurrency=4) as client:
        run = submit(client, 5)
        run.wait(120)
    assert len(files(folder)) == 2
    with Client() as other:
        again = other.run(run.run_id)
        assert len(again.result().outputs) == 5
        again.delete()
    assert files(folder) == []


def test_a_run_lives_in_s3_from_its_input_to_its_deletion(
    s3, client, start_worker, tmp_path, monkeypatch
):
    monkeypatch.setenv("FANOUT_STORAGE", f"s3://{BUCKET}/some/prefix")
    worker = start_worker("--concurrency", "8")
    with Client(client.broker_url) as own:
        run = submit(own, 510, model="fake", reduce="concat")
        run.wait(120)
        names = s3.find(f"{BUCKET}/some/prefix/{run.run_id}")
        assert len(names) == 5
        assert names[0].endswith(RUN_MARKER)
    # A client without the setting reads the run all the same.
    monkeypatch.delenv("FANOUT_STORAGE")
    result = client.run(run.run_id).result()
    assert result.status is RunStatus.SUCCEEDED
    assert len(result.outputs) == 510
    assert {value[:1] for value in blobs_of(client, run.run_id).values()} == {b"@"}
    monkeypatch.setenv("FANOUT_STORAGE", f"s3://{BUCKET}/some/prefix")
    with Client(client.broker_url) as own:
        own.run(run.run_id).delete()
    assert s3.find(f"{BUCKET}/some/prefix") == [f"{BUCKET}/some/prefix/{MARKER}"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in worker.log.read_text()
    with pytest.raises(SettingsError, match="cannot be written to") as caught:
        check_storage(f"s3://{BUCKET}-other/x")
    assert "not-to-be-shown" not in str(caught.value)


def test_a_prefork_child_reads_and_writes_s3(s3, client, start_worker, monkeypatch):
    monkeypatch.setenv("FANOUT_STORAGE", f"s3://{BUCKET}")
    start_worker("--concurrency", "2", FANOUT_POOL="prefork")
    with Client(client.broker_url) as own:
        run = submit(own, 10)
        assert run.wait(120).succeeded == 10
        assert len(run.result().outputs) == 10


def test_inputs_of_every_format_are_read_from_s3_without_credentials_in_sight(
    s3, client, start_worker, tmp_path
):
    rows = [{"id": i, "text": f"review {i}", "stars": i / 2} for i in range(30)]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv.gz", index=False)
    frame.to_json(tmp_path / "c.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_feather(tmp_path / "e.feather")
    frame.to_excel(tmp_path / "f.xlsx", index=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "g.sqlite")) as database:
        frame.to_sql("t", database, index=False)
    # Its import takes a second of CPU, and each process imports what it collects.
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(tmp_path / "h"))
    s3.put(f"{tmp_path}/", f"{BUCKET}/in/", recursive=True)
    url = f"s3://{BUCKET}/in"
    documents = list(FileSource([url], max_bytes=1_000_000).documents())
    assert [one.error for one in documents] == [None] * 240
    assert [one.text for one in documents] == [row["text"] for row in rows] * 8
    assert [str(one.columns["id"]) for one in documents] == [str(i) for i in range(30)] * 8
    assert documents[0].name == f"{url}/a.csv:2"
    assert documents[-1].name == f"{url}/h:30"
    # Without a copy: of a large file, it reads as far as it is asked.
    texts = [os.urandom(20_000).hex() for _ in range(1_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "large.parquet", row_group_size=50)
    s3.put(str(tmp_path / "large.parquet"), f"{BUCKET}/large.parquet")
    source = FileSource([f"s3://{BUCKET}/*.parquet"], max_bytes=1_000_000)
    assert [one.text for one in source.documents()] == texts
    # A signed URL of the same server, as of any on the web that gives parts of files.
    source = FileSource([s3.url(f"{BUCKET}/large.parquet")], max_bytes=1_000_000)
    first, *others = source.documents()
    assert [first.text, *(one.text for one in others)] == texts
    assert re.search(r"Signature=\[key\]", first.name)
    # A run resumes from there: it reads the same input again.
    start_worker("--concurrency", "8")
    run = client.submit(
        make_spec(model="fake", prompt="{stars}: {input}", inputs=[f"{url}/*.parquet"])
    )
    run.wait(120)
    result = run.result()
    assert result.status is RunStatus.SUCCEEDED
    assert [branch.document for branch in result.branches] == [
        f"{url}/d.parquet:{row}" for row in range(1, 31)
    ]
    for wrong in (f"s3://{BUCKET}-of-nobody/x.csv", f"{url}/nothing/*.csv"):
        with pytest.raises(InputError) as caught:
            FileSource([wrong], max_bytes=1_000_000)
        assert "\n" not in str(caught.value)
        assert "not-to-be-shown" not in str(caught.value)
