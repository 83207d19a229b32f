"""Runs on real workers: what the caller gets if branches succeed, fail or stop."""

from __future__ import annotations

import signal

import pytest
import redis

from fanout import Client, ErrorKind, ModelError, RunError, RunStatus, SpecError
from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE
from fanout.core.spec import make_spec

from .conftest import wait_for, waiting

QUICK = {"max_attempts": 2, "base_wait_s": 0.0}


def texts(count):
    return [f"text number {i}" for i in range(count)]


def run_status(client, result):
    return client.run(result.run_id).status()


def run_to_end(client, documents, timeout_s=120, **fields):
    spec = make_spec(**{"model": "fake", "prompt": "{input}", "retries": QUICK, **fields})
    run = client.submit(spec, documents)
    run.wait(timeout_s)
    return run.result()


@pytest.fixture
def worker(start_worker):
    return start_worker("--concurrency", "16")


@pytest.mark.parametrize("count", [1, 3, 500, 501, 1700])
def test_a_run_of_any_size_gives_each_output_in_input_order(worker, client, count):
    result = run_to_end(client, texts(count), model="fake?latency_s=0.001", reduce="concat")
    assert result.status is RunStatus.SUCCEEDED
    assert [branch.document for branch in result.branches] == [
        f"item {i + 1}" for i in range(count)
    ]
    assert [branch.index for branch in result.branches] == list(range(count))
    assert all(output.startswith("fake answer") for output in result.outputs)
    assert result.usage.calls == count
    assert result.coverage == 1.0


def test_failed_branches_are_records_and_the_aggregate_is_made_once(worker, client):
    model = "fake?fail_rate=0.2&fail_kind=server_error,timeout"
    result = run_to_end(client, texts(1000), model=model, reduce="concat", samples=1)
    failed = [i for i, output in enumerate(result.outputs) if output is None]
    assert result.status is RunStatus.SUCCEEDED
    assert len(result.outputs) == 1000
    assert 150 < len(failed) < 250
    assert [error.index for error in result.errors] == failed
    assert {error.kind for error in result.errors} == {ErrorKind.SERVER_ERROR, ErrorKind.TIMEOUT}
    assert all(error.attempts == 2 and error.message for error in result.errors)
    assert result.coverage == 1 - len(failed) / 1000
    assert result.aggregated.count("fake answer") == 1000 - len(failed)
    assert f"{len(failed)} failed and left out" in result.notes[0]


def test_aspects_and_samples_multiply_and_outputs_say_what_they_are(worker, client):
    result = run_to_end(
        client,
        ["a", "b"],
        prompt=None,
        aspects={"mood": "mood of {input}", "names": "{aspect} in {input} of {document}"},
        samples=2,
        model="fake",
    )
    order = [(b.chunk, b.document, b.aspect, b.sample) for b in result.branches]
    assert order == [
        (chunk, f"item {chunk + 1}", aspect, sample)
        for chunk in range(2)
        for aspect in ("mood", "names")
        for sample in range(2)
    ]


def test_more_samples_than_a_shard_holds_are_spread_over_shards(worker, client):
    result = run_to_end(client, ["one", "two"], samples=700, reduce="vote", group_by="document")
    assert len(result.outputs) == 1400
    assert [result.aggregated[f"item {i}"]["share"] for i in (1, 2)] == [1.0, 1.0]


def test_a_run_in_which_no_branch_succeeded_has_failed(worker, client):
    result = run_to_end(client, texts(3), model="fake?fail_rate=1", reduce="concat")
    assert result.status is RunStatus.FAILED
    assert result.error == (
        "no branch succeeded: 3 of 3 failed (server_error 3); most common: server_error 3: "
        "the fake model was told to fail (server_error)"
    )
    assert result.outputs == [None, None, None]
    assert result.aggregated is None


@pytest.mark.parametrize(("min_success", "status"), [(0.5, "succeeded"), (0.95, "failed")])
def test_min_success_decides_whether_a_run_succeeded(worker, client, min_success, status):
    model = "fake?fail_rate=0.2"
    result = run_to_end(client, texts(200), model=model, min_success=min_success)
    assert result.status == status
    if status == "failed":
        assert "min_success is 95.0%" in result.error


