"""``fanout completion``: what a shell needs to complete commands, options and run ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["command", "complete_run"]

_SHELLS = ("bash", "zsh", "fish")
# Whoever presses Tab does not wait for a server that is away.
_PATIENCE_S = 1.0
_SHOWN = 50


@click.command("completion", epilog='For bash: eval "$(fanout completion bash)" in ~/.bashrc.')
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that has a SHELL complete commands, options and run ids."""
    found = get_completion_class(shell)
    if found is None:  # pragma: no cover - click has all three
        raise click.UsageError(f"{shell} is not known to click")
    root = ctx.find_root()
    click.echo(found(root.command, {}, "fanout", "_FANOUT_COMPLETE").source())


def complete_run(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the runs whose ids begin so, the newest first; none where no server answers."""
    from fanout.errors import FanoutError

    try:
        return list(_runs(ctx.params.get("broker_url"), incomplete))
    except FanoutError:
        return []


def _runs(broker_url: str | None, incomplete: str) -> Iterator[CompletionItem]:
    from fanout.settings import load_settings
    from fanout.stores import RedisStore, connect

    settings = load_settings(broker_url=broker_url)
    if settings.broker_url is None:
        return
    store = RedisStore(
        connect(settings.broker_url, ca_file=settings.broker_ca_file, timeout_s=_PATIENCE_S),
        prefix=settings.key_prefix,
    )
    try:
        found = [run_id for run_id in store.run_ids() if run_id.startswith(incomplete)]
        for run_id in found[:_SHOWN]:
            yield CompletionItem(run_id, help=store.run(run_id).status.value)
    finally:
        store.close()
