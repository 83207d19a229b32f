"""The settings of a process: ``FANOUT_*`` environment variables, read once and validated."""

from __future__ import annotations

import logging
import os
import re
import ssl
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fanout.core import queue_names, sentinel_url
from fanout.core.day_budgets import day_limits
from fanout.core.errors import SettingsError
from fanout.core.field_words import wrong_value
from fanout.core.redaction import redacted
from fanout.core.setting_values import MAX_CONCURRENCY, parse_autoscale, state_home
from fanout.core.settings_fields import CountByModel, UsdByModel  # noqa: TC001 - pydantic reads it
from fanout.core.store_urls import READ_SCHEMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.budgets import BudgetLimits

__all__ = [
    "AUTOSCALE_NEEDS_PREFORK",
    "DEFAULT_BROKER_URL",
    "MAX_CONCURRENCY",
    "TLS_SCHEME",
    "UNIX_SCHEME",
    "Settings",
    "load_settings",
    "parse_autoscale",
]

# The server of a worker without a setting.
DEFAULT_BROKER_URL = "redis://localhost:6379/0"

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_CALLABLES = re.compile(rf"\*|{_NAME}(?::[^\W\d_]\w*)?")
_READ_SCHEME = re.compile(r"\*|[a-z][a-z0-9+.-]*")
AUTOSCALE_NEEDS_PREFORK = (
    "works with the prefork pool only; waiting branches cost very little, so set the maximum with "
    "--concurrency (FANOUT_CONCURRENCY), or choose --pool prefork"
)

_STORAGE = re.compile(r"(/|[a-z][a-z0-9+.-]*:///?)[^/]")
_URL_PASSWORD = re.compile(r"[^/]*://[^/]*:[^/]*@")
_SOCKET = re.compile(r"unix:///[^?#]+(\?db=\d+)?")
_NODENAME = re.compile(r"[\w.%-]+(@[\w.%-]+)?", re.ASCII)
TLS_SCHEME = "rediss://"
UNIX_SCHEME = "unix://"
_SCHEMES = ("redis://", TLS_SCHEME, sentinel_url.SCHEME, UNIX_SCHEME)


