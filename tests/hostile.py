"""Messages and broadcasts of an attacker who can publish: valid ones, mutated at random."""

from __future__ import annotations

import base64
import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

# Replacement values: wrong types, limits, and values that other fields use.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 101, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "x\n", "x" * 5_000, "\x00", "\x1b[2J", "\ud800", "../..",
    "fanout.branch", "fanout.branches", "celery.chain", "os:system", "evil/0/0/0", "latest",
    "0001-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59",
    "2999-01-01T00:00:00+00:00", "2026-01-01T00:00:00", "2026-01-01", "not a date", "-1", "1e400",
    [], [None], [[]], [1, 2], ["x"] * 50, [None, None], [0, 0], [5, "x"], [-1, 10**30], {}, {"": 0},
    {"x": {"x": {}}}, {"__type__": "datetime", "__value__": "x"}, {"task": "fanout.branch"},
    [{"task": "fanout.branch", "args": [], "kwargs": {}, "options": {}}], "pickle", "gzip",
]  # fmt: skip
KEYS = [
    "eta", "expires", "timelimit", "retries", "group", "group_index", "chord", "callbacks",
    "shadow", "errbacks", "chain", "stamps", "stamped_headers", "priority", "reply_to",
    "correlation_id", "id", "origin", "argsrepr", "redelivered", "compression", "ignore_result",
    "root_id", "parent_id", "wire", "sent_at", "update", "get", "called_directly", "utc",
    "headers", "task", "hostname", "delivery_info", "delivery_tag", "delivery_mode",
    "routing_key", "exchange", "body_encoding", "replaced_task_nesting", "lang", "run_id",
    "stage", "shard", "position", "model", "note", "method", "arguments", "destination",
    "pattern", "matcher", "ticket", "n", "signal", "queue",
]  # fmt: skip


def opened(raw: bytes) -> dict[str, Any]:
    """Return a message with its body decoded."""
    message: dict[str, Any] = json.loads(raw)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def closed(message: dict[str, Any]) -> bytes:
    """Return the queued form of a message, with its body encoded if it has one."""
    message = dict(message)
    if "body" in message:
        message["body"] = base64.b64encode(json.dumps(message["body"]).encode()).decode()
    return json.dumps(message).encode()


def changed(sound: Any, random: Random, *, times: int = 3) -> Any:
    """Return a copy with up to ``times`` places replaced, deleted, added or nested."""
    value = copy.deepcopy(sound)
    for _ in range(random.randint(1, times)):
        places = list(_places(value))
        if not places:
            break
        parent, key = random.choice(places)
        match random.choice(["set", "set", "set", "drop", "add", "nest"]):
            case "set":
                parent[key] = copy.deepcopy(random.choice(VALUES))
            case "drop":
                del parent[key]
            case "nest":
                parent[key] = [parent[key]]
            case "add" if isinstance(parent, dict):
                parent[random.choice(KEYS)] = copy.deepcopy(random.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)
