"""Findings about the server and the connection to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.doctor.findings import Finding, fail, judged, not_allowed, ok, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.doctor.facts import Connection, ServerFacts

__all__ = ["connection_findings", "server_findings"]

# GETDEL needs Redis 6.2, and kombu an earlier version.
_LEAST = (6, 2)
_MB = 1 << 20
# The default limit of Redis and Valkey for subscribers.
_PUBSUB_HARD = 32 * _MB
_SHORT_TIMEOUT_S = 60
_SLOW_MS = 5.0
_SKEW_S = 1.0


def connection_findings(connection: Connection) -> Iterator[Finding]:
    """Judge the connection to the server."""
    found = (
        f"{connection.address} answers; median round trip {connection.ping_ms:.1f} ms "
        f"of {connection.pings}"
    )
    advice = "each branch takes several round trips: run workers and server close to each other"
    is_near = connection.ping_ms <= _SLOW_MS
    yield ok("broker", found) if is_near else warn("broker", found, advice)
    yield _access(connection)


def _access(connection: Connection) -> Finding:
    who = f"user {connection.user}" if connection.user else "an unknown user"
    secret = "with a password" if connection.has_password else "without a password"
    tls = "TLS" if connection.has_tls else "no TLS"
    found = f"{tls}, {who}, {secret}"
    if connection.is_loopback:
        return ok("access", f"{found}; on this machine")
    if not connection.has_password:
        advice = "any client that reaches the server can read and change all runs: set a password"
        return warn("access", found, advice)
    if not connection.has_tls:
        advice = "documents and answers cross the network unencrypted: use rediss://"
        return warn("access", found, advice)
    return ok("access", found)


def server_findings(facts: ServerFacts, *, visibility_timeout_s: float) -> Iterator[Finding]:
    """Judge the server."""
    info = facts.info
    yield _writes(facts.write_problem)
    if facts.storage_problem is not None:
        yield fail("storage", "not the storage of this fleet", facts.storage_problem)
    for check, judge in _BY_INFO.items():
        yield not_allowed(check, "INFO") if info is None else judge(info)
    for check, judge in _BY_CONFIG.items():
        config = facts.config
        yield not_allowed(check, "CONFIG GET") if config is None else judge(config)
    yield _functions(facts.functions_missing)
    if facts.ahead_s is None:
        yield not_allowed("server clock", "TIME")
    else:
        yield clock_finding("server clock", facts.ahead_s, visibility_timeout_s)


def _writes(problem: str | None) -> Finding:
    if problem is None:
        return ok("writes", "the server accepts writes")
    return fail("writes", "the server refuses writes: all runs wait until it accepts them", problem)


def _functions(missing: int) -> Finding:
    if not missing:
        return ok("functions", "this version's functions are loaded, or workers may load them")
    found = f"{missing} of this version's functions are missing"
    advice = "if users may not load them, run `fanout setup-server` as the server's admin"
    return warn("functions", found, advice)


def clock_finding(check: str, ahead_s: float, visibility_timeout_s: float) -> Finding:
    """Judge the difference of two clocks: leases depend on the workers' clocks."""
    advice = "synchronise the clocks with NTP: leases and deadlines depend on them"
    ahead = "ahead of" if ahead_s >= 0 else "behind"
    found = f"{abs(ahead_s):.2f} s {ahead} this machine"
    bad_s = visibility_timeout_s / 3
    return judged(check, abs(ahead_s), found, advice, warn_over=_SKEW_S, fail_over=bad_s)


def _kind(info: dict[str, str]) -> Finding:
    name = info.get("server_name", "redis").capitalize()
    version = info.get("valkey_version") or info.get("redis_version", "0")
    compatible = info.get("redis_version", version)
    found = f"{name} {version}"
    if info.get("server_mode", info.get("redis_mode")) == "cluster":
        return fail("server", f"{found}, a cluster", "use one server, or one behind Sentinel")
    if _numbers(compatible) < _LEAST:
        return fail("server", found, "use Redis 6.2 or later, or Valkey")
    return ok("server", found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split(".")[:2])


def _role(info: dict[str, str]) -> Finding:
    role = info.get("role", "master")
    if role != "master":
        advice = "a replica takes no writes: use the master's address, or sentinel:// to follow it"
        return fail("role", f"a replica of {info.get('master_host', 'another server')}", advice)
    return ok("role", f"master with {info.get('connected_slaves', '0')} replicas")


