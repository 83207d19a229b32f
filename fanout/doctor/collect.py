"""Collection of the facts: the only module of the doctor with I/O."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import tempfile
import time
from contextlib import closing
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from packaging.requirements import Requirement
from redis.exceptions import RedisError, ResponseError

from fanout.broker import app as broker
from fanout.broker.backlog import read_backlog
from fanout.broker.inspection import MessageReader
from fanout.broker.server_setup import count_missing
from fanout.client.embedded.fleet import EmbeddedFleet
from fanout.core.errors import BrokerError, EmbeddedError, ModelError, SettingsError
from fanout.core.records import RunStatus
from fanout.doctor.facts import (
    Connection,
    EmbeddedFacts,
    FleetFacts,
    MachineFacts,
    ModelFacts,
    ServerFacts,
    StorageFacts,
)
from fanout.llm import make_llm
from fanout.llm.assets import has_runtime, has_weights
from fanout.llm.batches.base import check_batches
from fanout.llm.user_code import check_llm, close_llm, run_apart
from fanout.observe.fleet import active_runs
from fanout.observe.probe import write_refusal
from fanout.stores import RedisStore, connect
from fanout.stores.blobs import check_storage, make_blobs
from fanout.stores.connection import address_of, is_loopback

if TYPE_CHECKING:
    from fanout.client.client import Client
    from fanout.core.settings import Settings
    from fanout.core.state import RunRecord

__all__ = [
    "Server",
    "embedded_facts",
    "local_model_facts",
    "machine_facts",
    "model_facts",
    "storage_facts",
]

_PINGS = 20
_TIMEOUT_S = 5.0
# The second look finds a message that was just moving from one list to another.
_AGAIN_S = 1.0
_SCANNED_KEYS = 100_000
_PAGE = 1_000
_MODEL_S = 20.0
_PINNED = ("celery", "kombu", "redis")
_CONFIG = ("appendonly", "appendfsync", "client-output-buffer-limit", "timeout")


class Server:
    """A server and its fleet, as the source of facts. The caller must close it.

    Raises:
        BrokerError: The server does not answer, or refuses the credentials.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = connect(
            settings.broker_url or "", ca_file=settings.broker_ca_file, timeout_s=_TIMEOUT_S
        )
        blobs = make_blobs(settings.storage, patience_s=0.0)
        self._store = RedisStore(self._redis, prefix=settings.key_prefix, blobs=blobs)
        self._store.ping()

    def close(self) -> None:
        """Release connections."""
        self._store.close()

    def connection(self) -> Connection:
        """Return the facts about the connection to the server."""
        took_ms = []
        for _ in range(_PINGS):
            began_at = time.perf_counter()
            self._store.ping()
            took_ms.append((time.perf_counter() - began_at) * 1_000)
        options: dict[str, Any] = self._redis.connection_pool.connection_kwargs
        url = self._settings.broker_url or ""
        return Connection(
            address=address_of(self._redis),
            is_loopback=not url.startswith("sentinel://") and is_loopback(options.get("host")),
            has_tls=url.startswith("rediss://"),
            has_password=bool(options.get("password")),
            user=self._ask(self._redis.acl_whoami),
            ping_ms=statistics.median(took_ms),
            pings=_PINGS,
        )

    def _ask(self, command: Any, *args: Any) -> Any:
        """Return the reply to a command, or None if the user may not run it."""
        try:
            return command(*args)
        except ResponseError:
            # Not permitted, or removed, as managed servers do with CONFIG.
            return None
        except RedisError as error:
            raise BrokerError(f"the broker does not answer: {error}") from error

    def facts(self) -> ServerFacts:
        """Return the facts about the server."""
        began_at = time.time()
        server_time = self._ask(self._redis.time)
        # The request and the reply take about equally long.
        middle = (began_at + time.time()) / 2
        info = self._ask(self._redis.info)
        config = self._ask(self._redis.config_get, *_CONFIG)
        refusal = write_refusal(self._store, "doctor")
        return ServerFacts(
            info=None if info is None else {key: str(value) for key, value in info.items()},
            config=None if config is None else {k: str(v) for k, v in config.items()},
            ahead_s=None if server_time is None else server_time[0] + server_time[1] / 1e6 - middle,
            write_problem=None if refusal is None else str(refusal),
            storage_problem=self._store.storage_problem(),
            functions_missing=self._functions_missing(),
        )

    def _functions_missing(self) -> int:
        users = self._ask(self._redis.acl_users)
        if users is not None and len(users) == 1:
            # The only user may load missing functions.
            return 0
        return self._ask(count_missing, self._redis) or 0

    def fleet(self) -> FleetFacts:
        """Return the facts about the fleet."""
        runs = list(active_runs(self._store))
        going = [run for run in runs if run.status is not RunStatus.PAUSED]
        return FleetFacts(
            workers=self._store.workers(),
            queues=read_backlog(self._redis)[0],
            active=len(going),
            stalled=self._stalled(going),
            paused=len(runs) - len(going),
            prefix=self._settings.key_prefix,
            other_prefixes=self._other_prefixes(),
            wire=self._store.wire(),
            own_wire=broker.WIRE_VERSION,
            own_version=metadata.version("fanout-llm"),
            visibility_timeout_s=self._settings.visibility_timeout_s,
            limits={model: limit.words for model, limit in self._store.limits().items()},
        )

    def _stalled(self, runs: list[RunRecord]) -> dict[str, str] | None:
        """Return the runs without a message, and their status; None: no permission to check."""
        try:
            return self._without_message(runs) if runs else {}
        except BrokerError as error:
            if isinstance(error.__cause__, ResponseError):
                return None
            raise

    def _without_message(self, runs: list[RunRecord]) -> dict[str, str]:
        messages = MessageReader(self._redis)
        missing = {run.run_id for run in runs} - messages.task_ids().keys()
        if missing:
            time.sleep(_AGAIN_S)
            missing -= messages.task_ids().keys()
        still = {run.run_id: run for run in active_runs(self._store)}
        return {run_id: still[run_id].status.value for run_id in sorted(missing) if run_id in still}

    def _other_prefixes(self) -> tuple[str, ...]:
        own = f"{self._settings.key_prefix}:wire"
        found, cursor, pages = set[str](), 0, _SCANNED_KEYS // _PAGE
        for _ in range(pages):
            answer = self._ask(self._scan, cursor)
            if answer is None:
                break
            cursor, keys = answer
            found |= {key.decode(errors="replace") for key in keys}
            if cursor == 0:
                break
        return tuple(sorted(key.removesuffix(":wire") for key in found - {own}))

    def _scan(self, cursor: int) -> tuple[int, list[bytes]]:
        answer = self._redis.scan(cursor, match="*:wire", count=_PAGE)
        return cast("tuple[int, list[bytes]]", answer)


