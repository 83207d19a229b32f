"""What a caller of the library can do with a result."""

from __future__ import annotations

import json
import stat

import pytest

from fanout.core.errors import InputError
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.runs.results import Output, Result


def branch(index, kind=None):
    return Output(
        index=index, document=f"d{index}", document_index=index, chunk=index, position=0, start=0,
        end=5, aspect=None, sample=0, output=None if kind else "x" * 300, kind=kind,
        message="too slow" if kind else None, attempts=1, usage=Usage(calls=1), elapsed_s=0.5,
        columns={"who": "Ann"},
    )  # fmt: skip


def result(count=200, aggregated="all " * 100):
    return Result(
        run_id="abc", status=RunStatus.SUCCEEDED, aggregated=aggregated, notes=["a note"],
        branches=[branch(i, ErrorKind.TIMEOUT if i == 1 else None) for i in range(count)],
        reduce_errors=[], usage=Usage(calls=count), error=None, elapsed_s=2.0,
    )  # fmt: skip


def test_a_result_is_shown_in_one_short_line():
    shown = repr(result())
    assert len(shown) < 400
    assert "\n" not in shown
    for part in ("run_id='abc'", "status='succeeded'", "branches=200", "failed=1"):
        assert part in shown
    assert len(result().outputs) == 200


def test_a_result_as_a_dictionary_says_all_of_it():
    made = json.loads(json.dumps(result(3).to_dict()))
    assert (made["run_id"], made["total"], made["failed"]) == ("abc", 3, 1)
    assert (made["errors"], made["notes"]) == ({"timeout": 1}, ["a note"])
    assert made["usage"] == {**Usage(calls=3).to_dict()}
    good, bad, _ = made["branches"]
    assert (good["output"], good["kind"], good["columns"]) == ("x" * 300, None, {"who": "Ann"})
    assert (bad["output"], bad["kind"], bad["message"]) == (None, "timeout", "too slow")
    assert good.keys() == bad.keys()


def test_a_result_is_saved_to_a_folder_as_the_command_line_does(tmp_path):
    result(3, {"a": 1}).save(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["aggregated.json", "errors.jsonl", "outputs.jsonl", "run.json"]
    assert len((tmp_path / "out" / "outputs.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["succeeded"] == 2
    with pytest.raises(InputError, match=r"out has results already .*or replace=True to replace"):
        result(3).save(tmp_path / "out")
    result(3).save(tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "aggregated.txt").read_text().startswith("all ")


@pytest.mark.parametrize("name", ["r.json", "new/r.jsonl"])
def test_a_result_is_saved_to_a_file(tmp_path, name):
    path = tmp_path / name
    result(3).save(str(path))
    text = path.read_text()
    rows = (
        json.loads(text)["branches"]
        if name == "r.json"
        else list(map(json.loads, text.splitlines()))
    )
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="is there already: give replace=True"):
        result(1).save(path)
    result(1).save(path, replace=True)
    assert len(path.read_text()) < len(text)


def test_a_folder_that_cannot_be_written_to_is_said_in_the_words_of_the_library(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        result(1).save(tmp_path / "file")
    assert "cannot write to" in str(caught.value)
    assert "--" not in str(caught.value)
