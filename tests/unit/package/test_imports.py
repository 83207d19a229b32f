"""What starting loads: a command that only shows its help, a spec, a worker.

Of each it is asked what is loaded, and never how long that takes: a machine may be busy.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

# What takes long to load, by the name of the package.
BROKER = {"amqp", "celery", "kombu", "redis"}
PROVIDERS = {"aiohttp", "anthropic", "httpx", "httpx2", "litellm", "openai", "xllamacpp"}
MONITORS = {"click_repl", "flower", "opentelemetry", "prometheus_client", "tornado"}
HEAVY = {
    *BROKER,
    *PROVIDERS,
    *MONITORS,
    "jinja2",
    "numpy",
    "rich",
    "semantic_text_splitter",
    "valkey",
    "workers",
}
MODELS = {"pydantic", "pydantic_core", "pydantic_settings"}

BARE = {"fanout", "fanout.core", "fanout.core.errors", "fanout.system"}
BARE |= {"fanout.system.own_program", "fanout.system.terminal", "fanout.system.text_parts"}
BARE |= {"fanout.cli", "fanout.cli.exits", "fanout.cli.main"}

SAYS = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
CLI = "sys.argv[0] = 'fanout'; from fanout.cli import main; main()"


def loaded(code, *arguments, **env):
    """Return the modules that a process has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SAYS + code, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, **env},
    )  # fmt: skip
    return set(done.stderr.split())


def packages(modules):
    return {module.partition(".")[0] for module in modules}


def own(modules):
    return {module for module in modules if packages([module]) & {"fanout", "workers"}}


def test_the_package_alone_loads_nothing():
    modules = loaded("import fanout")
    assert own(modules) == {"fanout"}
    assert not packages(modules) & {*HEAVY, *MODELS, "asyncio", "click", "msgspec", "yaml"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_is_asked_of_the_command_alone_loads_no_subcommand(option):
    modules = loaded(CLI, option)
    assert own(modules) == BARE
    assert not packages(modules) & {*HEAVY, *MODELS, "asyncio", "msgspec", "yaml"}


def test_a_shell_completes_commands_without_loading_them():
    words = {"_FANOUT_COMPLETE": "zsh_complete", "COMP_WORDS": "fanout st", "COMP_CWORD": "1"}
    modules = loaded(CLI, **words)
    assert own(modules) == BARE


@pytest.mark.parametrize(
    "command", ["status", "watch", "results", "cancel", "doctor", "metrics", "report"]
)
def test_the_help_of_a_command_loads_no_models(command):
    assert not packages(loaded(CLI, command, "--help")) & {*HEAVY, *MODELS, "asyncio"}


def test_no_command_loads_more_than_it_has_to_say_of_itself():
    """The others have options that come from specs and settings: models, but nothing else."""
    code = """
from fanout.cli.main import _COMMANDS, cli
for name in _COMMANDS:
    assert cli.get_command(None, name).get_short_help_str()
"""
    modules = loaded(code)
    assert {"fanout.cli.run", "fanout.cli.worker", "fanout.cli.operate"} <= modules
    assert not packages(modules) & HEAVY


def test_a_command_hardly_looks_for_garbage_among_what_it_loads(tmp_path):
    says = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_stats(), file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", says + CLI, "runs"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "FANOUT_STATE_DIR": str(tmp_path)},
    )  # fmt: skip
    youngest, _, oldest = ast.literal_eval(done.stderr)
    assert youngest["collections"] < 100, "with Python's own threshold there are 164"
    assert oldest["collections"] == 0


def test_only_what_draws_on_a_terminal_loads_rich():
    code = """
import io
from fanout.cli.operate import _print_findings
from fanout.cli.inspect_runs import _print_table
from fanout.cli.progress import Progress
from fanout.doctor import Finding, State
from fanout.runs.status import Status
from fanout.core.records import RunStatus, Usage

class Terminal(io.StringIO):
    def isatty(self):
        return sys.argv[1] == "terminal"

fields = dict(total=9, done=1, succeeded=1, failed=0, errors={}, usage=Usage(), created_at=0.0)
status = Status(
    run_id="r", status=RunStatus.RUNNING, elapsed_s=1.0, stage=0, error=None, workers=1, **fields
)
sys.stdout = sys.stderr = Terminal()
Progress().show(status)
_print_table([(status, "m")], has_head=True)
_print_findings([Finding(check="x", state=State.OK, found="y")])
sys.stderr = sys.__stderr__
"""
    assert "rich.live" in loaded(code, "terminal", TERM="xterm")
    for where, term in [("pipe", "xterm"), ("terminal", "dumb")]:
        assert not packages(loaded(code, where, TERM=term)) & {"rich"}