def _eviction(info: dict[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        advice = "a full server would drop runs: CONFIG SET maxmemory-policy noeviction"
        return fail("eviction", f"maxmemory-policy {policy}", advice)
    return ok("eviction", "maxmemory-policy noeviction")


def _memory(info: dict[str, str]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    total = int(info.get("total_system_memory", 0))
    if not limit:
        found = f"{_megabytes(used)} used, no maxmemory"
        advice = (
            f"set maxmemory below the machine's {_megabytes(total)}: a full server then refuses "
            "writes and workers wait; without it, the kernel would kill the server"
        )
        return warn("memory", found, advice)
    share = used / limit
    found = f"{_megabytes(used)} of {_megabytes(limit)} used ({share:.0%})"
    advice = "raise maxmemory, delete old runs (fanout delete), or lower FANOUT_RUN_TTL_S"
    return judged("memory", share, found, advice, warn_over=0.75, fail_over=0.95)


def _fragmentation(info: dict[str, str]) -> Finding:
    ratio = float(info.get("mem_fragmentation_ratio", 1.0))
    found = f"memory of the process over memory used: {ratio:.2f}"
    # The ratio means nothing on a small server: the process itself takes more than its data.
    if int(info.get("used_memory", 0)) < 256 * _MB or ratio < 1.5:  # noqa: PLR2004 - as is usual
        return ok("fragmentation", found)
    return warn("fragmentation", found, "CONFIG SET activedefrag yes, or restart it when idle")


def _megabytes(count: int) -> str:
    return f"{count / _MB:,.0f} MB"


def _persistence(info: dict[str, str]) -> Finding:
    if info.get("aof_enabled", "0") != "1":
        advice = (
            "a restart would lose runs: CONFIG SET appendonly yes, and the same in its "
            "configuration file"
        )
        return fail("persistence", "append-only file off", advice)
    return ok("persistence", "append-only file on")


def _written(info: dict[str, str]) -> Finding:
    names = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    bad = [f"{name} {info[name]}" for name in names if info.get(name, "ok") != "ok"]
    if bad:
        advice = "it may refuse all writes: see its log; usually the disk is full"
        return fail("last writes to disk", ", ".join(bad), advice)
    if info.get("loading", "0") == "1":
        return warn("last writes to disk", "it is loading its data", "wait until it has")
    return ok("last writes to disk", "no errors")


def _fsync(config: dict[str, str]) -> Finding:
    policy = config.get("appendfsync", "everysec")
    if config.get("appendonly") != "yes":
        return ok("fsync", f"appendfsync {policy}, without effect as the append-only file is off")
    if policy == "no":
        advice = "a crash of the machine can lose 30 s of writes: CONFIG SET appendfsync everysec"
        return warn("fsync", "appendfsync no", advice)
    return ok("fsync", f"appendfsync {policy}")


def _subscribers(config: dict[str, str]) -> Finding:
    words = config.get("client-output-buffer-limit", "").split()
    check, key = "subscribers", "pubsub"
    if key not in words:
        return ok(check, "no client-output-buffer-limit for pubsub")
    hard, soft, seconds = (int(word) for word in words[words.index(key) + 1 :][:3])
    found = f"client-output-buffer-limit pubsub {hard} {soft} {seconds}"
    if not hard and not soft:
        advice = "a monitor that hangs would fill the memory: set pubsub 32mb 8mb 60"
        return warn(check, found, advice)
    if 0 < hard < _PUBSUB_HARD:
        advice = "it disconnects workers and Flower during many events: set pubsub 32mb 8mb 60"
        return warn(check, found, advice)
    return ok(check, found)


def _idle(config: dict[str, str]) -> Finding:
    timeout_s = int(config.get("timeout", 0))
    if 0 < timeout_s < _SHORT_TIMEOUT_S:
        advice = "workers would have to reconnect often: CONFIG SET timeout 0"
        return warn("idle connections", f"closed after {timeout_s} s", advice)
    return ok("idle connections", f"closed after {timeout_s} s" if timeout_s else "never closed")


_BY_INFO: dict[str, Callable[[dict[str, str]], Finding]] = {
    "server": _kind,
    "role": _role,
    "eviction": _eviction,
    "persistence": _persistence,
    "last writes to disk": _written,
    "memory": _memory,
    "fragmentation": _fragmentation,
}
_BY_CONFIG: dict[str, Callable[[dict[str, str]], Finding]] = {
    "fsync": _fsync,
    "subscribers": _subscribers,
    "idle connections": _idle,
}
