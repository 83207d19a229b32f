"""``fanout completion``: what a shell needs to complete commands, options and run ids."""

from __future__ import annotations

import re
import threading
import time
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from fanout.system.terminal import print_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.client.embedded_runs import EmbeddedRuns
    from fanout.core.state import RunRecord

__all__ = ["command", "complete_files", "complete_run"]

_SHELLS = ("bash", "zsh", "fish")
# Completion does not wait for an unreachable server.
_PATIENCE_S = 1.0
_SHOWN = 50
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_EPILOG = """\b
bash:  eval "$(fanout completion bash)" in ~/.bashrc
zsh:   eval "$(fanout completion zsh)" in ~/.zshrc, behind compinit
fish:  fanout completion fish > ~/.config/fish/completions/fanout.fish"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that has a SHELL complete commands, options and run ids."""
    found = get_completion_class(shell)
    if found is None:  # pragma: no cover - click has all three
        raise click.UsageError(f"{shell} is not known to click")
    root = ctx.find_root()
    completion = found(root.command, {}, "fanout", "_FANOUT_COMPLETE")
    # Not the class's own: that of bash wants to know first which bash there is on this machine.
    print_text(ShellComplete.source(completion), is_data=True)


def complete_files(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Have the shell complete the names of files."""
    return [CompletionItem(incomplete, type="file")]


def complete_run(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the runs whose ids begin so, the newest first; none where no server answers soon."""
    found: list[RunRecord] = []
    # No error may print a traceback into the shell's prompt.
    with suppress(Exception):
        # To import what reads them takes long on a busy machine, but always ends.
        read = _reader(ctx.params.get("broker_url"))

        def look() -> None:
            with suppress(Exception):
                found.extend(read(incomplete))

        # Not even for a name that no name server resolves: nothing else bounds that.
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)
    # A shell puts it into its command line.
    harmless = (run for run in found if _ID.fullmatch(run.run_id))
    return [CompletionItem(run.run_id, help=_about(run)) for run in harmless]


def _reader(broker_url: str | None) -> Callable[[str], list[RunRecord]]:
    """Return what reads the runs whose ids begin with a prefix; nothing is connected yet."""
    from fanout.core.settings import load_settings

    settings = load_settings(broker_url=broker_url)
    if settings.broker_url is None:
        from fanout.client.embedded_runs import EmbeddedRuns

        return partial(_embedded_runs, EmbeddedRuns)
    from fanout.stores import RedisStore, connect

    url, ca_file, key_prefix = settings.broker_url, settings.broker_ca_file, settings.key_prefix

    def runs(prefix: str) -> list[RunRecord]:
        client = connect(url, ca_file=ca_file, timeout_s=_PATIENCE_S)
        with closing(RedisStore(client, prefix=key_prefix)) as store:
            return list(islice(store.runs(prefix), _SHOWN))

    return runs


def _embedded_runs(all_runs: Callable[[], EmbeddedRuns], prefix: str) -> list[RunRecord]:
    with closing(all_runs()) as runs:
        return list(islice(runs.records(prefix), _SHOWN))


def _about(run: RunRecord) -> str:
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
    return f"{run.status.value}, of {created}"
