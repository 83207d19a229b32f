"""`--reduce best` and `--reduce pairwise`: what a user sees of candidates and rankings."""

from __future__ import annotations

import csv
import json

JUDGE = r'''
import json
import pathlib
import re

ANSWERS = re.compile(r"<answer_A>\n(.*?)\n</answer_A>.*<answer_B>\n(.*?)\n</answer_B>", re.S)


def write(prompt):
    """A draft of as many words as its prompt says, by sample."""
    text, sample = prompt.split(":")
    return " ".join([text] * (1 + (int(sample) + 1) % 3))


def judge(prompt):
    """The longer one is better."""
    with pathlib.Path("judged").open("a") as file:
        file.write("x")
    one, other = map(len, ANSWERS.search(prompt).groups())
    winner = "A" if one > other else "B" if other > one else "tie"
    return json.dumps({"reasons": "length", "winner": winner})
'''
WRITE = ("-m", "drafts:write", "-p", "{input}:{sample}", "--judge-model", "drafts:judge")
LONGER = ("--criteria", "It is longer.", "--criteria", "It is right.")


def test_the_best_of_each_row_and_a_ranking_on_the_command_line(fanout, here):
    (here / "drafts.py").write_text(JUDGE)
    (here / "in.csv").write_text("text,kind\na,x\nbb,y\nccc,x\n")
    best = (*WRITE, *LONGER, "--reduce", "best", "--samples", "3")
    estimate = json.loads(fanout("estimate", "in.csv", *best, "--json").stdout)
    assert estimate["reduce"]["calls_likely"] == 12
    done = fanout("run", "in.csv", *best, "--json", "--out", "out")
    assert done.status == 0, done.stderr
    said = json.loads(done.stdout)
    assert {name: row["output"] for name, row in said["aggregated"].items()} == {
        "in.csv:2": "a a a", "in.csv:3": "bb bb bb", "in.csv:4": "ccc ccc ccc",
    }  # fmt: skip
    assert {row["sample"] for row in said["aggregated"].values()} == {1}
    assert {row["wins"] for row in said["aggregated"].values()} <= {1, 2}
    assert said["usage"]["calls"] == 9 + 12
    assert (here / "judged").read_text() == "x" * 12
    rows = [json.loads(line) for line in (here / "out" / "outputs.jsonl").read_text().splitlines()]
    assert [(row["document"], row["sample"]) for row in rows if row["is_best"]] == [
        ("in.csv:2", 1), ("in.csv:3", 1), ("in.csv:4", 1),
    ]  # fmt: skip
    assert fanout("results", said["run_id"], "--out", "table.csv").status == 0
    with (here / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["output"] for row in table if row["is_best"] == "true"] == [
        "a a a", "bb bb bb", "ccc ccc ccc",
    ]  # fmt: skip
    assert fanout("results", said["run_id"], "--out", "wide.csv", "--wide").status == 0
    assert "output.1.is_best" in (here / "wide.csv").read_text().partition("\n")[0]
    shown = fanout("results", said["run_id"]).stdout
    assert shown.splitlines()[0].split()[:3] == ["best", "of", "wins"]
    assert fanout("report", said["run_id"], "--out", "report.html").status == 0
    assert "It is longer.; It is right." in (here / "report.html").read_text()

    # A ranking of all of them, by groups, of which the first are shown.
    ranked = (
        *WRITE,
        *LONGER,
        "--reduce",
        "pairwise",
        "--samples",
        "3",
        "--group-by",
        "kind",
        "--k",
        "2",
    )
    done = fanout("run", "in.csv", *ranked)
    assert done.status == 0, done.stderr
    text = done.stdout
    assert (
        text.index("## x")
        < text.index("ccc ccc ccc")
        < text.index("ccc ccc\n")
        < text.index("## y")
    )
    assert " ".join(done.stderr.split()).count("reduce") >= 1
    done = fanout("run", "in.csv", *ranked, "--json")
    both = json.loads(done.stdout)["aggregated"]
    assert [(row["rank"], row["output"]) for row in both["y"]] == [(1, "bb bb bb"), (2, "bb bb")]
    # Rows have the ranks, and none behind the first.
    assert fanout("results", "latest", "--out", "ranked.csv").status == 0
    with (here / "ranked.csv").open() as file:
        ranks = {row["output"]: row["rank"] for row in csv.DictReader(file)}
    assert ranks == {
        "a a": "", "a a a": "", "a": "", "bb bb": "2", "bb bb bb": "1", "bb": "",
        "ccc ccc": "2", "ccc ccc ccc": "1", "ccc": "",
    }  # fmt: skip
    drawn = fanout("explain", "in.csv", *ranked)
    assert "drafts:judge compares answers by two" in drawn.stdout

    # What has no effect, or is missing, is refused with the reason.
    for options, problem in (
        (("--reduce", "best", "--samples", "2"), "needs criteria"),
        (("--reduce", "best", *LONGER), "needs several answers to choose from"),
        (("--reduce", "best", "--samples", "2", *LONGER, "--group-by", "kind"), "has no effect"),
        (("--reduce", "rank", *LONGER), "has no effect with reduce 'rank'"),
    ):
        done = fanout("run", "in.csv", "-m", "fake", "-p", "{input}", *options)
        assert done.status == 2
        assert problem in done.stderr
