"""Virtual environments with only what a user installs, without development packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout.llm.assets import locked
from tests.needs import skip_or_fail

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LeanEnvironment", "base", "with_extra"]

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "ops/docker/requirements-runtime.lock"
# What pip prints if it cannot reach an index, as opposed to an error in the lock.
_NO_INDEX = ("Max retries", "Connection", "No matching distribution", "ProxyError", "timed out")


class LeanEnvironment:
    """A virtual environment made from a lock, with the wheel of this tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.fanout = folder / "bin" / "fanout"

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def environment(self, **env: str) -> dict[str, str]:
        """The environment of a user's command, without the tests' own environment."""
        # Nothing is compiled when it is installed: the first process that imports a module keeps its
        # bytecode for the others, which would take 4 s of CPU each to compile it again.
        dropped = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
        mine = {name: value for name, value in os.environ.items() if name not in dropped}
        return {**mine, "PATH": f"{self.folder / 'bin'}{os.pathsep}{mine['PATH']}", **env}

    def install(self, *words: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        _pip([*pip, "--no-deps", "--no-compile", *words])


def _pip(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        if any(words in done.stderr for words in _NO_INDEX):
            skip_or_fail(f"no package index: {last}")
        pytest.fail(done.stderr[-2_000:])


def base(shared: Path) -> LeanEnvironment:
    """Return the environment of the runtime lock, made once for all test processes."""

    def fill(made: LeanEnvironment) -> None:
        made.install(*_locked(RUNTIME))
        made.install("--no-index", str(_wheel(shared)))

    return _made(shared / "lean", fill)


def with_extra(shared: Path, lock: Path, name: str) -> LeanEnvironment:
    """Return an environment with the runtime lock's packages and the others of ``lock``."""
    below = base(shared)

    def fill(made: LeanEnvironment) -> None:
        more = shared / f"{name}.lock"
        known = set(_pins(RUNTIME))
        more.write_text("".join(text for pin, text in _pins(lock).items() if pin not in known))
        made.install(*_locked(more))
        (made.packages / "runtime.pth").write_text(f"{below.packages}\n")
        program = below.fanout.read_text().replace(str(below.folder), str(made.folder))
        made.fanout.write_text(program)
        made.fanout.chmod(0o755)

    return _made(shared / f"lean-{name}", fill)


def _made(folder: Path, fill: Callable[[LeanEnvironment], None]) -> LeanEnvironment:
    made = LeanEnvironment(folder)
    is_done = folder.with_suffix(".made")
    with locked(folder.with_suffix(".lock")):
        if not is_done.exists():
            venv.create(folder, with_pip=False, clear=True)
            fill(made)
            is_done.touch()
    return made


def _wheel(shared: Path) -> Path:
    folder = shared / "wheel"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    _pip([*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)])
    return next(folder.glob("*.whl"))


def _locked(lock: Path) -> list[str]:
    return ["--only-binary", ":all:", "--require-hashes", "--requirement", str(lock)]


def _pins(lock: Path) -> dict[str, str]:
    """Return each pinned version of a lock with its hashes."""
    parts = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)
    return {part.split(" ")[0]: part for part in parts if "==" in part}
