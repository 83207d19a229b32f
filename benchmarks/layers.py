"""Which step of a branch a stack of a worker belongs to: one table, to be adapted with the code.

A stack is looked at from its innermost frame outwards; the first frame that a row matches decides.
So ``json`` counts for its caller, and what a step calls counts for the step.
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
# Step, file, function (a whole match of its qualified name; anything where it is empty).
_TABLE = (
    ("events", r"celery/events/.*", ""),
    ("events", r"celery/worker/request\.py", r".*\.(send_event|on_accepted)"),
    ("events", r"workers/(telemetry/(events|reports|spans)|consumer/server_clock)\.py", ""),
    ("part-return", r"fanout/broker/result_backend\.py", ""),
    ("part-return", r"celery/backends/redis\.py", r".*(chord|_on_part).*"),
    ("ack", r"workers/consumer/settlement\.py", ""),
    ("ack", r"workers/consumer/task_requests\.py", r".*\.on_settled"),
    (
        "ack",
        r"kombu/(transport/redis|transport/virtual/base|message)\.py",
        r".*\.(ack|reject|_flush)\w*",
    ),
    ("ack", r"celery/worker/request\.py", r".*\.(acknowledge|reject|on_success|on_failure)"),
    ("admit", r"workers/branch/execution\.py", r"_Branch\.(begin|_lasts_s|_start)"),
    ("admit", r"fanout/stores/redis/branches\.py", r".*(begin|_begin_key|BranchBegin).*"),
    ("record", r"workers/branch/execution\.py", r"(_Branch\._write|_presentable).*"),
    (
        "record",
        r"fanout/stores/redis/branches\.py",
        r".*(_record|record|_written|_shard_of|_pairs).*",
    ),
    ("call", r"workers/branch/execution\.py", r"(_answer|_call|_values|_request|_outcome|_error)"),
    ("call", r"workers/branch/execution\.py", r"_Branch\._outcome"),
    ("call", r"workers/(context/(inflight|limiter)|telemetry/base)\.py", ""),
    ("call", r"workers/context/runtime\.py", r".*\.(call_for|model|_load_\w+)"),
    ("call", r"fanout/(llm/.*|inputs/prompts\.py|policy/retries\.py)", ""),
    ("call", r"(openai|anthropic|aiohttp|httpx|httpcore|httpx_aiohttp|yarl|multidict)/.*", ""),
    ("call", r"asyncio/(selector_events|sslproto)\.py", r".*(_read_ready_|Transport\.write|SSL).*"),
    ("publish", r"fanout/broker/(publisher|header_messages)\.py", ""),
    ("publish", r"workers/reduce/stages\.py", r"(expand|_expand_rest|_ending)"),
    ("publish", r"workers/context/runtime\.py", r".*\._publish"),
    ("collect", r"workers/reduce/(stages|reductions)\.py", ""),
    ("consume", r"fanout/broker/(transport|message_leases|rejected)\.py", r"(?!.*\b_?put\w*$).*"),
    ("consume", r"workers/consumer/(consumer|envelope|task_requests|message_versions)\.py", ""),
    # Of kombu, only what takes messages: what puts them belongs to its caller.
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
    # What moves branches between threads, and has them wait for one another.
    ("pool", r"workers/(consumer/pool|context/batches|tasks|branch/execution|in_process)\.py", ""),
    ("pool", r"workers/context/runtime\.py", ""),
)
# What carries all the others: it decides only where no row above matches any frame.
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
    """A stack that was seen so many times.

    Attributes:
        thread: The number of its thread, as the system has it; None where that is not known.
        frames: From the outermost to the innermost.
        count: How often.
    """

    thread: int | None
    frames: tuple[str, ...]
    count: int


def parse(lines: Iterable[str]) -> Iterator[Sample]:
    """Yield the samples of what ``py-spy record --format raw --threads`` has written."""
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
    """Return the step that a stack belongs to; ``other`` where no row matches."""
    for rows in _TABLES:
        for frame in reversed(frames):
            layer = _layer_of_frame(frame, rows)
            if layer is not None:
                return layer
    return OTHER


def shares(samples: Iterable[Sample], cpu_s: dict[int, float]) -> dict[str, float]:
    """Return the CPU seconds of each step.

    Args:
        samples: What was seen.
        cpu_s: What each thread has used; it is dealt out by the thread's own samples, and that of
            a thread that was never seen is ``other``.
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
    """Return the innermost functions of a step that were seen most often."""
    counts: Counter[str] = Counter()
    for sample in samples:
        if layer_of(sample.frames) == layer and sample.frames:
            counts[sample.frames[-1]] += sample.count
    return dict(counts.most_common(most))
