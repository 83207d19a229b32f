"""The environments of the programs that fanout is compared with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = [
    "CURATOR_PYTHON",
    "DOCUMENTS_PYTHON",
    "PYTHON",
    "PY_SPY",
    "install",
    "install_documents",
]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
PYTHON = _ROOT / ".venv-peers/bin/python"
PY_SPY = _ROOT / ".venv-peers/bin/py-spy"
CURATOR_PYTHON = _ROOT / ".venv-curator/bin/python"
DOCUMENTS_PYTHON = _ROOT / ".venv-documents/bin/python"


def install() -> None:
    """Install peers that are missing or differ from their list of requirements."""
    _set_up()


def install_documents() -> None:
    """Install what makes documents, and what reads them beside fanout."""
    _set_up("documents")


def _set_up(*names: str) -> None:
    command = ["sh", str(_HERE / "setup-peers"), *names]
    subprocess.run(command, check=True, stdout=sys.stderr)
