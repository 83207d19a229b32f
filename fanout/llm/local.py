"""The local model: one llama.cpp server per user and machine, started by its first user process."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from typing import IO, TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm.assets import WEIGHTS, fetch, has_runtime, library_folder, locked, weights_folder
from fanout.llm.base import Token
from fanout.llm.grammars import LABEL_LEAD, label_end_grammar
from fanout.llm.openai import OpenAILLM

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.core.strict_schema import Dialect
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.http_model import Form

__all__ = ["LocalLLM", "LocalServer"]

# Half of the context. A longer answer of a tiny model is only repetition.
_DEFAULT_MAX_TOKENS = 1024
# The penalties of the server count what stands in the prompt, such as labels, quotes and braces.
_UNPENALISED = {"repeat_penalty": 1.0, "frequency_penalty": 0.0}
# The token that ends an answer ends each message of the prompt, too, and so is penalised most of all: an
# answer that is whole would end with a probability of 0.27 in place of 0.69. With this it ends as it would
# without penalties, and sooner where the prompt is farther away than the penalties reach.
_END_TOKEN = 2
_UNPENALISED_END = {"logit_bias": [[_END_TOKEN, 2.0]]}
_START_S = 60.0
_LOG_TAIL = 500


class _LlamaCpp(OpenAILLM):
    """A model behind llama.cpp's server, which enforces shapes by grammar."""

    _dialect: Dialect = "llama"

    async def complete(self, request: LLMRequest) -> LLMReply:
        """See LLM."""
        reply = await super().complete(request)
        if not reply.tokens or request.shape is None or not request.shape.choices:
            return reply
        # The text of the reply has what was begun, its tokens do not.
        begun = Token(LABEL_LEAD.encode(), 0.0)
        return msgspec.structs.replace(reply, tokens=(begun, *reply.tokens))

    def _body(self, request: LLMRequest, form: Form) -> bytes:
        body = super()._body(request, form)
        if request.shape is None:
            return msgspec.json.encode({**msgspec.json.decode(body), **_UNPENALISED_END})
        fields: dict[str, Any] = {**msgspec.json.decode(body), **_UNPENALISED}
        if request.shape.choices:
            # The server goes on with the answer that is begun: the label costs two or three tokens, and
            # stands where the model expects one.
            fields.pop("response_format", None)
            fields["messages"].append({"role": "assistant", "content": LABEL_LEAD})
            fields["grammar"] = label_end_grammar(request.shape.choices)
        return msgspec.json.encode(fields)


class LocalLLM:
    """SmolLM2-135M-Instruct on this machine's CPU: real, small, and often wrong.

    Args:
        cache_dir: The folder of the weights and of the shared server's address.
        concurrency: Connections that may be open at once.

    Raises:
        ModelError: The extra is not installed.
    """

    def __init__(self, cache_dir: Path, *, concurrency: int = 32) -> None:
        if not has_runtime():
            raise ModelError("the local model needs an extra: pip install 'fanout-llm[local]'")
        self._cache_dir = cache_dir
        self._concurrency = concurrency
        self._server = LocalServer(cache_dir)
        self._client: _LlamaCpp | None = None
        self._lock = asyncio.Lock()

    @property
    def identity(self) -> str:
        """See ``fanout.llm.base.identity_of``."""
        return f"local {WEIGHTS.sha256}"

    def ends_by_chance(self, request: LLMRequest) -> bool:
        """See ``fanout.llm.base.ends_by_chance``. The same seed gives the same answer."""
        return request.seed is None and request.temperature != 0

    async def check(self) -> None:
        """See LLM. Downloads missing weights, and starts the server."""
        await self._connected()

    async def _connected(self) -> _LlamaCpp:
        async with self._lock:
            if self._client is None:
                url, key = await asyncio.to_thread(self._server.ensure)
                self._client = _LlamaCpp(
                    "local", concurrency=self._concurrency, base_url=f"{url}/v1", api_key=key
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

    async def _drop(self, client: _LlamaCpp) -> None:
        """Forget a server that no longer answers: the next call finds or starts another."""
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
    """This user's llama.cpp server on this machine.

    It listens on loopback, which other users of the machine can reach too. They lack its key, which
    is in a file that only this user can read.

    Each process that uses the server holds a shared lock on a file. The server stops when it gets
    that lock exclusively. The system drops the locks of a dead process, so the server stops even if
    its last user crashed.

    Args:
        cache_dir: The folder of the weights and of the server's address.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._folder = cache_dir / "run"
        self._user: IO[bytes] | None = None

    def ensure(self) -> tuple[str, str]:
        """Return the server's URL and its key; start it if it is not running.

        Raises:
            ModelError: The download of the weights fails, or the server does not start.
        """
        weights = fetch(WEIGHTS, weights_folder(self._cache_dir))
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._user is None:
            self._user = (self._folder / "local-server.users").open("ab")
            fcntl.flock(self._user, fcntl.LOCK_SH)
        with locked(self._folder / "local-server.start"):
            return self._running() or self._start(weights)

    def _running(self) -> tuple[str, str] | None:
        # A live server holds this lock. Without it the address is stale, and another user may
        # listen there now.
        if not _is_held(self._folder / "local-server.alive"):
            return None
        try:
            address = json.loads((self._folder / "local-server.json").read_text())
            url, key = str(address["url"]), str(address["key"])
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - loopback
                return url, key
        except (OSError, ValueError, KeyError):
            return None

    def _start(self, weights: Path) -> tuple[str, str]:
        log_path = self._folder / "local-server.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "fanout.llm.local_server", str(weights), str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                # The server outlives the worker that started it, and must not get its Ctrl-C.
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if process.poll() is not None:
                break
            running = self._running()
            if running is not None:
                # Reap the server when it ends, so that this process keeps no zombie.
                threading.Thread(target=process.wait, daemon=True).start()
                return running
            time.sleep(0.05)
        process.kill()
        process.wait()
        tail = log_path.read_text(errors="replace")[-_LOG_TAIL:].strip()
        raise ModelError(f"the local model's server did not start: {tail}")

    def _environment(self) -> dict[str, str]:
        folder = library_folder()
        if folder is None:
            return dict(os.environ)
        paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}

    def release(self) -> None:
        """Release the server: this process no longer needs it. Safe to call twice."""
        if self._user is not None:
            self._user.close()
            self._user = None


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
