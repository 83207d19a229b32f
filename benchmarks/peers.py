"""The environments of the programs that fanout is compared with."""

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
    """Install peers that are missing or differ from their list of requirements."""
    subprocess.run(["sh", str(_HERE / "setup-peers")], check=True, stdout=sys.stderr)  # noqa: S607
