"""A worker as a process: ``python -m workers -A workers.app worker``, Celery's words after that.

It is `celery -A workers.app worker` and nothing else. The ``celery`` command first loads all its
commands, and those that other packages add to it, such as Flower: that takes longer than all that
a worker needs. What is left out is that; the worker, its options and its exit status are Celery's.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback

from fanout.core.errors import SettingsError
from fanout.system.terminal import print_error, print_line

__all__ = ["main"]

_COMMAND = ["-A", "workers.app", "worker"]
_USAGE = 2


def main() -> None:
    """Run the worker that this process's command line describes, and exit with its status."""
    words = sys.argv[1:]
    begin = words.index("worker") + 1 if "worker" in words else 0
    wishes = {"--quiet": False, "--broker-url-from-stdin": False}
    given = words[: max(0, begin - len(_COMMAND))]
    if words[begin - len(_COMMAND) : begin] != _COMMAND or not wishes.keys() >= set(given):
        print_line("usage: python -m workers [--quiet] -A workers.app worker [OPTION...]", err=True)
        sys.exit(_USAGE)
    wishes.update(dict.fromkeys(given, True))
    # By this Celery starts again on SIGHUP; with the file's name, it would not find the package.
    sys.argv[0] = "-mworkers"
    # Modules stay: the collector need not look at them, while they are loaded and ever after.
    gc.disable()
    run = _run_embedded if wishes["--broker-url-from-stdin"] else _run
    run(words[begin:], is_quiet=wishes["--quiet"])


def _run_embedded(options: list[str], *, is_quiet: bool) -> None:
    """Run a client's own worker: a status tells its guard if it ends before it has started."""
    ready = threading.Event()
    try:
        _take_url()
        from celery.signals import worker_ready

        worker_ready.connect(lambda **_: ready.set(), weak=False)
        _run(options, is_quiet=is_quiet)
    except BaseException as error:
        if ready.is_set() or (isinstance(error, SystemExit) and error.code in {None, 0, _USAGE}):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)


def _run(options: list[str], *, is_quiet: bool) -> None:
    from celery.bin.base import CLIContext
    from celery.bin.worker import worker

    try:
        from workers.app import app
    except SettingsError as error:
        print_error(str(error))
        sys.exit(_USAGE)
    gc.freeze()
    gc.enable()
    # As what comes before a command of Celery's says it: its variables are those of the command.
    context = CLIContext(
        app=app, no_color=bool(os.environ.get("NO_COLOR")), workdir=None, quiet=is_quiet
    )
    worker.main(options, prog_name="celery worker", obj=context, auto_envvar_prefix="CELERY_WORKER")


def _take_url() -> None:
    """Set the broker's URL, which the guard sends once the server has started."""
    # All that takes long, while the server starts.
    from celery.bin import worker  # noqa: F401

    from workers import config  # noqa: F401
    from workers.telemetry import logs  # noqa: F401

    url = sys.stdin.readline().strip()
    if not url:
        # The parent process is gone; without a URL the worker would look for another server.
        print_error("no broker's URL came from standard input")
        sys.exit(_USAGE)
    os.environ["FANOUT_BROKER_URL"] = url
    threading.Thread(target=_end_with_keeper, name="keeper", daemon=True).start()


def _end_with_keeper() -> None:
    """Stop, as on SIGTERM, when the parent that sent the server's URL closes its pipe."""
    # Not by sys.stdin, whose lock a thread must not hold when the process ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
