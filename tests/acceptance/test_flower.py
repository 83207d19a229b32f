"""`fanout flower`, as an operator starts it and as a browser shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from ast import literal_eval
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from flower.urls import handlers
from ports import free_port

from fanout import Client, RunSpec
from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE
from fanout.core.spec_fields import RetrySpec
from tests.browser import Browser
from tests.integration.conftest import Worker, wait_for
from tests.needs import needs
from tests.servers import SentinelProcess, ServerProcess
from tests.tls import TlsFront

from .conftest import FANOUT

USER, PASSWORD = "ann", "s3same,open"
LOGIN = {"FANOUT_FLOWER_USER": USER, "FANOUT_FLOWER_PASSWORD": PASSWORD}
SERVER_PASSWORD = "hunter2"
# A folder: the browser test then makes the pictures of docs/monitoring.md.
PICTURES = os.environ.get("SCREENSHOTS_TO")
BRANCHES = 3_000 if PICTURES else 300
WORKERS = ("alpha@fleet", "beta@fleet", "gamma@fleet")


class FlowerProcess:
    """A Flower that is up, and what it answers."""

    def __init__(self, url: str, folder: Path, *options: str, prefix: str = "", **env: str) -> None:
        self._prefix = prefix
        self.port = free_port()
        self.log = folder / "flower.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FANOUT_", "FLOWER_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [FANOUT, "flower", "--port", str(self.port), "--broker-url", url, *options],
                env={**clean, **env}, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(self.is_up, f"Flower answers; its log is {self.log}")

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}{self._prefix}"

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("/healthcheck", login=None) == (200, "OK")
        except OSError:
            return False

    def ask(
        self, path: str, *, login: str | None = f"{USER}:{PASSWORD}", method: str = "GET"
    ) -> tuple[int, str]:
        """Status and text of an answer."""
        request = urllib.request.Request(self.root + path, method=method)
        if login is not None:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def counted(self, task: str) -> dict[str, int]:
        """How many events of each type there were of a task, on all workers."""
        counts: dict[str, int] = {}
        pattern = rf'flower_events_total\{{task="{task}",type="task-(\w+)",worker="[^"]*"\}} (\S+)'
        for kind, value in re.findall(pattern, self.ask("/metrics")[1]):
            counts[kind] = counts.get(kind, 0) + int(float(value))
        return counts

    def tasks(self, **query: str) -> dict[str, dict[str, object]]:
        words = "&".join(f"{name}={value}" for name, value in query.items())
        tasks: dict[str, dict[str, object]] = json.loads(self.ask(f"/api/tasks?{words}")[1])
        return tasks

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)


@dataclass
class Fleet:
    """Workers, a Flower, and a run that is over."""

    flower: FlowerProcess
    run_id: str
    outcomes: list[str | None]
    workers: list[Worker]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, forks):
    folder = tmp_path_factory.mktemp("fleet")
    server = ServerProcess(folder / "server")
    with server.client() as client:
        client.acl_setuser(
            "op", enabled=True, passwords=f"+{SERVER_PASSWORD}",
            keys="*", channels="*", commands=["+@all"],
        )  # fmt: skip
    url = f"redis://op:{SERVER_PASSWORD}@127.0.0.1:{server.port}/0"
    # One of them tells from its parent process what its children do.
    pools = ("threads", "threads", "prefork")
    started = [
        Worker(url, folder / f"{name}.log", "-n", name, "-c", "4", forks=forks, FANOUT_POOL=pool)
        for name, pool in zip(WORKERS, pools, strict=True)
    ]
    flower = FlowerProcess(url, folder, "--max_login_failures=1000000", **LOGIN)
    try:
        with Client(url) as client:
            wait_for(lambda: set(client.workers()) == set(WORKERS), "the workers are up")
            kinds = "content_filter,timeout"
            model = f"fake?fail_rate=0.1&fail_kind={kinds}&latency_s=0.02"
            retries = RetrySpec(max_attempts=1)
            spec = RunSpec(
                model=model, prompt="secretprompt {input}", reduce="vote", retries=retries
            )
            run = client.submit(spec, (f"secretdocument {i}" for i in range(BRANCHES)))
            run.wait(120)
            outcomes = [outcome.kind and outcome.kind.value for outcome in run.outcomes()]
        yield Fleet(flower, run.run_id, outcomes, started)
    finally:
        flower.stop()
        for worker in started:
            worker.stop()
        server.kill()


def ends(flower):
    counts = flower.counted("fanout.branch")
    return counts.get("succeeded", 0), counts.get("failed", 0)


def test_flower_agrees_with_the_result_to_the_last_branch(fleet):
    succeeded = fleet.outcomes.count(None)
    failed = len(fleet.outcomes) - succeeded
    assert failed > 10
    wait_for(lambda: ends(fleet.flower) == (succeeded, failed), "every branch's end is counted")
    if not PICTURES:
        found = fleet.flower.tasks(taskname="fanout.branch", limit="10000")
        states = [task["state"] for task in found.values()]
        assert states.count("SUCCESS") == succeeded
        assert states.count("FAILURE") == failed
    others = ["fanout.expand", "fanout.collect", "fanout.seal", "fanout.aggregate"]
    wait_for(
        lambda: all(set(fleet.flower.counted(name)) >= {"succeeded"} for name in others),
        "all other tasks have succeeded",
    )
    assert not any("failed" in fleet.flower.counted(name) for name in others)


def test_a_task_says_which_branch_it_is_and_why_it_failed(fleet):
    wait_for(lambda: sum(ends(fleet.flower)) == BRANCHES, "every branch's end is counted")
    failed = fleet.flower.tasks(state="FAILURE", limit="10000")
    for task_id, task in failed.items():
        run_id, stage, shard, position = task_id.split("/")
        ids = {"run_id": run_id, "stage": int(stage), "shard": int(shard)}
        assert literal_eval(task["kwargs"]) == {**ids, "position": int(position)}
        kind = fleet.outcomes[int(shard) * 500 + int(position)]
        assert task["exception"] == f"BranchFailed('{kind}')"
        assert task["traceback"] == f"BranchFailed: {kind}"
    page = fleet.flower.ask(f"/task/{fleet.run_id}/0/0/1")[1]
    assert f"<code>run_id={fleet.run_id} stage=0 shard=0 position=1</code>" in page
    query = f"state:FAILURE kwargs:run_id={fleet.run_id}"
    found = fleet.flower.tasks(search=query.replace(" ", "%20"), limit="10000")
    assert set(found) == set(failed)


def test_no_page_shows_a_text_or_a_password(fleet):
    fleet.flower.ask("/workers?refresh=1")
    paths = ["/workers", "/tasks", "/broker", "/api/tasks?limit=10000", "/api/workers?refresh=1"]
    paths += [f"/worker/{WORKERS[0]}", "/metrics", "/api/task/types"]
    pages = {path: fleet.flower.ask(path) for path in paths}
    assert {path: status for path, (status, _) in pages.items() if status != 200} == {}
    everything = "".join(text for _, text in pages.values()) + fleet.flower.log.read_text()
    for worker in fleet.workers:
        everything += worker.log.read_text()
    for secret in ("secretprompt", "secretdocument", SERVER_PASSWORD, PASSWORD):
        assert secret not in everything
    assert "redis://op:**@127.0.0.1" in pages["/broker"][1]


def test_no_password_is_in_the_list_of_processes(fleet):
    words = psutil.Process(fleet.flower.process.pid).cmdline()
    assert words[1:3] == ["-m", "workers.telemetry.flower"]
    assert not any(secret in " ".join(words) for secret in (SERVER_PASSWORD, PASSWORD))
    listening = psutil.Process(fleet.flower.process.pid).net_connections("tcp")
    assert {c.laddr.ip for c in listening if c.status == "LISTEN"} == {"127.0.0.1"}


def paths_of_handlers():
    for handler in handlers:
        pattern = handler[0] if isinstance(handler, tuple) else handler.regex.pattern
        path = re.sub(r"\(.[+*]\)", "x", pattern.rstrip("$").replace("/?", ""))
        if path not in {".*", "/static/x", "/healthcheck", "/login", "/logout"}:
            yield path


@pytest.mark.parametrize("login", [None, f"{USER}:wrong", f"{USER}:s3same", "ünï:cödé"])
def test_who_is_not_logged_in_sees_nothing(fleet, login):
    for path in paths_of_handlers():
        for method in ("GET", "POST"):
            status, text = fleet.flower.ask(path, login=login, method=method)
            # 404 and 405: there is no such page, or nothing at all behind the method.
            assert status in {401, 404, 405, 500}, (method, path)
            assert not any(word in text for word in (*WORKERS, "fanout.", fleet.run_id))
    assert fleet.flower.ask("/metrics", login=login)[0] in {401, 500}


def test_who_is_logged_in_can_look_but_not_touch(fleet):
    def post(path):
        return fleet.flower.ask(f"/api{path}", method="POST")[0]

    fleet.flower.ask("/workers?refresh=1")
    assert post(f"/worker/shutdown/{WORKERS[0]}") == 403
    assert post(f"/worker/pool/grow/{WORKERS[0]}") == 403
    assert post("/task/revoke/x") == 403
    for verb in ("apply", "async-apply", "send-task", "abort"):
        assert post(f"/task/{verb}/fanout.preflight") == 404
    assert all(worker.process.poll() is None for worker in fleet.workers)


@pytest.mark.timeout(300)
def test_a_person_sees_workers_tasks_and_queues_in_a_browser(fleet, tmp_path):
    needs("chromium", "chromedriver")
    flower = fleet.flower
    wait_for(lambda: sum(ends(flower)) == BRANCHES, "every branch's end is counted")
    root = flower.root
    fetched = []
    with Browser(tmp_path, width=1720, height=820) as browser:

        def picture(name):
            fetched.extend(browser.fetched())
            assert browser.refused() == []
            if PICTURES:
                browser.screenshot(Path(PICTURES) / f"flower-{name}.png")

        browser.open(f"{root}/workers")
        assert browser.text() in {"", "Access denied"}

        browser.open(f"http://{USER}:{PASSWORD}@127.0.0.1:{flower.port}/workers")
        text = browser.wait_for(WORKERS[2], lambda t: t.count("Online\t") == 3)
        assert all(name in text for name in WORKERS)
        failed = sum(kind is not None for kind in fleet.outcomes)
        assert re.search(rf"\bFailed\s+{failed}\b", text)
        assert browser.run("return autorefresh") == 1
        picture("workers")
        # The policy is in force: what a name might bring along is not run.
        browser.run(
            "const script = document.createElement('script'); script.textContent = 'var own = 1';"
            "document.body.append(script)"
        )
        assert (browser.run("return typeof own"), len(browser.refused())) == ("undefined", 1)

        browser.open(f"{root}/tasks")
        text = browser.wait_for("fanout.branch")
        assert f"run_id={fleet.run_id} stage=0 shard=" in text
        assert "SUCCESS" in text
        picture("tasks")

        browser.open(f"{root}/tasks?state=FAILURE")
        browser.wait_for("BranchFailed(", lambda t: "BranchFailed('" in t and "SUCCESS" not in t)
        if PICTURES:
            browser.screenshot(Path(PICTURES) / "flower-failed-tasks.png")
        browser.run("document.querySelector('#tasks-table a[href*=\"/task/\"]').click()")
        text = browser.wait_for("TASK DETAILS")
        task_id = re.search(rf"{fleet.run_id}/0/(\d+)/(\d+)", text)
        assert task_id
        kind = fleet.outcomes[int(task_id[1]) * 500 + int(task_id[2])]
        assert f"BranchFailed('{kind}')" in text
        assert "FAILURE" in text
        assert f"shard={task_id[1]} position={task_id[2]}" in text
        # Nothing that could be done to it.
        assert "Revoke" not in text
        picture("failed-task")

        browser.open(f"{root}/broker")
        text = browser.wait_for(BRANCHES_QUEUE)
        assert re.search(rf"{BRANCHES_QUEUE}\t0\t—\t0\t3", text)
        assert re.search(rf"{CONTROL_QUEUE}\t0\t—\t0\t3", text)
        assert SERVER_PASSWORD not in text
        picture("broker")
    assert len(fetched) > 10
    assert {urlsplit(url).netloc.rpartition("@")[2] for url in fetched} == {urlsplit(root).netloc}


@pytest.fixture
def start(here):
    running = []

    def start(url, *options, **env):
        running.append(FlowerProcess(url, here, *options, **env))
        return running[-1]

    yield start
    for flower in running:
        flower.stop()


def test_few_passwords_can_be_tried_and_none_is_looked_at_after_that(start, broker_url):
    flower = start(broker_url, "--max_login_failures=4", **LOGIN)

    def ask(password):
        return flower.ask("/workers", login=f"{USER}:{password}")[0]

    assert [ask(f"wrong{n}") for n in range(4)] == [401] * 4
    # One is forgiven each few seconds, which may pass here.
    wait_for(lambda: ask("wrong") == ask(PASSWORD) == 429, "the right one, or it could be guessed")
    # Who gives none is only asked for it.
    assert flower.ask("/workers", login=None)[0] == 401
    assert flower.ask("/healthcheck", login=None)[0] == 200


def lengths(flower, login=f"{USER}:{PASSWORD}"):
    queues = json.loads(flower.ask("/api/queues/length", login=login)[1])["active_queues"]
    return {queue["name"]: queue["messages"] for queue in queues}


def test_queues_are_seen_behind_sentinels(start, tmp_path):
    server = ServerProcess(tmp_path / "server")
    sentinels = [SentinelProcess(tmp_path / f"sentinel{i}", server.port) for i in range(2)]
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    try:
        with server.client() as client:
            client.lpush(BRANCHES_QUEUE, "a", "b", "c")
            client.lpush(CONTROL_QUEUE, "d")
        # The first of them does not answer.
        sentinels[0].kill()
        url = f"sentinel://{hosts}/0?master={SentinelProcess.name}"
        flower = start(url, **LOGIN)
        assert lengths(flower) == {BRANCHES_QUEUE: 3, CONTROL_QUEUE: 1}
        assert BRANCHES_QUEUE in flower.ask("/broker")[1]
        flower.stop()
    finally:
        for each in (*sentinels, server):
            each.kill()


def test_queues_and_tasks_are_seen_over_tls(start, start_worker, here, server, broker_url):
    needs("openssl")
    with TlsFront(here / "tls", server.port) as front:
        flower = start(front.url, **LOGIN)
        start_worker("-c", "1", "--queues", CONTROL_QUEUE)
        with Client(broker_url) as client:
            client.submit(RunSpec(model="fake", prompt="{input}", reduce="vote"), ["a", "b"])
        wait_for(lambda: "succeeded" in flower.counted("fanout.expand"), "an event has come")
        # The seal of the stage came behind it.
        expected = {BRANCHES_QUEUE: 2, CONTROL_QUEUE: 0}
        wait_for(lambda: lengths(flower) == expected, "the queues are seen")
        flower.stop()


def test_it_ends_when_it_is_told_to_although_the_server_is_away(start, tmp_path):
    server = ServerProcess(tmp_path / "server")
    flower = start(server.url, **LOGIN)
    server.kill()
    # Asks all workers, in threads that wait for the server.
    flower.ask("/workers?refresh=1")
    flower.process.terminate()
    assert flower.process.wait(60) == 0
    assert "Traceback" not in flower.log.read_text()


def test_with_control_a_worker_can_be_stopped_but_no_task_started(start, start_worker, broker_url):
    worker = start_worker("-c", "1")
    flower = start(broker_url, "--control", **LOGIN)
    wait_for(lambda: flower.ask("/api/workers?refresh=1")[1] != "{}", "Flower knows the worker")
    assert flower.ask("/api/task/apply/fanout.preflight", method="POST")[0] == 404
    assert flower.ask(f"/api/worker/shutdown/{worker.name}", method="POST")[0] == 200
    assert worker.process.wait(120) == 0


def test_a_worker_that_is_stopped_tells_of_its_last_tasks(start, start_worker, broker_url):
    flower = start(broker_url, **LOGIN)
    worker = start_worker("-c", "4")
    with Client(broker_url) as client:
        spec = RunSpec(model="fake?latency_s=1", prompt="{input}", reduce="vote")
        client.submit(spec, ["a", "b", "c", "d"])
        wait_for(lambda: flower.counted("fanout.branch").get("started") == 4, "all are begun")
    worker.process.terminate()
    assert worker.process.wait(120) == 0
    wait_for(lambda: ends(flower) == (4, 0), "all have ended", timeout_s=120)


def test_a_paused_branch_is_shown_as_to_be_tried_again(start, start_worker, broker_url):
    flower = start(broker_url, **LOGIN)
    with Client(broker_url) as client:
        spec = RunSpec(model="fake", prompt="{input}", reduce="vote")
        run = client.submit(spec, ["a"])
        run.pause()
        start_worker("-c", "1")
        wait_for(lambda: "retried" in flower.counted("fanout.branch"), "the branch is parked")
        (task,) = flower.tasks(taskname="fanout.branch").values()
        assert task["state"] == "RETRY"
        assert "the run is paused" in task["exception"]
        run.unpause()
        run.wait(120)
        wait_for(lambda: ends(flower) == (1, 0), "it has ended")
        (task,) = flower.tasks(taskname="fanout.branch").values()
        assert task["state"] == "SUCCESS"


def test_without_a_password_it_does_not_start(fanout, broker_url):
    done = fanout("flower", "--broker-url", broker_url)
    assert done.status == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("fanout: Flower wants a password: set FANOUT_FLOWER_PASSWORD or")
    assert "--no-auth" in done.stderr


def test_with_no_auth_everybody_is_let_in(start, broker_url):
    flower = start(broker_url, "--no-auth", **LOGIN)
    assert flower.ask("/workers", login=None)[0] == 200
    # The interface for programs stays closed: Flower wants FLOWER_UNAUTHENTICATED_API for that.
    assert flower.ask("/api/workers", login=None)[0] == 401


def test_the_password_may_come_from_a_file_or_in_flowers_own_variable(start, here, broker_url):
    (here / "password").write_text("from-a-file\n")
    flower = start(broker_url, FANOUT_FLOWER_PASSWORD_FILE=str(here / "password"))
    assert flower.ask("/workers", login="fanout:from-a-file")[0] == 200
    assert flower.ask("/workers", login="fanout:else")[0] == 401
    prefix = "/monitor"
    own = {"FLOWER_BASIC_AUTH": "bob:b,cid:c"}
    flower = start(broker_url, f"--url_prefix={prefix}", prefix=prefix, **own)
    statuses = [flower.ask("/metrics", login=login)[0] for login in ("bob:b", "cid:c", None)]
    assert statuses == [200, 200, 401]
    assert lengths(flower, login="bob:b") == {BRANCHES_QUEUE: 0, CONTROL_QUEUE: 0}


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        (["--frobnicate=1"], LOGIN, "Flower has no option '--frobnicate'"),
        (["--max_tasks=many"], LOGIN, "Flower: "),
        (["--basic_auth=a:topsecret"], {}, "--basic_auth would be in the list of processes"),
        ([], {"FANOUT_FLOWER_PASSWORD_FILE": "nowhere"}, "nowhere cannot be read"),
    ],
)
def test_wrong_usage_is_said_in_one_line(fanout, broker_url, options, env, message):
    done = fanout("flower", *options, FANOUT_BROKER_URL=broker_url, **env)
    assert done.status == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(secret in done.stderr for secret in ("topsecret", PASSWORD))


def test_a_port_that_is_taken_is_reported(fanout, broker_url, server):
    options = ("--port", str(server.port), "--broker-url", broker_url)
    done = fanout("flower", *options, **LOGIN)
    assert done.status == 1
    assert done.stderr.startswith(f"fanout: Flower cannot listen on 127.0.0.1:{server.port}: ")


def test_the_help_names_flowers_own_options(fanout, broker_url):
    assert "--control" in fanout("flower", "--help").stdout
    done = fanout("flower", "--", "--help", FANOUT_BROKER_URL=broker_url)
    assert "--purge-offline-workers" in done.stdout + done.stderr


def test_flower_keeps_so_many_tasks_and_no_more():
    """In a process of its own: Flower's options and metrics are global."""
    source = """
from flower.events import EventsState
from tornado.options import options
from workers.telemetry.flower import configure
from fanout.core.settings import load_settings
configure(load_settings(), ["--no_auth"])
print(options.max_tasks)
configure(load_settings(), ["--no_auth", "--max_tasks=500"])
state = EventsState(max_tasks_in_memory=options.max_tasks, max_workers_in_memory=10)
for number in range(2_500):
    for kind in ("received", "started", "succeeded"):
        state.event({"type": f"task-{kind}", "uuid": f"r/0/0/{number}", "hostname": "w",
                     "name": "fanout.branch", "kwargs": "{'run_id': 'r'}", "timestamp": number,
                     "local_received": number, "clock": number, "pid": 1, "utcoffset": 0})
print(len(state.tasks), len(state.search_engine.documents), len(state._taskheap))
print(state.counter["w"]["task-succeeded"])
"""
    command = [sys.executable, "-W", "error", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["20000", "500", "500", "2000", "2500"], done.stderr
