"""The ``fanout`` command: its subcommands, and how errors become exit statuses.

Exit status: 0 the run met its policy, 1 it did not or something else failed, 2 wrong usage or
input, 130 interrupted, 141 standard output was closed before all was written.
"""

from __future__ import annotations

import errno
import gc
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.exits import CLOSED_PIPE, FAILURE, INTERRUPTED, USAGE, mute_stdout
from fanout.core.errors import (
    AmbiguousRunError,
    FanoutError,
    InputError,
    ModelError,
    SettingsError,
    SpecError,
)
from fanout.system.own_program import mark_own_program
from fanout.system.terminal import indented, print_error, print_line, print_text

if TYPE_CHECKING:
    from types import TracebackType

    from click.shell_completion import CompletionItem

__all__ = ["main"]

# Net new objects before a collection. With Python's own number, a tenth of the time of a short command goes
# into looking for garbage among the modules that it loads.
_YOUNG_OBJECTS = 10_000

# The commands as `--help` lists them: where each is, and what it does. Each is imported when it is
# used: `--help` should not load Celery.
_GROUPS = {
    "Jobs": {
        "run": ("run:run", "Run a job and print its answer."),
        "eval": ("evaluate:command", "Run a job with labels, and print how good the answers are."),
        "explain": ("explain:command", "Draw what a job does, and what it would use."),
        "estimate": ("estimate:command", "Say what a job would use and cost, without a call."),
        "trial": ("trial:command", "Run a random sample of a job, and project the rest."),
        "submit": ("run:submit", "Submit a job to a fleet and return."),
        "results": ("inspect_runs:results", "Print or write what a run has given."),
    },
    "Look": {
        "status": ("inspect_runs:status", "Say where a run is."),
        "watch": ("watch:command", "Follow a run, or the whole fleet."),
        "runs": ("inspect_runs:runs", "List the runs, the newest first."),
        "errors": ("inspect_runs:errors", "List the failed branches of a run."),
        "show": ("show:command", "Print one branch with its prompts and answers."),
        "report": ("inspect_runs:report", "Write a run as one web page."),
        "workers": ("inspect_runs:workers", "List the queues, and the workers with their load."),
    },
    "Steer": {
        "cancel": ("control_runs:cancel", "Stop a run, and keep what has finished."),
        "pause": ("control_runs:pause", "Let no further call of a run begin."),
        "unpause": ("control_runs:unpause", "Let a paused run go on."),
        "retry": ("control_runs:retry", "Process the failed branches of a run again."),
        "resume": ("control_runs:resume", "Enqueue the rest of a run whose client died."),
        "delete": ("control_runs:delete", "Forget a run and all its records."),
    },
    "Operate": {
        "worker": ("worker:worker", "Process branches for a fleet."),
        "flower": ("worker:flower", "Serve a page that shows a fleet at work."),
        "metrics": ("metrics:command", "Serve the fleet's figures to Prometheus."),
        "setup-server": ("operate:setup_server", "Load what a server with ACL users needs."),
        "cache": ("cache:command", "Say what kept answers take and save, or delete them."),
        "doctor": ("operate:doctor", "Say what is wrong with server and fleet."),
        "probe": ("operate:probe", "Say whether this machine's workers take messages."),
        "heal": ("operate:heal", "Look for what got lost, and do it again."),
        "completion": ("completion:command", "Have the shell complete what you type."),
    },
}
_COMMANDS = {name: found for group in _GROUPS.values() for name, found in group.items()}
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# The errors of a device or a terminal that is full or gone.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class _Commands(click.Group):
    """A group that knows its commands by name, and loads the one that is called."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader has read enough. Click would end this process with 1.
            mute_stdout()
            return CLOSED_PIPE

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_COMMANDS)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = (name for name in self.list_commands(ctx) if name.startswith(incomplete))
        items = [CompletionItem(name, help=_COMMANDS[name][1]) for name in found]
        # Not the group's own, which would import each command to ask it for its help.
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"fanout.cli.{module}"), name)
        _tame_logs()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name in _COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = get_close_matches(name, _COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `fanout --help` lists them"
        raise click.UsageError(f"there is no command {name!r}{hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if wanted and not ctx.resilient_parsing:
        from importlib import metadata

        print_line(f"fanout {metadata.version('fanout-llm')}")
        ctx.exit()


@click.command(cls=_Commands, context_settings=_CONTEXT)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Ask an LLM the same question about very many documents, and get one answer at the end."""


def _tame_logs() -> None:
    """Print the warnings of libraries as all other output, unless a log is set up."""
    if "logging" not in sys.modules:
        return
    import logging

    class Harmless(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return indented(super().format(record))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Harmless())


def _show(error: click.ClickException) -> None:
    """Print in one line what is wrong with the usage, in click's words; or the help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print_text(error.format_message(), err=True)
        return
    message = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    # The group's own error names the help already.
    is_of_command = context is not None and context.parent is not None
    hint = f" (see `{context.command_path} --help`)" if context and is_of_command else ""
    print_error(f"{message}{hint}")


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error."""
    import traceback

    text = "".join(traceback.format_exception(kind, error, trace))
    print_text(text.rstrip("\n"), err=True)


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    sys.excepthook = _fail
    mark_own_program()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    try:
        status = cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except click.ClickException as error:
        _show(error)
        status = USAGE
    except FanoutError as error:
        print_error(_words(error))
        status = _status(error)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        mute_stdout()
        print_error(f"cannot print: {error.strerror}")
        status = FAILURE
    # The process ends: to look for garbage among all its modules first takes a tenth of a second.
    gc.freeze()
    sys.exit(status or 0)


# Options that are not called like the setting that they give.
_OPTIONS = {"worker_name": "name"}


def _words(error: FanoutError) -> str:
    """Return what an error says, about an argument as it is spelled here."""
    if isinstance(error, SettingsError) and error.argument is not None:
        option = _OPTIONS.get(error.argument, error.argument.replace("_", "-"))
        return f"--{option}: {error.reason}"
    return str(error)


def _status(error: FanoutError) -> int:
    at_fault = isinstance(error, (AmbiguousRunError, InputError, SpecError, SettingsError))
    is_setup = isinstance(error, ModelError) and error.kind in {None, "auth"}
    return USAGE if at_fault or is_setup else FAILURE
