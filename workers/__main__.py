"""A worker as a process: ``python -m workers -A workers.app worker``, followed by Celery's options.

It does what ``celery -A workers.app worker`` does, without the time that the ``celery`` command takes
to load its other commands and those of packages such as Flower.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback

from fanout.core.errors import SettingsError
from fanout.system.own_program import mark_own_program
from fanout.system.terminal import print_error, print_line

__all__ = ["main"]

_COMMAND = ["-A", "workers.app", "worker"]
_QUIET, _URL_FROM_STDIN = "--quiet", "--broker-url-from-stdin"
_USAGE = 2


def main() -> None:
    """Run the worker that this process's command line describes, and exit with its status."""
    words = sys.argv[1:]
    begin = words.index("worker") + 1 if "worker" in words else 0
    own = set(words[: max(0, begin - len(_COMMAND))])
    if words[begin - len(_COMMAND) : begin] != _COMMAND or own - {_QUIET, _URL_FROM_STDIN}:
        print_line("usage: python -m workers [--quiet] -A workers.app worker [OPTION...]", err=True)
        sys.exit(_USAGE)
    # Celery restarts with these arguments on SIGHUP; with the file's name, it would not find the package.
    sys.argv[0] = "-mworkers"
    # Modules stay, so the garbage collector need not look at them while they are loaded, or later.
    gc.disable()
    mark_own_program()
    run = _run_embedded if _URL_FROM_STDIN in own else _run
    run(words[begin:], is_quiet=_QUIET in own)


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
    # As the ``celery`` command makes it from its own options and variables.
    context = CLIContext(
        app=app, no_color=bool(os.environ.get("NO_COLOR")), workdir=None, quiet=is_quiet
    )
    worker.main(options, prog_name="celery worker", obj=context, auto_envvar_prefix="CELERY_WORKER")


def _take_url() -> None:
    """Set the broker's URL, which the guard sends once the server has started."""
    # Load the slow modules while the server starts.
    from celery.bin import worker  # noqa: F401

    from workers import config  # noqa: F401
    from workers.telemetry import logs  # noqa: F401

    url = sys.stdin.readline().strip()
    if not url:
        # The parent process has ended; without a URL the worker would use another server.
        print_error("no broker's URL came from standard input")
        sys.exit(_USAGE)
    os.environ["FANOUT_BROKER_URL"] = url
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """Stop, as on SIGTERM, when the parent that sent the server's URL closes its pipe."""
    # Do not read sys.stdin: a thread must not hold its lock when the process ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