@pytest.mark.parametrize("name", ["RunSpec", "Client", "ParallelCalls", "FakeLLM", "ErrorKind"])
def test_what_is_imported_from_the_package_is_loaded_without_a_broker(name):
    assert not packages(loaded(f"from fanout import {name}")) & HEAVY


def test_a_program_that_renders_no_report_loads_no_templates():
    assert not packages(loaded("from fanout.report import gather, write")) & HEAVY


def test_a_runner_loads_what_talks_to_a_broker_while_its_fleet_starts():
    code = """
import fanout.client.embedded.fleet

def start(self):
    raise SystemExit

fanout.client.embedded.fleet.EmbeddedFleet._start_guard = start
fanout.ParallelCalls(llm="fake").run(["a text"], "{input}")
raise AssertionError("it has not started a fleet")
"""
    modules = loaded(code, FANOUT_BROKER_URL="")
    assert "fanout.runs.enqueue" in modules
    assert not packages(modules) & HEAVY


def test_the_processes_of_an_embedded_fleet_load_what_they_need():
    guard = loaded("import fanout.client.embedded.guard")
    rooms = {"fanout", "fanout.client", "fanout.client.embedded"}
    locks = {"fanout.system", "fanout.system.file_locks"}
    assert own(guard) == rooms | locks | {"fanout.client.embedded.guard"}
    assert not packages(guard) & {*HEAVY, *MODELS, "asyncio", "msgspec"}
    keeper = loaded("import fanout.client.embedded.keeper")
    assert own(keeper) == rooms | {"fanout.client.embedded.keeper"}
    assert not packages(keeper) & {*HEAVY, *MODELS, "asyncio", "msgspec", "subprocess"}


def test_a_worker_loads_neither_other_commands_nor_providers():
    code = "import runpy; runpy.run_module('workers', run_name='__main__', alter_sys=True)"
    modules = loaded(code, "-A", "workers.app", "worker", "--help")
    assert {"workers.app", "celery.bin.worker", "redis"} <= modules
    assert not modules & {
        "celery.bin.celery",
        "workers.telemetry.spans",
        "workers.telemetry.flower",
    }
    assert not packages(modules) & {
        *PROVIDERS,
        *MONITORS,
        "numpy",
        "semantic_text_splitter",
        "valkey",
    }


def test_the_metrics_that_redis_py_looks_for_are_loaded_in_a_program_of_a_user_only():
    metrics = {"opentelemetry.metrics", "opentelemetry.sdk.metrics"}
    own_code = "from fanout.system.own_program import mark_own_program; mark_own_program()\n"
    assert metrics <= loaded("import fanout.stores")
    modules = loaded(own_code + "import fanout.stores")
    assert "redis" in modules
    assert "opentelemetry" not in packages(modules)
    later = loaded(f"{own_code}import fanout.stores, {', '.join(metrics)}")
    assert metrics <= later, "who needs them has them"


@pytest.mark.parametrize("module", ["fanout.broker.server_setup", "fanout.doctor.examination"])
def test_no_command_loads_redis_py_before_that_is_arranged(module):
    code = "from fanout.system.own_program import mark_own_program; mark_own_program()\n"
    modules = loaded(f"{code}import {module}")
    assert "redis" in modules
    assert "opentelemetry" not in packages(modules)


IN_THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor

sys.setswitchinterval(1e-6)
start = threading.Barrier(8)

def app(_):
    start.wait()
    from fanout.broker.app import make_app
    from fanout.core.settings import Settings
    return make_app(Settings()).main

with ThreadPoolExecutor(8) as threads:
    print(set(threads.map(app, range(8))))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_threads_may_load_celery_at_the_same_moment(attempt):
    """Celery and kombu replace their modules while they are loaded: an import meanwhile failed."""
    done = subprocess.run(
        [sys.executable, "-c", IN_THREADS], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{'fanout'}\n", "")