class Settings(BaseSettings):
    """The settings that a process reads from its environment.

    Attributes:
        broker_url: The Redis server that is both queue and run store, or the sentinels that
            monitor it; None runs embedded.
        broker_url_file: A file with the URL, which becomes ``broker_url``: the environment of a
            process is no place for a password.
        broker_ca_file: The CA certificates for a ``rediss://`` server; None: those of the system.
        model: The model of jobs that name none.
        key_prefix: The prefix of every key of the run store, so that teams can share a server.
        storage: The place of input and outcome files: a folder that all machines share, or a URL
            that fsspec knows, as ``s3://bucket/prefix``. None: the run store.
        budget_usd_per_day: US dollars that a fleet may spend on a day (UTC): a number for all models
            together, or ``MODEL=NUMBER``, several separated by commas; ``openai/*=20`` is for all of
            that provider together. Calls that do not fit wait for the next day. None: no limit.
        budget_calls_per_day: The same for calls.
        budget_tokens_per_day: The same for tokens of prompts and answers.
        run_ttl_s: Seconds after their last write for which a run's records are kept.
        visibility_timeout_s: Seconds after which a dead worker's messages return to the queue. It
            may be shorter than a call: a live worker renews its leases.
        stall_s: Seconds without progress after which the reaper examines a shard.
        reaper_interval_s: Seconds between two sweeps of the reaper; 0 turns it off.
        grace_s: Seconds that a stopping worker waits for its calls in flight before it hands them
            back.
        batch_calls: The most calls of a provider's batch, below the provider's own limit.
        batch_wait_s: Seconds without a further call after which a batch is made of those there are.
        batch_poll_s: The longest time between two questions about a batch.
        max_deliveries: How often a branch may be begun; one that ended its worker each time is
            then recorded as ``poisoned``.
        concurrency: The branches that a worker has in flight at once, without an option.
        queues: The queues of a worker, separated by commas; ``control`` is polled first.
        worker_name: A worker's name, as Celery's ``--hostname``: ``%h`` is the host. None: a
            unique name.
        autoscale: ``MAX,MIN`` processes of a worker whose pool is ``prefork``.
        pool: Celery's worker pool. It is a setting of fanout, because Celery cannot tell
            ``--pool prefork`` from its own default, and would take the configured pool.
        allowed_callables: The functions that a worker may import as models: packages, modules, or
            ``package.module:function``. ``*`` is any. None by default, as an import runs code.
        read_schemes: The schemes of URLs that workers read documents from; ``file`` is also that of
            paths, and ``*`` is any. By default those of files and object stores: the URL of a run
            must not choose a host that workers connect to.
        max_message_kb: The size in kilobytes above which a message is neither sent nor read.
        max_output_kb: The size in kilobytes above which an answer counts as ``invalid_output``.
        log_format: The format of a worker's log: ``text``, or ``json`` with one object on a line.
        traces: ``otlp`` makes workers send spans to an OpenTelemetry collector.
        traces_branch_ratio: The share of spans to keep for branches that succeed at the first
            call; spans of all other branches are kept.
        task_events: Whether workers send task events from the start; otherwise only after a
            monitor, such as Flower, requests them.
        flower_user: The user name for the login to Flower.
        flower_password: The password for the login to Flower.
        flower_password_file: A file with that password.
        confirm_usd: US dollars of a likely cost from which `fanout run` says it and asks first.
        prices: A YAML file with the prices of models, which win over the known ones.
        cache_dir: The folder of model weights, kept between runs.
        cache_ttl_s: Seconds for which an answer is kept for runs that ask the same.
        cache_mb: The most megabytes that kept answers may take; 0 keeps none.
        state_dir: The folder of embedded runs, which only this user can read.
    """

    model_config = SettingsConfigDict(env_prefix="FANOUT_", env_ignore_empty=True, frozen=True)

    broker_url: str | None = None
    broker_url_file: Path | None = None
    broker_ca_file: Path | None = None
    model: str | None = None
    key_prefix: Annotated[str, Field(min_length=1, max_length=64)] = "fanout"
    storage: str | None = None
    budget_usd_per_day: UsdByModel = None
    budget_calls_per_day: CountByModel = None
    budget_tokens_per_day: CountByModel = None
    run_ttl_s: Annotated[int, Field(ge=60)] = 7 * 24 * 3600
    visibility_timeout_s: Annotated[int, Field(ge=5)] = 30
    stall_s: Annotated[float, Field(ge=1)] = 15.0
    reaper_interval_s: Annotated[float, Field(ge=0)] = 5.0
    grace_s: Annotated[float, Field(ge=0)] = 20.0
    batch_calls: Annotated[int, Field(ge=1)] = 50_000
    batch_wait_s: Annotated[float, Field(gt=0)] = 5.0
    batch_poll_s: Annotated[float, Field(gt=0)] = 60.0
    max_deliveries: Annotated[int, Field(ge=1)] = 4
    concurrency: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = 32
    pool: Literal["asyncio", "threads", "prefork", "solo"] = "asyncio"
    allowed_callables: Annotated[tuple[str, ...], NoDecode] = ()
    read_schemes: Annotated[tuple[str, ...], NoDecode] = READ_SCHEMES
    max_message_kb: Annotated[int, Field(ge=16, le=65_536)] = 256
    max_output_kb: Annotated[int, Field(ge=1, le=4_096)] = 1_024
    log_format: Literal["text", "json"] = "text"
    traces: Literal["off", "otlp"] = "off"
    traces_branch_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    queues: str | None = None
    worker_name: str | None = None
    autoscale: str | None = None
    task_events: bool = True
    flower_user: Annotated[str, Field(pattern="^[^:]+$")] = "fanout"
    flower_password: SecretStr | None = None
    flower_password_file: Path | None = None
    confirm_usd: Annotated[float, Field(ge=0)] = 1.0
    prices: Path | None = None
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "fanout")
    cache_ttl_s: Annotated[int, Field(ge=1, le=10 * 365 * 24 * 3600)] = 30 * 24 * 3600
    cache_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    state_dir: Path = Field(default_factory=lambda: state_home() / "fanout")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return arguments and the environment. Files, of which there are none, would double the time."""
        return (init_settings, env_settings)

    @field_validator("allowed_callables", "read_schemes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)):
            return value
        return tuple(str(entry).strip() for entry in entries if str(entry).strip())

    @field_validator("read_schemes")
    @classmethod
    def _are_schemes(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        for entry in listed:
            if not _READ_SCHEME.fullmatch(entry):
                msg = (
                    f"{entry!r} is not the scheme of a URL, such as s3 or https, or *; separate "
                    "several entries with commas"
                )
                raise ValueError(msg)
        return listed

    @field_validator("allowed_callables")
    @classmethod
    def _are_callables(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        for entry in listed:
            if not _CALLABLES.fullmatch(entry):
                msg = (
                    f"{entry!r} is not package, package.module, package.module:function (a public "
                    "name without dots) or *; separate several entries with commas"
                )
                raise ValueError(msg)
        return listed

    @model_validator(mode="before")
    @classmethod
    def _url_from_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        path = values.get("broker_url_file")
        if path is None:
            return values
        if values.get("broker_url") is not None:
            raise _wrong("broker_url_file", "FANOUT_BROKER_URL is set, too; set one of them")
        return {**values, "broker_url": _line_of(Path(path))}

    @field_validator("broker_url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(_SCHEMES):
            msg = f"must start with one of {', '.join(_SCHEMES)}"
            raise ValueError(msg)
        if url is not None and url.startswith(UNIX_SCHEME) and not _SOCKET.fullmatch(url):
            raise ValueError("must be unix:///PATH/OF/SOCKET or unix:///PATH/OF/SOCKET?db=N")
        if url is not None and url.startswith(sentinel_url.SCHEME):
            sentinel_url.parse_sentinel_url(url)
        return url

    @field_validator("storage")
    @classmethod
    def _is_storage(cls, storage: str | None) -> str | None:
        if storage is None:
            return None
        if any(letter.isspace() for letter in storage):
            raise ValueError("must not contain spaces")
        if not _STORAGE.match(storage):
            raise ValueError(
                "must be the absolute path of a folder other than /, or a URL such as s3://bucket/prefix"
            )
        if _URL_PASSWORD.match(storage):
            raise ValueError(
                "must not contain a password: set the variables that the provider's own tools read"
            )
        return storage.rstrip("/")

    @field_validator("prices")
    @classmethod
    def _has_prices(cls, path: Path | None) -> Path | None:
        if path is not None:
            from fanout.core.prices import read_prices

            read_prices(str(path))
        return path

    @field_validator("queues")
    @classmethod
    def _known_queues(cls, names: str | None) -> str | None:
        return None if names is None else ",".join(queue_names.parse_queues(names))

    @field_validator("worker_name")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and not _NODENAME.fullmatch(name):
            msg = "must be letters, digits and . _ - % only, with at most one @ before the host"
            raise ValueError(msg)
        return name

    @field_validator("autoscale")
    @classmethod
    def _can_scale(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None:
            return None
        if info.data.get("pool") != "prefork":
            raise ValueError(AUTOSCALE_NEEDS_PREFORK)
        return "{},{}".format(*parse_autoscale(text))

    @model_validator(mode="after")
    def _has_use_of_fields(self) -> Self:
        given = self.model_fields_set
        if "traces_branch_ratio" in given and self.traces == "off":
            raise _wrong("traces_branch_ratio", "has no effect: FANOUT_TRACES is off")
        if "stall_s" in given and not self.reaper_interval_s:
            raise _wrong("stall_s", "has no effect: FANOUT_REAPER_INTERVAL_S is 0")
        if self.broker_ca_file is not None:
            self._check_ca_file(self.broker_ca_file)
        return self

    @property
    def day_budgets(self) -> dict[str, BudgetLimits]:
        """The budgets of the fleet for a day, by model."""
        return day_limits(
            self.budget_usd_per_day, self.budget_calls_per_day, self.budget_tokens_per_day
        )

    def _check_ca_file(self, path: Path) -> None:
        if not (self.broker_url or "").startswith(TLS_SCHEME):
            raise _wrong(
                "broker_ca_file", f"has no effect: the broker's URL is not {TLS_SCHEME}..."
            )
        try:
            # With a wrong path Celery would retry for ever, and redis-py would not name the file.
            ssl.create_default_context(cafile=str(path))
        except OSError as error:
            is_readable = isinstance(error, ssl.SSLError)
            reason = "it holds no certificate in PEM" if is_readable else error.strerror
            raise _wrong("broker_ca_file", f"cannot be used: {reason}") from error


def _wrong(field: str, message: str) -> PydanticCustomError:
    """Return the error with which a model validator blames one field."""
    return PydanticCustomError("setting", "{message}", {"field": field, "message": message})


def _line_of(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _wrong("broker_url_file", f"cannot be read: {reason}") from error
    if not text or "\n" in text:
        raise _wrong("broker_url_file", "must hold one line with the broker's URL")
    return text


def load_settings(**overrides: object) -> Settings:
    """Return the settings of this process; ``overrides`` that are not None win.

    Raises:
        SettingsError: A variable is wrong; the message names it and what is allowed.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if "broker_url" in given:
        # A server that the caller names replaces the environment's, with its file and certificates.
        given["broker_url_file"] = None
        if not str(given["broker_url"]).startswith(TLS_SCHEME):
            given["broker_ca_file"] = None
    _check_names(os.environ)
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        context = first.get("ctx", {})
        name = str(context.get("field") or first["loc"][0])
        message = wrong_value(first)
        # A broker URL may hold a password: the message must not quote it.
        value = os.environ.get(f"FANOUT_{name.upper()}") if "field" in context else first["input"]
        shown = "" if name == "broker_url" else f" (got {redacted(repr(value))})"
        if overrides.get(name) is not None:
            raise SettingsError(f"{message}{shown}", argument=name) from None
        raise SettingsError(f"{_PREFIX}{name.upper()}: {message}{shown}") from None


