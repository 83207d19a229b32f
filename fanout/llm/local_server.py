"""The process of the local model: ``python -m fanout.llm.local_server WEIGHTS FOLDER``.

It serves until no process holds the users' lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
import time
from pathlib import Path

import xllamacpp

from fanout.llm.registry import LOCAL_CONTEXT_TOKENS
from fanout.system.resources import model_threads, usable_cores

__all__ = ["main"]

# Slots share a batch, which makes small calls cheap; four slots use two cores fully.
_SLOTS = 4
# A tiny model repeats itself until the token limit. With llama.cpp's defaults, 7 of 18 answers
# reached the limit of 1,024 tokens; with these values, 1 of 90. The temperature of a request has
# precedence.
_TEMPERATURE = 0.2
_REPEAT_PENALTY = 1.1
_FREQUENCY_PENALTY = 0.3
_PENALTY_TOKENS = 256
_LOOK_S = 1.0


def main(weights: Path, folder: Path) -> None:
    """Serve ``weights``; write the address and the required key to ``folder``."""
    key = secrets.token_urlsafe(24)
    # The key is set before the server listens, so that nobody can use it without.
    server = xllamacpp.Server(_parameters(weights, key))
    address = folder / "local-server.json"
    unfinished = folder / f"local-server.json.{os.getpid()}"
    content = {"url": server.listening_address, "pid": os.getpid(), "key": key}
    with open(unfinished, "w", opener=_private) as file:
        file.write(json.dumps(content))
    alive = (folder / "local-server.alive").open("ab")
    with alive, (folder / "local-server.users").open("ab") as users:
        # Held while this process lives. Waits for a client that tests the lock, which takes a moment.
        fcntl.flock(alive, fcntl.LOCK_EX)
        unfinished.replace(address)
        while not _is_unused(users.fileno()):
            time.sleep(_LOOK_S)
        # A new client now waits for the lock, finds no address, and starts another server.
        address.unlink(missing_ok=True)


def _is_unused(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _parameters(weights: Path, key: str) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [key]
    parameters.n_parallel = _SLOTS
    # llama.cpp divides the context over the slots.
    parameters.n_ctx = _SLOTS * LOCAL_CONTEXT_TOKENS
    threads = model_threads(usable_cores())
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.sampling.temp = _TEMPERATURE
    parameters.sampling.penalty_repeat = _REPEAT_PENALTY
    parameters.sampling.penalty_freq = _FREQUENCY_PENALTY
    parameters.sampling.penalty_last_n = _PENALTY_TOKENS
    parameters.use_jinja = True
    parameters.ui = False
    parameters.warmup = False
    return parameters


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    # Exit at once: llama.cpp joins its threads slowly, and nothing is left to do.
    os._exit(0)
