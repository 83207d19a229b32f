"""What a user sees of the sources of an aggregate, and of what is behind it."""

from __future__ import annotations

import json
import re

import pytest

MODEL = """
import re

def cite(prompt: str) -> str:
    if not prompt.startswith("SUM"):
        if "bad" in prompt:
            raise ValueError("no")
        return f"It is {prompt}."
    shown = re.findall(r"^=== \\w+ (\\[s-\\w+\\])$", prompt, re.MULTILINE)
    return " ".join(f'One says "It is" {cited}.' for cited in shown) + " Another [s-invented]."
"""
ASK = ("-m", "citing:cite", "-p", "{input}", "--aggregate", "SUM {input}", "--max-attempts", "1")


@pytest.fixture
def run(fanout, here, monkeypatch):
    (here / "citing.py").write_text(MODEL)
    (here / "texts.csv").write_text("text,of\nfresh,a\nbad,a\nold,b\n")
    monkeypatch.setenv("PYTHONPATH", str(here))
    return lambda *options: fanout("run", "texts.csv", *ASK, *options)


def test_the_text_has_the_sources_below_and_says_what_is_missing(run, here):
    done = run("--sources", "--report", "page.html")
    assert done.status == 0, done.stderr
    text, _, listed = done.stdout.partition("\n\nSources:\n")
    first, second = re.findall(r"\[(s-[a-z2-7]{7})\]", text)
    assert (
        text
        == f'One says "It is" [{first}]. One says "It is" [{second}]. Another [unknown source].'
    )
    assert listed == (f"  [{first}] texts.csv:2\n  [{second}] texts.csv:4\n")
    assert "behind it: 2 of 3 branches (66.7%), 2 of 3 documents; failed: internal 1" in done.stderr
    page = (here / "page.html").read_text()
    assert f'<a href="#source-0-{first}" title="texts.csv:2">[{first}]</a>' in page
    assert "Behind it: 2 of 3 branches (66.7%)" in page


def test_json_has_sources_and_coverage_by_group(run):
    done = run("--sources", "--group-by", "of", "--min-group-success", "0.9", "--json")
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["aggregated"]["a"] is None
    [source] = found["sources"]["b"]
    assert found["aggregated"]["b"].startswith(f'One says "It is" [{source["id"]}]')
    assert source == {
        "id": source["id"], "document": "texts.csv:4", "pages": [], "chunk": 2, "position": 0,
        "is_part": False, "index": 2, "count": 1,
    }  # fmt: skip
    coverage = found["aggregate_coverage"]
    assert coverage["a"]["problem"].startswith(
        "too little is behind it (min_group_success is 90.0%)"
    )
    assert (coverage["a"]["share"], coverage["b"]["share"]) == (0.5, 1.0)


def test_a_group_with_too_little_behind_it_says_so(run):
    done = run("--group-by", "of", "--min-group-success", "0.9")
    assert (
        "## a\n\n(no aggregate: too little is behind it (min_group_success is 90.0%): "
        in done.stdout
    )
    assert "## b\n\n" in done.stdout


def test_the_last_line_of_a_stream_has_the_sources(run):
    done = run("--sources", "--stream")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last.keys() == {"aggregated", "sources"}
    assert [one["index"] for one in last["sources"]] == [0, 2]
