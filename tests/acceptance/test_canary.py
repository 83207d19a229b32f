"""Keys, documents, prompts and answers are where they belong, and nowhere else.

A run with failures, retries and an aggregate, on a real server and a real worker that say all they
can; then every place is searched for what was planted.
"""

from __future__ import annotations

import json
import threading
import zlib
from pathlib import Path

import pytest
import redis
from celery import Celery

from tests.fences import bare
from tests.integration.conftest import wait_for
from tests.scripted_provider import openai_reply
from tests.servers import ServerProcess

# None of them has the form of a key: it must be known as one.
KEY = "canarykey0QkZ7wJx4vTn"
PASSWORD = "canarypw5RtY8uIo1pAs"
DOCUMENT = "CANARY-DOCUMENT"
PROMPT = "CANARY-PROMPT"
ANSWER = "CANARY-ANSWER"
CONTENTS = (DOCUMENT, PROMPT, ANSWER)
# What of a run's records may hold which contents.
BELONGS = {
    "spec": {PROMPT},
    "in": {DOCUMENT, ANSWER},
    "live": {DOCUMENT, ANSWER},
    # With what the provider quoted.
    "out": {DOCUMENT, PROMPT, ANSWER},
    "result": {ANSWER},
    "kept answers": {ANSWER},
}


# A function that is careless with what it knows, and the client of a provider, as older ones were.
CARELESS = """
import logging, os
from fanout import ErrorKind, LLMError

def model(prompt):
    known = f"{os.environ['OPENAI_API_KEY']} and {os.environ['FANOUT_BROKER_URL']}"
    logging.getLogger("functions").warning("the key is %s", known)
    logging.getLogger("openai._base_client").debug("request: %s", prompt)
    raise LLMError(ErrorKind.BAD_REQUEST, f"{known} do not open {prompt}")
"""


class CanaryProvider:
    """Answers; but refuses some documents, quoting all it knows, and is busy at times."""

    def __init__(self):
        self.busy = {"flaky"}

    def __call__(self, headers, request):
        if request is None:
            return 200, {"data": []}
        prompt = bare(request["messages"][-1]["content"])
        quoted = f"cannot do {prompt!r} for {headers['authorization']}, that is {KEY}!"
        if "refused" in prompt:
            return 400, {"error": {"message": quoted, "code": KEY}}
        if "flaky" in prompt and self.busy:
            self.busy.clear()
            return 503, {"error": {"message": quoted}}
        return 200, openai_reply(f"{ANSWER} to {len(prompt)} characters")


class Watcher:
    """Notes every command that the server gets, and every event that is sent."""

    def __init__(self, url):
        self.commands = []
        self.events = []
        self._app = Celery(broker=url, set_as_current=False)
        self._client = redis.Redis.from_url(url)
        self._is_over = threading.Event()
        self._is_up = threading.Semaphore(0)
        self._threads = [threading.Thread(target=work) for work in (self._monitor, self._receive)]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._is_up.acquire(timeout=120)

    def _monitor(self):
        with self._client.monitor() as monitor:
            self._is_up.release()
            for command in monitor.listen():
                self.commands.append(command["command"])
                if self._is_over.is_set():
                    return

    def _receive(self):
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                self._is_up.release()
                while not self._is_over.is_set():
                    try:
                        own.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def inspected(self):
        """All that the worker answers to remote control."""
        inspect = self._app.control.inspect(timeout=60, limit=1)
        asked = ("conf", "stats", "report", "active", "reserved", "scheduled", "registered")
        answers = {name: getattr(inspect, name)() for name in asked}
        assert None not in answers.values(), answers
        return answers

    def close(self):
        if self._is_over.is_set():
            return
        self._is_over.set()
        self._client.ping()
        for thread in self._threads:
            thread.join(120)
        self._app.close()
        self._client.close()


def unpacked(value):
    try:
        return zlib.decompress(value)
    except zlib.error:
        return value


def stored(client):
    """Each value of the server, unpacked, by the name of what holds it."""
    found = {}
    readers = {
        b"string": lambda key: {"": client.get(key)},
        b"hash": client.hgetall,
        b"list": lambda key: dict(enumerate(client.lrange(key, 0, -1))),
        b"set": lambda key: dict(enumerate(client.smembers(key))),
        b"zset": lambda key: dict(enumerate(client.zrange(key, 0, -1))),
    }
    for key in client.scan_iter(count=1000):
        for field, value in readers[client.type(key)](key).items():
            name = field.decode() if isinstance(field, bytes) else str(field)
            # The text of JSON that is inside JSON is found as well.
            found[f"{key.decode()} {name}".strip()] = unpacked(value).decode("utf-8", "replace")
    return found


def kind_of(place, run_ids):
    """What a place is called in BELONGS, or the place."""
    for key in (f"fanout:run:{run_id}" for run_id in run_ids):
        if place.startswith(key):
            name, _, field = place.removeprefix(key).partition(" ")
            return name.rpartition(":")[2] or field
    return "kept answers" if place.startswith("fanout:answers:") else place


@pytest.fixture
def own(tmp_path):
    running = ServerProcess(tmp_path / "server", appendonly="yes", appendfsync="always")
    with running.client() as client:
        client.config_set("requirepass", PASSWORD)
    yield running
    running.kill()


@pytest.fixture
def url(own):
    return own.url.replace("://", f"://:{PASSWORD}@")


@pytest.fixture
def watcher(url):
    running = Watcher(url)
    yield running
    running.close()


