"""`--certainty` and `certainty`: as few calls as the answers allow, on the command line and in Python."""

from __future__ import annotations

import csv
import json

MODEL = """
import pathlib

def model(prompt):
    text, number = prompt.split(":")
    with pathlib.Path("calls").open("a") as file:
        file.write(text + "\\n")
    if text == "mixed":
        return "**b**" if number == "1" else "a"
    return "a"
"""
TEXTS = "same\nmixed\n"
JOB = ("--split", "lines", "--prompt", "{input}:{sample}", "--model", "counted:model")
CONSENSUS = ("--choices", "a,b", "--samples", "9", "--certainty", "0.95")


def test_as_few_answers_are_asked_for_as_make_the_majority_certain(fanout, here):
    (here / "counted.py").write_text(MODEL)
    (here / "in.txt").write_text(TEXTS)
    done = fanout("run", "in.txt", *JOB, *CONSENSUS, "--reduce", "vote", "--json", "--out", "out")
    assert done.status == 0
    calls = (here / "calls").read_text().split()
    assert (calls.count("same"), calls.count("mixed")) == (4, 6)
    said = json.loads(done.stdout)
    assert said["aggregated"] == {
        "winner": "a", "tied": [], "votes": {"a": 9, "b": 1}, "share": 0.9,
    }  # fmt: skip
    assert (said["total"], said["usage"]["calls"]) == (2, 10)
    rows = [json.loads(line) for line in (here / "out" / "outputs.jsonl").read_text().splitlines()]
    assert [(row["output"], row["votes"], row["share"], row["samples"]) for row in rows] == [
        ("a", {"a": 4}, 1.0, 4),
        ("a", {"a": 5, "b": 1}, 5 / 6, 6),
    ]
    done = fanout("results", said["run_id"], "--out", "table.csv")
    assert done.status == 0
    with (here / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["output"], row["samples"]) for row in table] == [("a", "4"), ("a", "6")]
    assert [float(row["share"]) for row in table] == [1, 5 / 6]


def test_a_consensus_of_functions_in_one_process(script):
    out = script("""
        from fanout import ParallelCalls

        asked = []

        def model(prompt):
            asked.append(prompt)
            return {"1": "no", "2": "No."}.get(prompt[-1], "yes")

        runner = ParallelCalls(llm=model, max_workers=2)
        result = runner.run(
            chunks=["one", "two", "three"], branch_prompt="{input} {sample}",
            samples=9, certainty=0.95, reduce="vote",
        )
        print(result.outputs, len(asked), result.usage.calls)
        print([(one.votes, one.samples) for one in result.branches])
        print(result.branches[0].share, result.aggregated["winner"])
    """)
    assert out.splitlines() == [
        "['yes', 'yes', 'yes'] 21 21",
        "[({'yes': 5, 'no': 2}, 7), ({'yes': 5, 'no': 2}, 7), ({'yes': 5, 'no': 2}, 7)]",
        f"{5 / 7} yes",
    ]