def machine_facts() -> MachineFacts:
    """Return the versions that are installed on this machine."""
    required = {
        requirement.name: str(requirement.specifier)
        for requirement in map(Requirement, metadata.requires("fanout-llm") or ())
    }
    return MachineFacts(
        python=platform.python_version(),
        fanout=metadata.version("fanout-llm"),
        libraries=tuple((name, required.get(name, ""), _version(name)) for name in _PINNED),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def storage_facts(storage: str) -> StorageFacts:
    """Write a file to the storage, read it and delete it."""
    began_at = time.monotonic()
    try:
        check_storage(storage)
    except SettingsError as error:
        return StorageFacts(storage=storage, problem=str(error))
    return StorageFacts(storage=storage, took_s=time.monotonic() - began_at)


def embedded_facts(settings: Settings) -> EmbeddedFacts:
    """Start an embedded server, and return the facts about the parts of an embedded run."""
    start_s, problem = _start()
    return EmbeddedFacts(
        start_s=start_s,
        start_problem=problem,
        cache_dir=str(settings.cache_dir),
        cache_problem=_write_problem(settings),
        has_extra=has_runtime(),
        has_weights=has_weights(settings.cache_dir),
        has_pip=importlib.util.find_spec("pip") is not None,
    )


def _start() -> tuple[float | None, str | None]:
    began_at = time.monotonic()
    try:
        with EmbeddedFleet(concurrency=0) as fleet:
            with closing(RedisStore(connect(fleet.broker_url, timeout_s=_TIMEOUT_S))) as store:
                store.ping()
            return time.monotonic() - began_at, None
    except (EmbeddedError, BrokerError, OSError) as error:
        return None, " ".join(str(error).split())


def _write_problem(settings: Settings) -> str | None:
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.cache_dir):
            return None
    except OSError as error:
        return error.strerror


def model_facts(client: Client, model: str, *, workers: int) -> ModelFacts:
    """Ask a worker about a model."""
    answer = client.check_model(model, timeout_s=_MODEL_S)
    if answer is None:
        return ModelFacts(model=model, asked=workers, is_answered=False)
    return ModelFacts(model=model, asked=workers, problem=answer.message, batches=answer.batches)


def local_model_facts(settings: Settings, model: str) -> ModelFacts:
    """Check a model in this process: there is no worker, or this machine makes the calls."""

    async def check() -> str | None:
        llm = make_llm(model, settings=settings, concurrency=1)
        try:
            await check_llm(llm)
            return await check_batches(llm)
        finally:
            await close_llm(llm)

    problem = batches = None
    try:
        batches = run_apart(check())
    except ModelError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - a model may be a user's function
        problem = f"{type(error).__name__}: {error}"
    return ModelFacts(
        model=model,
        asked=None if settings.broker_url is None else 0,
        problem=problem,
        batches=batches,
    )