@pytest.fixture
def seen(here, own, url, watcher, provider, functions, start_worker, fanout):
    """Everything that a run left behind, by where it is."""
    provider.respond = CanaryProvider()
    worker = start_worker(
        "--loglevel", "DEBUG", "-E", url=url, OPENAI_API_KEY=KEY, OPENAI_LOG="debug",
        OPENAI_BASE_URL=f"{provider.url}/v1", PYTHONPATH=functions(CARELESS),
        is_forked=False,  # its command line is looked at
    )  # fmt: skip
    names = ("good", "refused", "flaky", "fine", "refused too")
    (here / "in.csv").write_text("text\n" + "".join(f"{DOCUMENT} {name}\n" for name in names))
    env = {"FANOUT_BROKER_URL": url}
    job = ("in.csv", "-m", "openai/m", "-p", f"{PROMPT} {{input}}", "--aggregate", "ALL {input}")
    submitted = fanout("submit", *job, **env)
    run_id = submitted.stdout.strip()
    said = {"submit": submitted, "watch": fanout("watch", run_id, **env)}
    said["status"] = fanout("status", run_id, "--json", **env)
    said["runs"] = fanout("runs", "--json", **env)
    said["errors"] = fanout("errors", run_id, **env)
    said["results"] = fanout("results", run_id, "--out", "out", **env)
    careless = ("submit", "in.csv", "-m", "functions_under_test:model", "-p", f"{PROMPT} {{input}}")
    careless_id = fanout(*careless, **env).stdout.strip()
    said["careless watch"] = fanout("watch", careless_id, **env)
    said["careless errors"] = fanout("errors", careless_id, **env)
    inspected = watcher.inspected()
    for kind, count in (("task-failed", 7), ("task-succeeded", 6)):
        wait_for(lambda: sum(e["type"] == kind for e in watcher.events) >= count, kind)  # noqa: B023 - called at once
    watcher.close()
    with redis.Redis.from_url(url) as client:
        values = stored(client)
        client.set("to be found", zlib.compress(f"{KEY} {DOCUMENT}".encode()))
        assert KEY in stored(client)["to be found"], "the search finds what it should"
        client.delete("to be found")
    cmdline = Path(f"/proc/{worker.process.pid}/cmdline").read_bytes().decode()
    own.kill()
    wait_for(lambda: "Cannot connect to" in worker.log.read_text(), "the worker misses its server")
    said["without a server"] = fanout("runs", **env)
    files = (own.folder / "appendonlydir").glob("*aof")
    return {
        "run_ids": (run_id, careless_id),
        "provider": json.dumps(provider.requests),
        "said": {name: done.stdout + done.stderr for name, done in said.items()},
        "inspected": json.dumps(inspected, default=str),
        "events": json.dumps(watcher.events, default=str),
        "commands": watcher.commands,
        "values": values,
        "log": worker.log.read_text(),
        "server log": (own.folder / "server.log").read_text(),
        "aof": "".join(path.read_bytes().decode("utf-8", "replace") for path in files),
        "cmdline": cmdline,
        "out": "".join(path.read_text() for path in (here / "out").iterdir()),
    }


def test_what_was_planted_is_only_where_it_belongs(seen):
    run_ids = seen["run_ids"]
    # It was there to be leaked: the provider got the key and the texts, and quoted them.
    assert all(canary in seen["provider"] for canary in (KEY, *CONTENTS))
    assert json.loads(seen["said"]["status"])["errors"] == {"bad_request": 2}
    assert json.loads(seen["said"]["status"])["usage"]["calls"] >= 7, "one branch was tried again"

    # Keys are nowhere.
    for name, place in seen.items():
        if name != "provider":
            text = json.dumps(place, default=str)
            assert KEY not in text, name
            assert PASSWORD not in text, name

    # Contents are in the records of the run, and nowhere else on the server.
    found = {kind: set() for kind in BELONGS}
    for place, value in seen["values"].items():
        for canary in CONTENTS:
            if canary in value or canary in place:
                found.setdefault(kind_of(place, run_ids), set()).add(canary)
    assert found.pop("live") == set()
    assert found == {kind: canaries for kind, canaries in BELONGS.items() if kind != "live"}

    # Nor did they pass through anything else: queues, chords, events.
    others = [c for c in seen["commands"] if not any(f"fanout:run:{r}" in c for r in run_ids)]
    # The steps that keep answers have these, and no prompt or document.
    keeping = [command for command in others if "fanout:answers" in command]
    assert not any(canary in c for c in keeping for canary in CONTENTS if canary != ANSWER)
    assert any(ANSWER in command for command in keeping)
    others = [command for command in others if command not in keeping]
    for name in ("fanout.branches", "unacked", "celery-taskset", "celeryev", "note:preflight"):
        assert any(name in command for command in others), name
    quiet = {
        "commands": "\n".join(others),
        "events": seen["events"],
        "log": seen["log"],
        "server log": seen["server log"],
        "inspected": seen["inspected"],
        "cmdline": seen["cmdline"],
        **{
            name: seen["said"][name]
            for name in ("submit", "watch", "status", "runs", "careless watch")
        },
        "without a server": seen["said"]["without a server"],
    }
    for name, text in quiet.items():
        assert [canary for canary in CONTENTS if canary in text] == [], name
        assert text, name

    # A client that asks for them gets them, with the reason why a branch failed.
    assert f"cannot do '{PROMPT} {DOCUMENT} refused' for Bearer [key]" in seen["said"]["errors"]
    assert "[key] and redis://:[key]@127" in seen["said"]["careless errors"]
    assert ANSWER in seen["out"]
    for kind in ("task-failed", "task-received", "task-started", "task-succeeded"):
        assert kind in seen["events"]
    assert "TaskPool: Apply" in seen["log"], "the worker said all it could"
    assert "the key is [key] and redis://:[key]@127" in seen["log"]