def test_a_document_that_cannot_be_used_costs_only_itself(worker, client):
    faults = []
    spec = make_spec(model="fake", prompt="{input}")
    documents = ["good", "   ", {"text": "also good"}, {"body": "no text column"}]
    run = client.submit(spec, documents, on_bad_document=lambda *fault: faults.append(fault))
    run.wait(120)
    result = run.result()
    assert [output is None for output in result.outputs] == [False, True, False, True]
    assert [error.kind for error in result.errors] == [ErrorKind.BAD_REQUEST] * 2
    assert [error.attempts for error in result.errors] == [0, 0], "no call was made"
    assert faults[0] == ("item 2", "the document is empty")
    assert "it has: body" in faults[1][1]


def test_columns_of_rows_go_into_prompts(worker, client, functions, start_worker):
    path = functions("def echo(prompt):\n    return prompt\n")
    worker.stop()
    start_worker(PYTHONPATH=path)
    result = run_to_end(
        client,
        [{"text": "late again", "who": "Ann {input}"}, {"text": "fine"}],
        model="functions_under_test:echo",
        prompt="{who}: {input}",
    )
    assert result.outputs == ["Ann {input}: late again", None]
    assert "no column 'who'" in result.errors[0].message


def test_an_llm_aggregate_sees_all_answers_and_what_is_missing(client, functions, start_worker):
    path = functions(
        "def model(prompt):\n"
        "    if prompt.startswith('ALL'):\n"
        "        return prompt\n"
        "    if 'number 1' in prompt:\n"
        "        raise ValueError('no')\n"
        "    return 'seen ' + prompt\n"
    )
    start_worker(PYTHONPATH=path)
    result = run_to_end(
        client,
        texts(3),
        model="functions_under_test:model",
        aggregate_prompt="ALL {count} {failed}: {input}",
    )
    assert result.aggregated.startswith("ALL 2 1: (1 of 3 answers are missing")
    assert "[item 1]\nseen text number 0" in result.aggregated
    assert "[item 3]\nseen text number 2" in result.aggregated
    assert result.usage.calls == 4


def test_answers_that_do_not_fit_one_prompt_are_reduced_in_a_tree(client, functions, start_worker):
    path = functions(
        "import re\n"
        "def model(prompt):\n"
        "    if not prompt.startswith('SUM'):\n"
        "        return 'n=1 ' + 'word ' * 60\n"
        "    return 'n=%d' % sum(map(int, re.findall(r'n=(\\d+)', prompt)))\n"
    )
    start_worker(PYTHONPATH=path)
    result = run_to_end(
        client,
        texts(300),
        model="functions_under_test:model",
        aggregate_prompt="SUM {input}",
        context_tokens=1500,
        aggregate_max_tokens=50,
    )
    assert result.aggregated == "n=300", "every answer reached the root exactly once"
    assert result.usage.calls > 310


def test_one_llm_aggregate_for_each_group(client, functions, start_worker):
    path = functions(
        "def model(prompt):\n"
        "    return prompt if prompt.startswith('G') else 'answer to ' + prompt\n"
    )
    start_worker(PYTHONPATH=path)
    rows = [{"text": f"t{i}", "team": "red" if i % 2 else "blue"} for i in range(6)]
    result = run_to_end(
        client,
        rows,
        model="functions_under_test:model",
        aggregate_prompt="G {group} {count}: {input}",
        group_by="team",
    )
    assert list(result.aggregated) == ["blue", "red"]
    assert result.aggregated["red"].startswith("G red 3: ")
    assert "answer to t2" in result.aggregated["blue"]
    assert "answer to t1" not in result.aggregated["blue"]


def test_a_run_whose_aggregate_fails_has_failed_and_keeps_its_outputs(
    client, functions, start_worker
):
    path = functions(
        "def model(prompt):\n"
        "    if prompt.startswith('ALL'):\n"
        "        raise RuntimeError('too much')\n"
        "    return 'fine'\n"
    )
    start_worker(PYTHONPATH=path)
    result = run_to_end(
        client,
        texts(3),
        model="functions_under_test:model",
        aggregate_prompt="ALL {input}",
    )
    assert result.status is RunStatus.FAILED
    assert "no aggregate could be made: internal: RuntimeError: too much" in result.error
    assert result.outputs == ["fine"] * 3
    assert result.reduce_errors[0].kind is ErrorKind.INTERNAL


