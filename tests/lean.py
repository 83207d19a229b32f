"""Virtual environments with only what a user installs, without development packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
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
# What `make` installs for the tests.
TESTED = ROOT / "requirements.lock"
_HASH = re.compile(r"--hash=(\S+)")
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
        # What pip installs is not compiled: the first process that imports a module keeps its bytecode
        # for the others, which would take 4 s of CPU each to compile it again.
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
        _install(made, shared / "runtime.lock", _pins(RUNTIME))
        made.install("--no-index", str(_wheel(shared)))

    return _made(shared / "lean", fill)


def with_extra(shared: Path, lock: Path, name: str) -> LeanEnvironment:
    """Return an environment with the runtime lock's packages and the others of ``lock``."""
    below = base(shared)

    def fill(made: LeanEnvironment) -> None:
        known = _pins(RUNTIME)
        more = {pin: text for pin, text in _pins(lock).items() if pin not in known}
        _install(made, shared / f"{name}.lock", more)
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


def _install(made: LeanEnvironment, lock: Path, pins: dict[str, str]) -> None:
    """Install what is pinned. What these tests' environment has of it, to the hash, is linked from there."""
    tested = _pins(TESTED)
    rest = {
        pin: text
        for pin, text in pins.items()
        if _hashes(text) != _hashes(tested.get(pin, "")) or not _link(made, *pin.split("=="))
    }
    if rest:
        lock.write_text("".join(rest.values()))
        made.install(*_locked(lock))


def _link(made: LeanEnvironment, name: str, version: str) -> bool:
    """Link the files of a package; returns whether this version of it is installed here."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    if found.version != version:
        return False
    for file in found.files or ():
        source = Path(str(found.locate_file(file)))
        # Programs name the interpreter that they are for. Nothing here calls one.
        if file.parts[0] == ".." or not source.exists():
            continue
        target = made.packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copy2(source, target)
    return True


def _wheel(shared: Path) -> Path:
    folder = shared / "wheel"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    _pip([*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)])
    return next(folder.glob("*.whl"))


def _locked(lock: Path) -> list[str]:
    return ["--only-binary", ":all:", "--require-hashes", "--requirement", str(lock)]


def _hashes(text: str) -> set[str]:
    return set(_HASH.findall(text))


def _pins(lock: Path) -> dict[str, str]:
    """Return each pinned version of a lock with its hashes."""
    parts = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)
    return {part.split(" ")[0]: part for part in parts if "==" in part}
