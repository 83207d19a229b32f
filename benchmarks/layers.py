"""Maps stacks of a worker to the steps of a branch: one table, to update with the code.

The search goes from the innermost frame outwards; the first frame that matches a row decides. So
``json`` counts for its caller, and the functions that a step calls count for the step.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_Row = tuple[str, re.Pattern[str], re.Pattern[str]]

__all__ = ["LAYERS", "OTHER", "Sample", "layer_of", "leaves", "parse", "shares"]

OTHER = "other"
# Step, file, function (a full match of its qualified name; empty matches any).
_TABLE = (
    ("events", r"celery/events/.*", ""),
    ("events", r"celery/worker/request\.py", r".*\.(send_event|on_accepted)"),
    ("call", r"workers/telemetry/reports\.py", r"Calls\..*"),
    ("events", r"workers/(telemetry/(events|reports|spans)|consumer/server_clock)\.py", ""),
    ("part-return", r"fanout/broker/result_backend\.py", ""),
    ("part-return", r"celery/backends/redis\.py", r".*(chord|_on_part).*"),
    ("ack", r"workers/consumer/pool\.py", r"settle_branches"),
    ("ack", r"workers/consumer/task_requests\.py", r".*\.on_settled"),
    (
        "ack",
        r"kombu/(transport/redis|transport/virtual/base|message)\.py",
        r".*\.(ack|reject|_flush)\w*",
    ),
    ("ack", r"celery/worker/request\.py", r".*\.(acknowledge|reject|on_success|on_failure)"),
    ("admit", r"workers/branch/execution\.py", r"_Delivery\.(begin|_lasts_s|_start)"),
    ("admit", r"fanout/stores/redis/branches\.py", r".*(begin|_begin_key|BranchBegin).*"),
    ("record", r"workers/branch/execution\.py", r"(_Delivery\._write|_presentable).*"),
    (
        "record",
        r"fanout/stores/redis/branches\.py",
        r".*(_record|record|_written|_shard_of|_pairs).*",
    ),
    ("call", r"workers/branch/answering\.py", r"(answer|_call|_request)"),
    ("call", r"workers/branch/execution\.py", r"_Delivery\._outcome"),
    ("call", r"workers/context/(inflight|limiter)\.py", ""),
    ("call", r"workers/context/(models|run_caches)\.py", ""),
    ("call", r"fanout/(llm/.*|inputs/prompts\.py|policy/retries\.py)", ""),
    ("call", r"(openai|anthropic|aiohttp|httpx|httpcore|httpx_aiohttp|yarl|multidict)/.*", ""),
    ("call", r"asyncio/(selector_events|sslproto)\.py", r".*(_read_ready_|Transport\.write|SSL).*"),
    ("publish", r"fanout/broker/publisher\.py", ""),
    ("publish", r"workers/reduce/stages\.py", r"(expand|_expand_rest|_ending)"),
    ("publish", r"workers/context/branch_steps\.py", r".*\._publish"),
    ("collect", r"workers/reduce/(stages|reductions)\.py", ""),
    ("consume", r"fanout/broker/(transport|message_leases|rejected)\.py", r"(?!.*\b_?put\w*$).*"),
    (
        "consume",
        r"workers/(consumer/(consumer|envelope|task_requests)|context/fleet_checks)\.py",
        "",
    ),
    # Of kombu, only receiving messages: publishing belongs to the caller.
    ("consume", r"kombu/messaging\.py", r"Consumer\..*"),
    (
        "consume",
        r"kombu/transport/redis\.py",
        r".*\.(on_readable|handle_event|_?brpop\w*|on_poll\w*)",
    ),
    (
        "consume",
        r"kombu/transport/virtual/base\.py",
        r".*\.(_deliver|_callback|message_to_python|can_consume\w*)|Message\..*|QoS\.append",
    ),
    ("consume", r"celery/worker/(strategy|request)\.py", ""),
    ("consume", r"celery/worker/(loops|consumer/\w+)\.py", r"(?!.*\bstart$)(?!asynloop$).*"),
    ("housekeeping", r"workers/consumer/(leases|presence|reaper|shutdown|liveness)\.py", ""),
    ("housekeeping", r"workers/options\.py|fanout/system/ticker\.py", ""),
    ("housekeeping", r"fanout/(runs/reaper|policy/healing|broker/(backlog|inspection))\.py", ""),
    # Moving branches between threads, and waits of threads for one another.
    ("pool", r"workers/(consumer/pool|context/batches|tasks|branch/execution|in_process)\.py", ""),
    ("pool", r"workers/context/(branch_steps|event_loop)\.py", ""),
)
# The outer loops: these decide only if no row above matches any frame.
_CARRIERS = (
    ("pool", r"celery/(concurrency/.*|app/trace\.py|worker/loops\.py)", ""),
    ("pool", r"(asyncio|concurrent/futures|kombu/asynchronous)/.*", ""),
)


def _rows(table: Iterable[tuple[str, str, str]]) -> tuple[_Row, ...]:
    return tuple((layer, re.compile(file), re.compile(name or ".*")) for layer, file, name in table)


_TABLES = (_rows(_TABLE), _rows(_CARRIERS))
LAYERS = tuple(dict.fromkeys(layer for layer, _, _ in _TABLE))
_FRAME = re.compile(r"(?P<name>.*) \((?P<file>[^()]*?)(:\d+)?\)")
_THREAD = re.compile(r"thread \((\w+)\).*")


@dataclass(frozen=True)
class Sample:
    """A stack and the number of its samples.

    Attributes:
        thread: The system's id of the thread; None if unknown.
        frames: From the outermost to the innermost.
        count: The number of samples.
    """

    thread: int | None
    frames: tuple[str, ...]
    count: int


def parse(lines: Iterable[str]) -> Iterator[Sample]:
    """Yield the samples in the output of ``py-spy record --format raw --threads``."""
    for line in lines:
        stack, _, count = line.rstrip("\n").rpartition(" ")
        first, *frames = stack.split(";")
        found = _THREAD.fullmatch(first)
        if found is None:
            frames.insert(0, first)
        thread = int(found[1], 0) if found else None
        yield Sample(thread, tuple(frames), int(count))


@cache
def _layer_of_frame(frame: str, rows: tuple[_Row, ...]) -> str | None:
    found = _FRAME.fullmatch(frame)
    if found is None:
        return None
    for layer, file, name in rows:
        if file.fullmatch(found["file"]) and name.fullmatch(found["name"]):
            return layer
    return None


def layer_of(frames: tuple[str, ...]) -> str:
    """Return the step of a stack; ``other`` if no row matches."""
    for rows in _TABLES:
        for frame in reversed(frames):
            layer = _layer_of_frame(frame, rows)
            if layer is not None:
                return layer
    return OTHER


def shares(samples: Iterable[Sample], cpu_s: dict[int, float]) -> dict[str, float]:
    """Return the CPU seconds of each step.

    Args:
        samples: The samples.
        cpu_s: The CPU seconds of each thread, distributed over the thread's own samples; those of a
            thread without samples count as ``other``.
    """
    by_thread: dict[int, Counter[str]] = {}
    for sample in samples:
        if sample.thread is not None:
            counts = by_thread.setdefault(sample.thread, Counter())
            counts[layer_of(sample.frames)] += sample.count
    found = dict.fromkeys([*LAYERS, OTHER], 0.0)
    for thread, used_s in cpu_s.items():
        counts = by_thread.get(thread, Counter({OTHER: 1}))
        for layer, count in counts.items():
            found[layer] += used_s * count / counts.total()
    return found


def leaves(samples: Iterable[Sample], layer: str, *, most: int) -> dict[str, int]:
    """Return the innermost functions of a step with the most samples."""
    counts: Counter[str] = Counter()
    for sample in samples:
        if layer_of(sample.frames) == layer and sample.frames:
            counts[sample.frames[-1]] += sample.count
    return dict(counts.most_common(most))