def test_an_authentication_error_stops_the_run_with_one_message(client, functions, start_worker):
    path = functions(
        "from fanout import LLMError, ErrorKind\n"
        "def model(prompt):\n"
        "    raise LLMError(ErrorKind.AUTH, 'the key was revoked')\n"
    )
    start_worker("--concurrency", "4", PYTHONPATH=path)
    result = run_to_end(client, texts(5000), model="functions_under_test:model", max_workers=4)
    assert result.status is RunStatus.FAILED
    assert result.error == "auth: the key was revoked"
    # Input that was not read when the run stopped did not become branches.
    assert len(result.errors) == run_status(client, result).total <= 5000
    called = [error for error in result.errors if error.kind is ErrorKind.AUTH]
    assert len(called) <= 8
    assert {e.kind for e in result.errors} == {ErrorKind.AUTH, ErrorKind.CANCELLED}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("openai/gpt-5-mini", "OPENAI"),
        ("gpt-5-mini", "did you mean openai/gpt-5-mini?"),
        ("no_such_module:f", "where the workers run"),
        ("functions_under_test:f", "No module named 'functions_under_test'"),
        ("litellm/mistral/small", "pip install 'fanout-llm[litellm]'"),
        ("fake?speed=1", "no option 'speed'"),
    ],
)
def test_a_model_that_cannot_be_used_is_found_out_before_anything_is_enqueued(
    worker, client, model, words
):
    with pytest.raises(ModelError) as caught:
        client.submit(make_spec(model=model, prompt="{input}"), texts(3))
    assert words in str(caught.value)
    assert list(client.runs()) == []


def test_a_wrong_prompt_is_found_out_before_anything_is_enqueued(worker, client):
    with pytest.raises(SpecError, match=r"no \{inptu\}; did you mean \{input\}"):
        client.submit(make_spec(model="fake", prompt="{inptu}"), texts(3))
    assert list(client.runs()) == []


def test_max_workers_caps_the_calls_in_flight_of_the_whole_fleet(
    client, functions, start_worker, tmp_path
):
    path = functions(
        "import os, time, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r}) / 'flight'\n"
        "folder.mkdir(exist_ok=True)\n"
        "def model(prompt):\n"
        "    mine = folder / prompt.replace(' ', '-')\n"
        "    mine.touch()\n"
        "    now = len(list(folder.iterdir()))\n"
        "    time.sleep(0.02)\n"
        "    mine.unlink()\n"
        "    return str(now)\n"
    )
    for _ in range(2):
        start_worker("--concurrency", "8", PYTHONPATH=path)
    result = run_to_end(client, texts(700), model="functions_under_test:model", max_workers=5)
    seen = [int(output) for output in result.outputs]
    assert len(seen) == 700
    assert max(seen) == 5, "the cap is reached, and never exceeded"


def test_two_workers_share_the_branches_of_one_run(client, functions, start_worker, tmp_path):
    """The first calls end once both have one: neither does all while the other waits for the CPU."""
    path = functions(
        "import os, pathlib, time\n"
        f"seen = pathlib.Path({str(tmp_path)!r}) / 'seen'\n"
        "seen.mkdir(exist_ok=True)\n"
        "def model(prompt):\n"
        "    (seen / str(os.getpid())).touch()\n"
        "    until = time.monotonic() + 60\n"
        "    while len(list(seen.iterdir())) < 2 and time.monotonic() < until:\n"
        "        time.sleep(0.01)\n"
        "    return str(os.getpid())\n"
    )
    first = start_worker("--concurrency", "4", PYTHONPATH=path)
    second = start_worker("--concurrency", "4", PYTHONPATH=path)
    result = run_to_end(client, texts(600), model="functions_under_test:model")
    pids = {int(output) for output in result.outputs}
    assert pids == {first.process.pid, second.process.pid}


