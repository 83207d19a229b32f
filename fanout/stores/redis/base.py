"""The base of the Redis store: client, scripts, errors, and the names of keys.

Keys under ``{prefix}:run:{id}``, besides the run's own hash:

* ``:sN``: a stage (a hash); ``:sN:open``, ``:sN:draining``: its shards in flight;
* ``:sN:sizes``: first index and count of each shard, and which of several reduces wrote it;
  ``:sN:reopened``: shards that a retry has reset;
* ``:sN:groups``, ``:sN:plan``, ``:sN:parts``, ``:sN:owners``, ``:sN:leases``: see
  fanout.stores.redis.groups;
* ``:sN:M:in``: the input of shard M; ``:live`` and ``:state``: its outcomes and its deliveries while
  it is processed, ``:checkpoints``: how far its branches of several calls are, and what batches have
  answered; ``:out``: its outcomes once it is finished;
* ``:result``: the aggregate; ``:result:W:N``: piece N of what it leaves out, as attempt W wrote it;
  ``:result:writers``: how many pieces each attempt has written;
* ``:parked``: branches to publish when a paused run goes on;
* ``:gathered``, ``:batches``: see fanout.stores.redis.gathered;
* ``:permits``: the permits of each worker process, if the run has ``max_workers``;
* ``:budget``: what is spent of the run's budget and held by each worker process, if it has one;
  ``:budget:held``: what its calls in batches may use;
* ``:deleted``: the mark of a run that is being deleted; ``:passages``: the indexes that it has used.

Under ``{prefix}:run:passages-...`` are the indexes of passages: see fanout.stores.redis.passages.

``:in``, ``:out`` and ``:result`` hold the blob itself or a reference to a file: see
fanout.stores.blobs. Keys under ``{prefix}``:

* ``:runs``: all runs by age; ``:active``: those that have not ended, or whose deletion has not;
* ``:totals``: the counters of workers; ``:run-totals``: those of submitted and ended runs;
* ``:limits``: the use of models' rate limits; ``:workers``: the workers with the time until which
  they count as alive; ``:worker-records``: their records; ``:holders``: the holders of claims;
* ``:token-sums``: how many tokens models make of texts; ``:cut-ratios``: what texts were last cut by;
* ``:stored``: the runs with files, with their roots; ``:inputs``: the same for inputs, by clients;
* ``:prefix:KEY``: a prefix of prompts with which a call is under way, or has been answered;
* ``:storages``: the ids of storages by root; ``:noted-storages``: those that clients have noted;
* ``:budget:NAME``, ``:budget-held:NAME``: the same for a budget of the fleet for a day;
* ``:wire``: the fleet's wire version; ``:wire:holders``: the processes that use it.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
)
from redis.sentinel import MasterNotFoundError

from fanout.core.errors import BrokerError, UnknownRunError
from fanout.core.exhaustion import is_exhausted
from fanout.stores.blobs import Blobs
from fanout.stores.connection import address_of
from fanout.stores.retrying import is_transient, lacks_rights, server_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fanout.core.ids import BranchId, ShardId, StageId

__all__ = ["RedisBase", "or_empty", "run_keys", "seconds", "translated"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MOST_WORDS = 120


def run_keys(prefix: str) -> str:
    """Return the prefix of a run's key; its id follows."""
    return f"{prefix}:run:"


def seconds(time: tuple[int, int]) -> float:
    """Return the server's time in seconds since the epoch."""
    return time[0] + time[1] / 1e6


def or_empty(value: float | None) -> float | str:
    """Return an argument of a script, which has no None."""
    return "" if value is None else value


