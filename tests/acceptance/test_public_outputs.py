"""What programs read of fanout has the fields that are recorded in public_outputs.json.

``RECORD=1 pytest tests/acceptance/test_public_outputs.py`` records a change on purpose; its diff is
then part of the change.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import metadata
from pathlib import Path

from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from fanout import Client

from .test_metrics import fetch, metrics

RECORD = Path(__file__).with_name("public_outputs.json")
# Objects whose keys are no names of ours: kinds of error, models, queues, groups, workers.
_KEYED = {"errors", "limits", "runs", "ended", "queues", "aggregated", "aspects", "columns"}
_UNKNOWN = ": null"


def paths(value, at=""):
    """Each field with the type of its value, as ``.stages[].total: int``."""
    if isinstance(value, dict) and value:
        is_keyed = at.rpartition(".")[2] in _KEYED
        for key, one in value.items():
            yield from paths(one, f"{at}.{'*' if is_keyed else key}")
    elif isinstance(value, list) and value:
        for one in value:
            yield from paths(one, f"{at}[]")
    else:
        # A share may be 0 or 0.0: to a program that reads JSON they are the same.
        name = "number" if type(value) in {int, float} else type(value).__name__
        yield at + (_UNKNOWN if value in (None, [], {}) else f": {name}")


def fields(text):
    """The fields of JSON text: of one object, or of one a line."""
    try:
        rows = [json.loads(text)]
    except json.JSONDecodeError:
        rows = [json.loads(line) for line in text.splitlines()]
    return {path for row in rows for path in paths(row)}


def printed(*arguments):
    """What a command prints to standard output. In this process: one of its own takes a second."""
    [entry] = metadata.entry_points(group="console_scripts", name="fanout")
    group = vars(sys.modules[entry.load().__module__])["cli"]
    done = CliRunner().invoke(group, arguments, standalone_mode=False)
    assert done.exception is None, (arguments, done)
    return done.stdout


def test_what_programs_read_is_what_is_recorded(here, broker_url, start_worker, monkeypatch):
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    worker = start_worker("--concurrency", "4", FANOUT_LOG_FORMAT="json")
    found = {}

    def keep(*arguments):
        options = [word for word in arguments[1:] if word.startswith("--")]
        found[" ".join(["fanout", arguments[0], *sorted(options)])] = fields(printed(*arguments))

    rows = [f"document {i},t{i % 2}" for i in range(12)]
    Path("rows.csv").write_text("\n".join(["text,tag", *rows]) + "\n")
    Path("job.yaml").write_text(
        "inputs: rows.csv\nprompt: '{input}'\nmodel: fake?fail_rate=0.4&seed=3&answer=7\n"
        "reduce: vote\ngroup_by: tag\nmin_success: 0.1\nmax_attempts: 1\nrpm: 99999\n"
    )
    keep("run", "job.yaml", "--json", "--out", "out")
    files = {path.name: path.read_text() for path in Path("out").iterdir()}
    found.update((name, fields(text)) for name, text in files.items())
    for command in ("status", "errors", "results", "report", "watch", "cancel", "pause"):
        keep(command, "latest", "--json")
    keep("errors", "latest", "--summary", "--json")
    keep("retry", "latest", "--json")
    for command in ("runs", "workers", "heal", "doctor", "setup-server"):
        keep(command, "--json")
    with Client() as client:
        run = client.find("latest")
        run.wait(timeout_s=120)
        found["Result.to_dict()"] = fields(json.dumps(run.result().to_dict()))
    keep("submit", "job.yaml", "--json")
    keep("delete", "latest", "--json")
    with metrics(broker_url) as url:
        found["metrics"] = {
            f"{family.type} {sample.name}{sorted(sample.labels)}"
            for family in text_string_to_metric_families(fetch(url))
            for sample in family.samples
        }
    worker.stop()
    log = [line for line in worker.log.read_text().splitlines() if line.startswith("{")]
    found["each line of a worker's log"] = set.intersection(*(fields(line) for line in log))
    compare(found)


def compare(found):
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if os.environ.get("RECORD"):
        recorded = {name: sorted(now) for name, now in found.items()}
        RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert found.keys() == recorded.keys()
    for name, now in found.items():
        before = set(recorded[name])
        assert unmatched(now, before) == unmatched(before, now) == set(), name


def unmatched(paths, others):
    """The paths that are not among the others; an unknown stands for itself and all below it."""
    return {path for path in paths - others if not any(fits(path, other) for other in others)}


def fits(path, other):
    return is_below(path, other) or is_below(other, path)


def is_below(path, unknown):
    place = unknown.removesuffix(_UNKNOWN)
    return place != unknown and re.match(rf"{re.escape(place)}(\W|$)", path) is not None