def test_a_killed_prefork_child_does_not_stop_the_callback(client, functions, start_worker):
    """The branch that kills its child is recorded after its retries; the others succeed."""
    path = functions(
        "import os, signal\n"
        "def model(prompt):\n"
        "    if 'number 7' in prompt:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 'fine'\n"
    )
    worker = start_worker("--concurrency", "2", PYTHONPATH=path, FANOUT_POOL="prefork")
    assert len(worker.children()) == 2
    result = run_to_end(
        client, texts(20), model="functions_under_test:model", reduce="concat", timeout_s=120
    )
    assert result.status is RunStatus.SUCCEEDED
    assert [error.index for error in result.errors] == [7]
    assert result.errors[0].kind is ErrorKind.POISONED
    assert "died 4 times" in result.errors[0].message
    assert result.aggregated.count("fine") == 19


@pytest.mark.parametrize("fault", ["raise ValueError('x')", "raise SystemExit(3)", "return 42"])
def test_a_fault_in_user_code_is_one_failed_branch(client, functions, start_worker, fault):
    path = functions(
        f"def model(prompt):\n    if 'number 1' in prompt:\n        {fault}\n    return 'fine'\n"
    )
    worker = start_worker(PYTHONPATH=path)
    result = run_to_end(client, texts(3), model="functions_under_test:model", reduce="concat")
    assert result.status is RunStatus.SUCCEEDED
    assert [error.index for error in result.errors] == [1]
    expected = ErrorKind.INVALID_OUTPUT if "42" in fault else ErrorKind.INTERNAL
    assert result.errors[0].kind is expected
    assert worker.process.poll() is None


def test_a_stopped_worker_finishes_what_is_in_flight_and_leaves_the_rest(client, start_worker):
    first = start_worker("--concurrency", "8")
    spec = make_spec(model="fake?latency_s=0.5", prompt="{input}")
    run = client.submit(spec, texts(48))
    wait_for(lambda: run.status().done >= 8, "the first branches are done")
    first.signal(signal.SIGTERM)
    first.process.wait(120)
    done = run.status().done
    assert 8 <= done < 48
    start_worker("--concurrency", "8")
    assert run.wait(120).succeeded == 48
    assert run.result().usage.calls == 48, "nothing was called twice"


def test_a_cancelled_run_ends_soon_and_keeps_what_finished(worker, client):
    spec = make_spec(model="fake?latency_s=0.3&jitter_s=30", prompt="{input}")
    run = client.submit(spec, texts(1200))
    wait_for(lambda: run.status().done >= 1, "a branch is done")
    assert run.cancel()
    status = run.wait(120)
    assert status.status is RunStatus.CANCELLED
    assert status.done == status.total == 1200
    assert status.succeeded >= 1
    assert not run.cancel(), "cancelling again changes nothing"


def test_nothing_is_left_on_the_queues_and_a_deleted_run_leaves_no_key(worker, client, broker_url):
    run_to_end(client, texts(600), reduce="concat")
    [run] = client.runs()
    with redis.Redis.from_url(broker_url) as server:
        wait_for(lambda: not server.exists("unacked"), "all messages are acknowledged")
        assert waiting(server) == server.llen(CONTROL_QUEUE) == 0
        assert not server.keys("fanout.branches.*")
        run.delete()
        assert server.keys(f"fanout:run:{run.run_id}*") == []


def test_the_queue_stays_short_while_a_long_run_is_enqueued(client, broker_url, start_worker):
    """The window bounds what is on the broker, for a run of any size."""
    start_worker("--concurrency", "4")
    spec = make_spec(model="fake?latency_s=0.002", prompt="{input}")
    run = client.submit(spec, texts(2500))
    most = 0
    with redis.Redis.from_url(broker_url) as server:
        while not run.status().status.value.startswith("succeeded"):
            most = max(most, waiting(server))
    assert most <= 1250, "two shards, and of two that drain the last quarter"
    assert run.status().succeeded == 2500