def translated(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Convert the client's errors to BrokerError, with a message that a user can act on."""

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except RedisError as error:
            if error.args:
                # A pipeline's error has the command: it may contain a prompt, and logs show it.
                error.args = (server_message(error), *error.args[1:])
            message = _explain(cast("RedisBase", args[0]), error)
            is_refusal = not isinstance(error, (redis.ConnectionError, redis.TimeoutError))
            raise BrokerError(
                message, is_passing=is_transient(error), is_refusal=is_refusal
            ) from error
        except (OSError, RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            # Opening a connection needs file descriptors and threads; running out raises these errors.
            message = f"this process has nothing left to ask the broker with: {error!r}"
            raise BrokerError(message, is_passing=True) from error

    return call


def _explain(store: RedisBase, error: RedisError) -> str:
    text = str(error)
    if isinstance(error, MasterNotFoundError):
        # The rest describes redis-py's own objects.
        text = text.partition(" : <")[0]
    if isinstance(error, AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return (
            f"the broker at {store.address} refuses the credentials; check the user and password "
            "in FANOUT_BROKER_URL (redis://user:password@host:port/0)"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"the certificate of the broker at {store.address} is not to be trusted ({text}); set "
            "FANOUT_BROKER_CA_FILE to the CA's certificate, and check the host's name in the URL"
        )
    # redis-py counts a server that loads its data among those without an answer.
    is_away = isinstance(error, (redis.ConnectionError, redis.TimeoutError))
    if is_away and type(error) not in _CODES:
        if store.is_embedded:
            return f"no server answers at {store.address} ({text}); an embedded one is started anew"
        return (
            f"no broker answers at {store.address} ({text}); start a Redis server there, or set "
            "FANOUT_BROKER_URL or --broker-url to one"
        )
    if text.startswith(("OOM", "command not allowed when used memory")):
        return (
            f"the broker at {store.address} is full (maxmemory is reached) and refuses what takes "
            "room; raise maxmemory, or delete runs (fanout delete)"
        )
    return _refused(store.address, text, error)


def _refused(address: str, text: str, error: RedisError) -> str:
    code = _CODES.get(type(error))
    for begin, advice in _REFUSALS.items():
        if begin == code or text.startswith(begin):
            return f"the broker at {address} refuses writes: {advice} ({_first_line(text)})"
    if lacks_rights(error):
        return (
            f"the broker at {address} does not let its user do this ({_first_line(text)}): give "
            "the user in FANOUT_BROKER_URL the rights that docs/security.md lists"
        )
    return f"the broker at {address} refused a command: {text}"


# redis-py takes the code off the messages of errors for which it has a class.
_CODES = {
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    BusyLoadingError: "LOADING",
}
# How the server's message begins, and the advice for it.
_REFUSALS = {
    "MISCONF": "it cannot save to its disk, which is full or broken: free some, see its log",
    "NOREPLICAS": "too few replicas are connected: start them, or lower min-replicas-to-write",
    "BUSY": "a script does not end: SCRIPT KILL (or FUNCTION KILL) ends it",
    "UNKILLABLE": "a script that has written does not end: wait for it, or restart the server",
    "READONLY": "it is a replica: give the master's address, or sentinel:// to follow it",
    "MASTERDOWN": "it is a replica without its master: give the master's address",
    "LOADING": "it is loading its data: wait until it has",
}


def _first_line(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _MOST_WORDS else f"{line[:_MOST_WORDS]}..."


class RedisBase:
    """The client, scripts and keys of a store on a server."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "fanout",
        ttl_s: int = 604_800,
        blobs: Blobs | None = None,
    ) -> None:
        self._redis = client
        self._blobs = blobs or Blobs()
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._scripts: dict[str, Any] = {}
        self._active = f"{prefix}:active"
        self._limits = f"{prefix}:limits"
        self._totals = f"{prefix}:totals"
        self._run_totals = f"{prefix}:run-totals"
        self._holders = f"{prefix}:holders"
        self._stored = f"{prefix}:stored"
        self._storages = f"{prefix}:storages"
        self._inputs = f"{prefix}:inputs"
        self._noted_storages = f"{prefix}:noted-storages"
        self._wire = f"{prefix}:wire"
        # Not ``:tokens``: the sums there may have counts that no call has.
        self._tokens = f"{prefix}:token-sums"
        self._cut_ratios = f"{prefix}:cut-ratios"

    @property
    def address(self) -> str:
        """The server's address, without credentials."""
        return address_of(self._redis)

    def _call(self, script: str, keys: Sequence[str], args: Iterable[Any], pipe: Any = None) -> Any:
        """Run a Lua script on the server; add it to a pipeline, if there is one."""
        if script not in self._scripts:
            self._scripts[script] = self._redis.register_script(script)
        return self._scripts[script](keys=keys, args=args, client=pipe)

    @property
    def is_embedded(self) -> bool:
        """Whether the server is an embedded one, at a socket of this machine."""
        return self.address.startswith("/")

    def _run(self, run_id: str) -> str:
        return f"{run_keys(self._prefix)}{run_id}"

    def _stage(self, of: StageId | ShardId | BranchId) -> str:
        return f"{self._prefix}:run:{of.run_id}:s{of.stage}"

    def _shard(self, of: ShardId | BranchId, part: str) -> str:
        return f"{self._prefix}:run:{of.run_id}:s{of.stage}:{of.shard}:{part}"

    def _require(self, run_id: str, is_there: object) -> None:
        """Raise UnknownRunError if a script found no such run."""
        if not is_there:
            raise UnknownRunError(run_id)

    def _shard_keys(self, of: ShardId | BranchId) -> list[str]:
        return [self._shard(of, part) for part in ("live", "out", "state")]
