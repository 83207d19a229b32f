"""The process of the local model: ``python -m fanout.llm.local_server WEIGHTS FOLDER``.

It serves until no process holds the lock of its users any more.
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
from fanout.system.cores import model_threads, usable_cores

__all__ = ["main"]

# Slots share a batch, which is what makes small calls cheap; four fill two cores.
_SLOTS = 4
# A tiny model repeats itself until it is cut off: at llama.cpp's defaults 7 of 18 answers were cut
# off at 1,024 tokens, with these 1 of 90. A request that names a temperature keeps its own.
_TEMPERATURE = 0.2
_REPEAT_PENALTY = 1.1
_FREQUENCY_PENALTY = 0.3
_PENALTY_TOKENS = 256
_LOOK_S = 1.0


def main(weights: Path, folder: Path) -> None:
    """Serve ``weights``; leave the address, and the key that is asked for, in ``folder``."""
    key = secrets.token_urlsafe(24)
    # From before it listens: nobody uses it without the key.
    server = xllamacpp.Server(_parameters(weights, key))
    address = folder / "local-server.json"
    unfinished = folder / f"local-server.json.{os.getpid()}"
    told = {"url": server.listening_address, "pid": os.getpid(), "key": key}
    with open(unfinished, "w", opener=_private) as file:
        file.write(json.dumps(told))
    alive = (folder / "local-server.alive").open("ab")
    with alive, (folder / "local-server.users").open("ab") as users:
        # For as long as this process lives; whoever looks whether it does, holds it for a moment.
        fcntl.flock(alive, fcntl.LOCK_EX)
        unfinished.replace(address)
        while not _is_unused(users.fileno()):
            time.sleep(_LOOK_S)
        # Whoever comes now waits for the lock, finds no address, and starts another.
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
    # Divided over the slots.
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
    # llama.cpp joins its threads slowly; nothing is left to do.
    os._exit(0)