def test_document_texts_prompts_and_answers_are_in_no_message_and_no_log(
    client, broker_url, functions, start_worker
):
    path = functions(
        "def model(prompt):\n"
        "    if 'bad' in prompt:\n"
        "        raise ValueError('failed on ' + prompt)\n"
        "    return 'CANARY-ANSWER'\n"
    )
    worker = start_worker("--concurrency", "2", "--loglevel", "DEBUG", "-E", PYTHONPATH=path)
    with redis.Redis.from_url(broker_url) as server, server.monitor() as monitor:
        result = run_to_end(
            client,
            ["CANARY-DOCUMENT good", "CANARY-DOCUMENT bad"],
            model="functions_under_test:model",
            prompt="CANARY-PROMPT {input}",
            reduce="concat",
        )
        server.publish("end-of-test", "x")
        messages = []
        for command in monitor.listen():
            text = command["command"]
            if "end-of-test" in text:
                break
            if text.split()[0] in {"LPUSH", "PUBLISH", "ZADD", "RPUSH"}:
                messages.append(text)
    assert [output is None for output in result.outputs] == [False, True]
    assert any(BRANCHES_QUEUE in message for message in messages)
    assert "CANARY" not in "".join(messages)
    assert "CANARY" not in worker.log.read_text()


def test_a_client_of_another_process_can_follow_a_run(worker, client, broker_url):
    spec = make_spec(model="fake", prompt="{input}", reduce="vote")
    run_id = client.submit(spec, texts(3)).run_id
    with Client(broker_url) as other:
        run = other.run(run_id)
        assert run.wait(120).succeeded == 3
        assert run.spec == spec
        assert [one.run_id for one in other.runs()] == [run_id]


RECOVERING = (
    "import pathlib\n"
    "from fanout import ErrorKind, LLMError\n"
    "well = pathlib.Path({path!r})\n"
    "def model(prompt):\n"
    "    if prompt.startswith('ALL'):\n"
    "        return str(prompt.count('fine'))\n"
    "    if prompt.endswith('7') and not well.exists():\n"
    "        kind = ErrorKind.BAD_REQUEST if '17' in prompt else ErrorKind.CONTENT_FILTER\n"
    "        raise LLMError(kind, 'not yet')\n"
    "    return 'fine'\n"
)


def test_failed_branches_can_be_retried_and_the_aggregate_is_redone(
    client, functions, start_worker, tmp_path
):
    start_worker(PYTHONPATH=functions(RECOVERING.format(path=str(tmp_path / "well"))))
    spec = make_spec(
        model="functions_under_test:model",
        prompt="{input}",
        aggregate_prompt="ALL {input}",
        context_tokens=32_000,  # all answers in one call
    )
    run = client.submit(spec, texts(1200))
    run.wait(120)
    assert run.status().failed == 120
    assert run.result().aggregated == "1080"
    calls = run.status().usage.calls
    (tmp_path / "well").touch()

    again = run.retry_failed([ErrorKind.BAD_REQUEST])
    assert 0 < again < 120
    assert run.wait(120).failed == 120 - again
    assert run.result().aggregated == str(1080 + again)

    assert run.retry_failed() == 120 - again
    status = run.wait(120)
    assert (status.succeeded, status.failed, status.errors) == (1200, 0, {})
    result = run.result()
    assert result.outputs == ["fine"] * 1200
    assert result.aggregated == "1200"
    assert result.usage.calls == calls + 120 + 2, "only what had failed was called again"
    assert run.retry_failed() == 0, "there is nothing left to retry"


def test_a_run_that_has_not_ended_cannot_be_retried(worker, client):
    run = client.submit(make_spec(model="fake?latency_s=30", prompt="{input}"), texts(2))
    with pytest.raises(RunError, match="has not ended"):
        run.retry_failed()
    run.cancel()
    run.wait(120)


def test_a_cancelled_run_can_be_taken_up_again(client, functions, start_worker, tmp_path):
    path = functions(
        "import asyncio, pathlib\n"
        f"well = pathlib.Path({str(tmp_path / 'well')!r})\n"
        "async def model(prompt):\n"
        "    if not well.exists() and not prompt.endswith('0'):\n"
        "        await asyncio.sleep(60)\n"
        "    return 'fine'\n"
    )
    start_worker("--concurrency", "16", PYTHONPATH=path)
    spec = make_spec(model="functions_under_test:model", prompt="{input}", reduce="vote")
    run = client.submit(spec, texts(900))
    wait_for(lambda: run.status().done >= 1, "a branch is done")
    run.cancel()
    assert run.wait(120).status is RunStatus.CANCELLED
    (tmp_path / "well").touch()
    run.retry_failed()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated["votes"] == {"fine": 900}