_log = logging.getLogger("fanout.core.settings")
_PREFIX = "FANOUT_"
# Variables that other code reads: the command line, the files under ops, and the tests.
_OTHERS = frozenset({
    "COMPLETE", "GID", "JOBS", "LOGLEVEL", "METRICS_TOKEN_FILE", "MODELS", "REDIS_ADDRESS", "TMP",
    "UID",
})  # fmt: skip
# Variables of tests, and those that Kubernetes sets for services whose names begin with FANOUT.
_FOREIGN = re.compile(r"TESTS?_\w*|\w*?(?:SERVICE_HOST|SERVICE_PORT|PORT)(?:_\w*)?", re.ASCII)
_NEAR = 0.8
_named: set[str] = set()


def _check_names(environment: Mapping[str, str]) -> None:
    """Reject a variable that looks like a misspelt setting; warn once of any other unknown one.

    Raises:
        SettingsError: A variable is nearly named like a setting, which would keep its default.
    """
    known = {name.upper() for name in Settings.model_fields} | _OTHERS
    for variable in environment:
        name = variable.removeprefix(_PREFIX)
        if name == variable or name in known or _FOREIGN.fullmatch(name):
            continue
        near = get_close_matches(name.upper(), known, n=1, cutoff=_NEAR)
        if near:
            raise SettingsError(f"{variable}: there is no such variable; is it {_PREFIX}{near[0]}?")
        if variable not in _named:
            _named.add(variable)
            _log.warning("%s is not a setting of fanout, and is ignored", variable)
