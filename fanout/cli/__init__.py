"""The command line."""

from fanout.cli.main import main

__all__ = ["main"]
