"""Where what fanout is compared with is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["CURATOR_PYTHON", "PYTHON", "PY_SPY", "install"]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
PYTHON = _ROOT / ".venv-peers/bin/python"
PY_SPY = _ROOT / ".venv-peers/bin/py-spy"
CURATOR_PYTHON = _ROOT / ".venv-curator/bin/python"


def install() -> None:
    """Install the peers where they are missing, or are not what the lists of them say."""
    subprocess.run(["sh", str(_HERE / "setup-peers")], check=True, stdout=sys.stderr)  # noqa: S607
