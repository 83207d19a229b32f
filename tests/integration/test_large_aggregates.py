"""Aggregates in pieces, as workers write them and the command line reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from fanout import RunStatus
from fanout.core.spec import make_spec
from fanout.report import render

from .conftest import wait_for

IN_PIECES = {
    "fanout.runs.result_writer:PIECE_BYTES": 300,
    "fanout.runs.result_writer:_SMALL_BYTES": -1,
}
DIES_AT_THE_THIRD_PIECE = """
import os, signal
from fanout.stores import RedisStore
put = RedisStore.put_result_piece
def dying(store, *args, **kwargs):
    if kwargs["number"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(store, *args, **kwargs)
RedisStore.put_result_piece = dying
"""
TEXTS = [f"text {at} \u2603\n" for at in range(60)]


def printed(url, run_id, *options):
    command = [
        str(Path(sys.executable).with_name("fanout")),
        "results",
        run_id,
        "--quiet",
        *options,
    ]
    env = {**os.environ, "FANOUT_BROKER_URL": url}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("storage", [None, "files"])
def test_a_worker_killed_among_its_pieces_leaves_nothing_of_them(
    client, start_worker, tmp_path, monkeypatch, storage
):
    if storage is not None:
        (tmp_path / storage).mkdir()
        monkeypatch.setenv("FANOUT_STORAGE", str(tmp_path / storage))
    quick = {
        "FANOUT_VISIBILITY_TIMEOUT_S": "5",
        "FANOUT_STALL_S": "2",
        "FANOUT_REAPER_INTERVAL_S": "1",
    }
    dying = start_worker(patches={**IN_PIECES, "exec": DIES_AT_THE_THIRD_PIECE}, **quick)
    run = client.submit(make_spec(model="fake", prompt="{input}", reduce="concat"), TEXTS)
    dying.process.wait(120)
    with redis.Redis.from_url(client.broker_url) as server:
        [(dead, count)] = server.hgetall(f"fanout:run:{run.run_id}:result:writers").items()
        assert int(count) == 2
        assert run.aggregate()[0] is None, "nothing is seen of half an aggregate"
        start_worker(patches=IN_PIECES, **quick)
        assert run.wait(120).status is RunStatus.SUCCEEDED
        names = [name.decode() for name in server.scan_iter(f"fanout:run:{run.run_id}:result:*")]
        names += [path.name for path in (tmp_path / (storage or "none")).rglob("result*")]
        assert not any(dead.decode() in name for name in names)
        assert len(names) > 5
        outputs = [(one.document, one.output) for one in run.outcomes()]
        text = "\n\n".join(f"## {document}\n\n{output}" for document, output in outputs)
        assert run.aggregate()[0] == text
        assert printed(client.broker_url, run.run_id) == f"{text}\n"
        assert json.loads(printed(client.broker_url, run.run_id, "--json"))["aggregated"] == text
        folder = tmp_path / "out"
        printed(client.broker_url, run.run_id, "--out", str(folder))
        assert (folder / "aggregated.txt").read_text() == f"{text}\n"
        assert outputs[0][1] in render(run)
        run.delete()
        wait_for(
            lambda: not list(server.scan_iter(f"fanout:run:{run.run_id}*")),
            "no key of the run is left",
        )


@pytest.mark.parametrize(
    "fields", [{"reduce": "rank"}, {"reduce": "vote"}, {"reduce": "rank", "k": 5}]
)
def test_rows_and_counts_in_pieces_are_printed_as_others(client, start_worker, tmp_path, fields):
    start_worker(patches=IN_PIECES)
    texts = [f"{at % 7}" for at in range(60)]
    spec = make_spec(model="fake?answer=5", prompt="{input}", group_by="document", **fields)
    run = client.submit(spec, texts)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    value, _ = run.aggregate()
    assert all(one.held is not None for one in run.stored_result().aggregates.values())
    shown = printed(client.broker_url, run.run_id, "--json")
    assert json.loads(shown)["aggregated"] == value
    assert json.dumps(value, ensure_ascii=False) in shown
    ranks = [one.rank for one in run.outcomes()]
    assert ranks == ([1] * 60 if fields["reduce"] == "rank" else [None] * 60)
