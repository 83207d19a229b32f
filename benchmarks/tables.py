"""Writes the tables of the docs from benchmarks/results/, so that no figure is copied by hand.

    python benchmarks/tables.py [--check]

Each stands between ``<!-- NAME -->`` and ``<!-- end -->`` in docs/performance.md, docs/scaling.md,
docs/reliability.md, docs/documents.md, docs/quality.md, docs/cost.md or docs/security.md. ``--check``
changes nothing, and fails if a table differs from its file;
tests/unit/benchmarks/test_benchmark_tables.py does that.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from faults.model_outages import OUTAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["TABLES", "renewed"]

_STEP_FIGURES = {
    "calls_per_s": "calls/s",
    "cpu_ms_per_call": "CPU ms a call, of worker, server and client",
    "worker_peak_mb": "memory of the worker, MB",
}
_HARMS = ("own answer", "other answers", "aggregate", "verdict", "passages", "comparison")
_ROOT = Path(__file__).resolve().parents[1]
_RESULTS = _ROOT / "benchmarks/results"
_PAGES = [
    _ROOT / "docs" / name
    for name in (
        "performance.md",
        "scaling.md",
        "reliability.md",
        "documents.md",
        "quality.md",
        "cost.md",
        "security.md",
    )
]
_BLOCK = re.compile(r"(<!-- (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _read(name: str) -> Any:
    return json.loads((_RESULTS / f"{name}.json").read_text())


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: float) -> str:
    """Return a figure with about three digits."""
    if value >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(figures: dict[str, float], factor: float = 1.0) -> str:
    median, least, most = (figures[name] * factor for name in ("median", "min", "max"))
    return f"{_shown(median)} ({_shown(least)} to {_shown(most)})"


def _compared(suite: str) -> str:
    result = _read(f"compare-{suite}")
    contenders = result["contenders"]
    has_ideal = suite != "zero"
    names = sorted(
        (name for name in contenders if contenders[name]["summary"]),
        key=lambda name: -contenders[name]["summary"]["calls_per_s"]["median"],
    )
    head = ["contender", "calls/s", *(["% of the ideal"] if has_ideal else [])]
    rows = []
    for name in names:
        summary = contenders[name]["summary"]
        ours = result["fanout_over"].get(name, {}).get("calls_per_s")
        row = [f"`{name}`", _spread(summary["calls_per_s"])]
        row += [_spread(summary["share_of_ideal"], 100)] if has_ideal else []
        row += [_shown(summary["cpu_ms_per_call"]["median"])]
        row += [_shown(summary["peak_pss_mb"]["median"])]
        rows.append([*row, _shown(ours["median"]) if ours else ""])
    return _table([*head, "CPU ms a call", "MB", "fanout over it"], rows)


def _engine() -> str:
    summary = _read("engine_cost")["summary"]
    costs = summary["cpu_ms_per_branch"]
    rows = [[role, _spread(costs[role])] for role in ("workers", "server", "client", "total")]
    return _table(["CPU ms a branch", "median (least to most)"], rows)


def _fairness() -> str:
    shared = {"in turns": "fairness", "one list": "fairness-one-list"}
    rows = []
    for how, name in shared.items():
        summary = _read(name)["summary"]
        rows.append([how, _spread(summary["alone_s"]), _spread(summary["beside_s"])])
    return _table(["the fleet is shared", "alone, s", "beside 50 runs, s"], rows)


def _max_workers() -> str:
    rows = []
    for name, workers in (("max_workers", 1), ("max_workers-two", 2)):
        result = _read(name)
        for cap in result["options"]["caps"]:
            trials = [trial for trial in result["trials"] if trial["cap"] == cap]
            shares = [100 * trial["share_of_ideal"] for trial in trials]
            spread = {"median": median(shares), "min": min(shares), "max": max(shares)}
            most = max(trial["max_in_flight"] for trial in trials)
            rows.append([workers, cap or "none", _spread(spread), most])
    return _table(["workers", "`max_workers`", "% of the ideal", "in flight at most"], rows)


def _rate_limits() -> str:
    known = {"told": "told", "headers": "learnt from headers", "wait": "found out, with retry-after",
             "nothing": "found out"}  # fmt: skip
    return _table(
        ["a minute", "counted as a", "limit", "workers", "% of it used", "% refused",
         "refused while learning", "failed"],
        (
            [f"{case['per_minute']:,.0f} {case['unit']}", case["kind"], known[case["known"]],
             case["workers"], _shown(case["steady_used"] * 100),
             _shown(case["steady_refused"] * 100), case["learning_refused"], case["failed"]]
            for case in _read("rate_limits")["cases"]
        ),
    )  # fmt: skip


def _permit_chain() -> str:
    result = _read("permit_chain")
    loads = result["options"]["loads"]
    rows = []
    for cap in result["options"]["caps"]:
        row: list[object] = [cap]
        for load in loads:
            own = [
                each
                for each in result["trials"]
                if (each["load"], each["max_workers"]) == (load, cap)
            ]
            row += [_shown(median(each[name] for each in own)) for name in ("p50_ms", "p99_ms")]
        rows.append(row)
    head = [f"{load}, {name}, ms" for load in loads for name in ("p50", "p99")]
    return _table(["`max_workers`", *head], rows)


def _publishing() -> str:
    summary = _read("publishing")["summary"]
    names = {"chords": "shard chords of 500 (`Publisher.shard_chord`)", "submit": "`Client.submit`"}
    rows = [[text, _spread(summary[name]["branches_per_s"])] for name, text in names.items()]
    return _table(["published as", "branches/s"], rows)


def _traffic() -> str:
    rows = []
    for each in _read("server_traffic")["values"]:
        found = {name: figures["median"] for name, figures in each["summary"].items()}
        trips = found["scripts"] + found["brpop"]
        row = [each["concurrency"], _shown(trips), _shown(found["commands"])]
        rows.append([*row, _shown(found["bytes_in"]), _shown(found["bytes_out"])])
    head = ["in flight", "scripts and BRPOPs", "commands, those in scripts included"]
    return _table([*head, "bytes to the server", "bytes from it"], rows)


def _steps() -> str:
    found = _read("steps")
    names = {"single": "branches of one call", "steps": "branches of three steps"}
    figures = [
        [_shown(median(one[kind][key] for one in found["rounds"])) for key in _STEP_FIGURES]
        for kind in names
    ]
    rows = [[text, *row] for text, row in zip(names.values(), figures, strict=True)]
    return _table(["", *_STEP_FIGURES.values()], rows)


def _profile(name: str) -> str:
    found = _read(name)
    steps = sorted(found["steps"].items(), key=lambda step: -step[1]["cpu_ms_per_branch"])
    rows = [[step, _shown(f["cpu_ms_per_branch"]), f"{f['share']:.0%}"] for step, f in steps]
    return _table(["step", "CPU ms a branch", "share"], rows)


def _startup() -> str:
    names = {
        "help": "`fanout --help`",
        "run": "`fanout run`, embedded, three branches",
        "library": "`ParallelCalls` in a script, embedded, three branches",
        "worker": "`fanout worker`, until it is ready",
        "python": "beside it: `python -c pass`",
        "import fanout": "beside it: `import fanout`",
        "use celery": "beside it: making a Celery application",
    }
    found = _read("startup")["installed"]
    rows = [
        [text, (f"{found[name]['median_s']:.2f} ({found[name]['min_s']:.2f} to "
               f"{found[name]['max_s']:.2f})"), f"{found[name]['cpu_median_s']:.2f}"]
        for name, text in names.items() if name in found
    ]  # fmt: skip
    return _table(["", "seconds", "of them CPU"], rows)


def _growth(name: str, what: str, extra: tuple[str, str, float]) -> str:
    key, title, factor = extra
    rows = []
    for each in _read(f"growth-{name}")["values"]:
        summary = each["summary"]
        costs = summary["cpu_ms_per_branch"]
        row = [_shown(each["value"]), _spread(summary["branches_per_s"])]
        row += [_spread(summary[key], factor)] if key else []
        rows.append([*row, _shown(costs["total"]["median"]), _shown(costs["server"]["median"])])
    head = [what, "branches/s", *([title] if key else [])]
    return _table([*head, "CPU ms a branch", "of it the server"], rows)


def _million() -> str:
    result = _read("million-1000000")
    rows = [
        [f"{run['branches']:,}", run["seconds"], f"{run['branches_per_s']:,}",
         *(f"{run['cpu_us_per_branch'][kind]:,}"
           for kind in ("workers", "server", "client", "flower", "all"))]
        for run in result["runs"]
    ]  # fmt: skip
    head = ["branches", "seconds", "branches/s"]
    kinds = ["CPU µs a branch: workers", "server", "client", "Flower", "all"]
    return _table([*head, *kinds], rows)


def _reduce_memory() -> str:
    figures = ("seconds", "cpu_us_per_branch", "rss_mb_before", "rss_mb_peak", "printed_mb",
               "client_seconds", "client_rss_mb")  # fmt: skip
    found = _read("reduce_memory")["ways"]
    rows = [[one["way"], f"{one['branches']:,}", *(_shown(one[name]) for name in figures)]
            for one in found]  # fmt: skip
    return _table(["", "answers", "seconds", "CPU µs each", "MB before", "most MB", "MB printed", "seconds",
                   "client MB"], rows)  # fmt: skip


def _groups() -> str:
    figures = ("map_s", "after_map_s", "cpu_ms_per_call")
    rows = [
        [one["order"], f"{one['stages'][0]:,}", f"{one['stages'][1]:,}",
         _shown(100 * one["first_call_share_of_map"]), *(_shown(one[name]) for name in figures),
         _shown(max(one["rss_mb_peak"]))]
        for one in _read("groups")["runs"]
    ]  # fmt: skip
    return _table(
        ["input", "branches", "groups", "% before", "seconds", "then", "CPU ms", "most MB"], rows
    )


def _million_memory() -> str:
    memory = _read("million-1000000")["memory_mb"]
    rows = [
        [f"`{name}`", *(f"{figures[when]:,.1f}" for when in ("at_a_tenth", "at_the_end", "most"))]
        for name, figures in memory.items() if not name.endswith("pss_mb")
    ]  # fmt: skip
    return _table(["MB", "after a tenth of the run", "at its end", "most"], rows)


def _model_checks() -> str:
    rows = [
        [each["what"], _shown(each["measured_per_s"]), _shown(each["predicted_per_s"]),
         f"{each['predicted_over_measured']:.2f}", each["limit"]]
        for each in _read("scaling_model")["checks"]
    ]  # fmt: skip
    return _table(["", "measured/s", "predicted/s", "ratio", "what limits it"], rows)


def _model_plan() -> str:
    rows = [
        [plan["workers"], _shown(plan["branches_per_s"]), _shown(plan["hours"]),
         *(f"{number:,}" for number in plan["calls_in_flight"].values()),
         _shown(plan["server_ms"]), _shown(plan["worker_cores"]),
         f"{_shown(plan['server_mbit_in'])} / {_shown(plan['server_mbit_out'])}"]
        for plan in _read("scaling_model")["one_server"]
    ]  # fmt: skip
    head = ["workers", "branches/s", "hours", "in flight: calls of 1 s", "of 10 s"]
    more = ["ms a branch", "cores", "Mbit/s in / out"]
    return _table([*head, *more], rows)


def _chaos() -> str:
    result = _read("chaos-301")
    rows = [
        [each["seed"], each["faults"], each["branches"], each["outcomes"], each["lost"],
         each["duplicated"], "yes" if each["is_hung"] else "no", each["verdict"]["calls"],
         each["verdict"]["repeated_struck"], each["verdict"]["repeated_other"],
         *(f"{max(each['verdict'][name].values(), default=0):.1f}"
           for name in ("worker_recovery_s", "server_recovery_s"))]
        for each in result["schedules"]
    ]  # fmt: skip
    total = result["totals"]
    names = ("faults", "branches", "outcomes", "lost", "duplicated", "hung", "calls", "struck")
    last = ["all", *(f"{total[name]:,}" for name in (*names, "other"))]
    last += [f"{total[name]['max']:.1f}" for name in ("worker_recovery_s", "server_recovery_s")]
    head = ["seed", "faults", "branches", "outcomes", "lost", "twice", "hung", "calls"]
    head += ["struck", "other", "worker", "server"]
    return _table(head, [*rows, last])


def _chaos_faults() -> str:
    names = {
        "kill_worker": "a worker is killed",
        "kill_child": "a prefork child is killed",
        "terminate_worker": "a worker is terminated, as Kubernetes does",
        "stop_short": "a worker is stopped for less than its lease",
        "stop_long": "a worker is stopped for longer than its lease",
        "cut_network": "a worker is cut off from the network",
        "kill_server": "the server is killed",
        "restart_server": "the server is restarted",
        "pause_server": "the server is paused",
        "reset_connections": "all connections are reset",
        "kill_client": "the client is killed",
        "refuse_disk": "the server refuses writes: its disk is full (MISCONF)",
        "refuse_replicas": "the server refuses writes: replicas are missing (NOREPLICAS)",
        "refuse_script": "the server refuses everything: a long script (BUSY)",
        "refuse_rights": "the server refuses writes: its user's ACL (NOPERM)",
        "no_threads": "a worker can start no threads",
        "no_descriptors": "a worker can open no files or connections",
        "unmount_storage": "the storage is an empty folder",
        **OUTAGES,
    }
    counts = _read("chaos-301")["totals"]["faults_by_kind"]
    rows = [[text, counts[kind]] for kind, text in names.items() if kind in counts]
    return _table(["fault", "times"], rows)


def _in_vain(outage: dict[str, Any]) -> list[str]:
    """Return when the breaker opened, and the calls in vain until then and since then."""
    opened_s = outage["breaker_after_s"]
    before, since = outage["until_open"] + outage["until_heard"], outage["since"]
    return [
        "-" if opened_s is None else _shown(opened_s),
        *(f"{count:,}" if before + since else "-" for count in (before, since)),
    ]


def _outages() -> str:
    rows = [
        [each["what"], f"{each['branches']:,}", each["failed"], f"{each['calls_in_vain']:,}",
         *_in_vain(each), _shown(each["back_s"]), _shown(each["seconds"])]
        for each in _read("outages")["outages"]
    ]  # fmt: skip
    head = ["outage of 120 s", "branches", "failed", "in vain", "opens (s)"]
    head += ["till then", "since"]
    return _table([*head, "back (s)", "run (s)"], rows)


def _documents_formats() -> str:
    formats = _read("documents-formats")["formats"]
    rows = []
    for kind, found in formats.items():
        ours, theirs = found["fanout"], found["markitdown"]
        row = [f"`.{kind}`", found["files"]]
        row += [f"{100 * each['found_share']:.1f}" for each in (ours, theirs)]
        row += [each["files_without_text"] for each in (ours, theirs)]
        row += [_shown(each["seconds_per_file"]["median"]) for each in (ours, theirs)]
        rows.append([*row, *(_shown(each["peak_mb"]["median"]) for each in (ours, theirs))])
    head = ["format", "files"]
    for name in ("% found", "empty", "s a file", "MB"):
        head += [name, "markitdown"]
    return _table(head, rows)


def _documents_scale() -> str:
    names = {"all": "all files", "pdf": "`.pdf`", "docx": "`.docx`"}
    scale = _read("documents-scale")["scale"]
    rows = [
        [text, _spread(scale[name]["one_core_s"]), _spread(scale[name]["two_cores_s"]),
         _spread(scale[name]["times_faster"])]
        for name, text in names.items()
    ]  # fmt: skip
    return _table(["files", "one core, s", "two cores, s", "times faster"], rows)


def _documents_memory() -> str:
    names = {
        "pages": "a PDF of 1,000 pages",
        "texts": "text files",
        "html": "HTML files",
        "parquet": "rows of a Parquet file",
    }
    memory = _read("documents-memory")["memory"]
    rows = [
        [text, f"{memory[name]['documents']:,}", _shown(memory[name]["seconds"]),
         *(_shown(memory[name]["client_mb"][when]) for when in ("at_a_fifth", "at_the_end"))]
        for name, text in names.items()
    ]  # fmt: skip
    return _table(["input", "documents", "seconds", "MB after a fifth", "at the end"], rows)


def _documents_rows() -> str:
    rows = [
        [f"`.{name}`", _shown(found["now_rows_per_s"]["median"]), _spread(found["now_over_before"])]
        for name, found in _read("documents-rows")["rows"].items()
    ]
    return _table(["rows of", "rows/s", "times those of before"], rows)


def _quality() -> str:
    rows = []
    for name, found in _read("quality")["ways"].items():
        count, correct = found["rows"], found["correct"]
        row = [name, f"{100 * found['usable_share']['value']:.0f} %", _percent(found["accuracy"])]
        tokens = found["output_tokens"]
        row += [f"{found['calls'] / count:.2f}", "" if tokens is None else f"{tokens / count:.1f}"]
        rows.append([*row, f"{found['calls'] / correct:.2f}" if correct else "none right"])
    head = ["asked for", "usable", "right (95 % interval)", "calls", "tokens"]
    return _table([*head, "calls per right answer"], rows)


def _percent(share: dict[str, float]) -> str:
    value, low, high = (100 * share[name] for name in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def _injections() -> str:
    found = _read("injections")
    rows = []
    for model, label in (("mock", "a mock that obeys"), ("local", "`local`")):
        for fences, of_fences in found[model].items():
            own = (of_fences.get(name, "") for name in _HARMS)
            rows.append([label, fences, str(of_fences["planted"]), *map(str, own)])
    head = ["model", "fences", "planted", "own answer", "another answer", "aggregate", "verdict"]
    return _table([*head, "passages", "comparison"], rows)


def _quality_confidence() -> str:
    rows = []
    for name, found in _read("quality")["ways"].items():
        shown = found["calibration"]
        if shown is not None:
            shares = [100 * shown[which] for which in ("confidence", "accuracy", "ece")]
            rows.append([name, *(f"{share:.0f} %" for share in shares)])
    return _table(["asked for", "mean confidence", "right", "error"], rows)


def _reduce_quality(model: str) -> str:
    rows = []
    for found in _read("reduce_quality")[model]["rows"]:
        wrong = found["wrong"]
        if found["mean_off"] is not None:
            wrong = f"off by {100 * found['mean_off']:.1f} %"
        asked = f"{found['kind']}, {found['texts']}"
        right = f"{found['right']} of {found['asked']}: {_percent(found['right_share'])}"
        costs = [_shown(found[name]) for name in ("calls", "input_tokens", "output_tokens")]
        rows.append([asked, found["way"], right, wrong, *costs])
    head = ["asked for, texts", "by", "right (95 % interval)", "wrong", "calls"]
    head += ["input tokens", "output tokens"]
    return _table(head, rows)


_WAYS = {
    "loop": "a plain loop",
    "as_written": "prompts as written",
    "auto": "the text first, one call ahead",
}
_MODELS = {"openai": "gpt-5-mini", "anthropic": "claude-sonnet-4-5"}


def _cost_job() -> str:
    rows = []
    loops: dict[str, list[float]] = {}
    for each in _read("cost-job")["rows"]:
        first, again = (one["usd"] for one in each["passes"])
        sums = [first, first + again]
        base = loops.setdefault(each["provider"], sums)
        shares = [f"{100 * own / whole:.0f} %" for own, whole in zip(sums, base, strict=True)]
        way = _WAYS.get(each["way"], f"fanout, `{each['way']}`")
        dollars = [f"{one:.2f}" for one in sums]
        rows.append(
            [f"`{_MODELS[each['provider']]}`", way, dollars[0], shares[0], dollars[1], shares[1]]
        )
    head = ["model", "run by", "once, $", "of the loop", "both runs, $", "of the loop"]
    return _table(head, rows)


def _cost_aspects() -> str:
    rows = []
    whole: dict[str, float] = {}
    for each in _read("cost-aspects")["rows"]:
        (cost,) = each["passes"]
        base, tokens = whole.setdefault(each["provider"], cost["usd"]), cost["tokens"]
        rows.append(
            [
                f"`{_MODELS[each['provider']]}`",
                _WAYS[each["way"]],
                f"{cost['usd']:.4f}",
                f"{100 * cost['usd'] / base:.0f} %",
                *(f"{tokens[name]:,}" for name in ("fresh", "written", "cached")),
            ]
        )
    head = ["model", "prompts", "$", "share", "plain tokens", "written", "cached"]
    return _table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    **{f"compare-{suite}": partial(_compared, suite)
       for suite in ("zero", "second", "thousand", "tail")},
    "engine": _engine,
    "fairness": _fairness,
    "max-workers": _max_workers,
    "rate-limits": _rate_limits,
    "permit-chain": _permit_chain,
    "publishing": _publishing,
    "steps": _steps,
    "traffic": _traffic,
    "profile": lambda: _profile("profile_branch"),
    "profile-provider": lambda: _profile("profile_branch-provider"),
    "startup": _startup,
    "growth-workers": lambda: _growth(
        "workers", "workers", ("share_of_ideal", "% of the ideal", 100)),
    "growth-payload": lambda: _growth("payload", "KB a document", ("megabytes_per_s", "MB/s", 1)),
    "growth-shard": lambda: _growth("shard", "branches in a shard", ("", "", 1)),
    "growth-window": lambda: _growth("window", "shards in flight", ("", "", 1)),
    "growth-line": lambda: _growth(
        "line", "ms added", ("round_trip_ms", "round trip, ms", 1)),
    "million": _million,
    "million-memory": _million_memory,
    "reduce-memory": _reduce_memory,
    "groups": _groups,
    "chaos": _chaos,
    "chaos-faults": _chaos_faults,
    "outages": _outages,
    "documents-formats": _documents_formats,
    "documents-scale": _documents_scale,
    "documents-memory": _documents_memory,
    "documents-rows": _documents_rows,
    "cost-job": _cost_job,
    "cost-aspects": _cost_aspects,
    "injections": _injections,
    "quality": _quality,
    "quality-confidence": _quality_confidence,
    "reduce-quality-mock": partial(_reduce_quality, "mock"),
    "reduce-quality-local": partial(_reduce_quality, "local"),
    "model-checks": _model_checks,
    "model-plan": _model_plan,
}  # fmt: skip


def renewed(text: str) -> str:
    """Return a page with its tables filled from the result files."""
    return _BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for page in _PAGES:
        before = page.read_text() if page.exists() else ""
        after = renewed(before)
        if after == before:
            continue
        if options.check:
            sys.exit(f"{page.name} is not what the results say: run benchmarks/tables.py")
        page.write_text(after)


if __name__ == "__main__":
    main()
