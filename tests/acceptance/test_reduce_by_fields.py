"""Aggregates by field of a table of rows, by the command line and real workers."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from fractions import Fraction

import pytest

LABELS = [".NET", "NET", "A*", "A"]
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": LABELS},
        "stars": {"type": ["integer", "null"]},
        "price": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["label", "stars", "price", "tags"],
}
# More than one shard.
COUNT = 510
FAILED = 7


@pytest.fixture(scope="module")
def answers():
    """The answer of each row, in several shards; None is a failed one."""
    return [
        None if n == FAILED else {
            "label": LABELS[n * n % 7 % 4],
            "stars": None if n % 11 == 0 else n % 5 + 2**60,
            "price": n / 10,
            "tags": ["x", "y"][: n % 3],
        }
        for n in range(COUNT)
    ]  # fmt: skip


@pytest.fixture
def run(fanout, here, answers):
    (here / "echo.py").write_text(
        "import json\nANSWERS = json.load(open('answers.json'))\n\n\n"
        "def ask(prompt):\n"
        "    answer = ANSWERS[int(prompt.split()[0])]\n"
        "    if answer is None:\n"
        "        raise ValueError('no answer')\n"
        "    return json.dumps(answer)\n"
    )
    (here / "answers.json").write_text(json.dumps(answers))
    (here / "schema.json").write_text(json.dumps(SCHEMA))
    with (here / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "product", "kilos"])
        writer.writerows([n, f"p{n % 3}", f"{n},5"] for n in range(COUNT))
    common = ["run", "in.csv", "-m", "echo:ask", "-p", "{input}\n", "--max-attempts", "1"]
    return lambda *options: fanout(*common, "--schema", "schema.json", *options)


def aggregated(done):
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)["aggregated"]


def groups(answers):
    found = defaultdict(list)
    for n, answer in enumerate(answers):
        if answer is not None:
            found[f"p{n % 3}"].append((n, answer))
    return found


def test_a_table_of_a_column_and_a_field(run, fanout, answers):
    options = [
        "--reduce",
        "table",
        "--by",
        "product,label",
        "--measure",
        "count,share,mean:stars,sum:price",
    ]
    done = run(*options)
    rows = aggregated(fanout("results", "latest", "--json"))
    expected = []
    for product, some in sorted(groups(answers).items()):
        for label in sorted(LABELS):
            own = [answer for _, answer in some if answer["label"] == label]
            stars = [answer["stars"] for answer in own if answer["stars"] is not None]
            if own:
                expected.append({
                    "product": product,
                    "label": label,
                    "count": len(own),
                    "share": len(own) / (COUNT - 1),
                    "mean:stars": float(Fraction(sum(stars), len(stars))),
                    "sum:price": float(sum(Fraction(answer["price"]) for answer in own)),
                })  # fmt: skip
    assert rows == expected
    head, first, *_ = done.stdout.splitlines()
    assert head.split() == ["product", "label", "count", "share", "mean:stars", "sum:price"]
    assert first.split()[:3] == ["p0", expected[0]["label"], str(expected[0]["count"])]
    assert "answers have no number in stars" in done.stderr
    assert "1 failed and left out" in done.stderr


def test_top_rank_vote_and_merge_by_a_field_of_each_group(run, answers):
    some = groups(answers)
    tops = aggregated(
        run("--reduce", "top", "--by=-stars", "-k", "4", "--group-by", "product", "--json")
    )
    votes = aggregated(run("--reduce", "vote", "--by", "label", "--group-by", "product", "--json"))
    ranks = aggregated(run("--reduce", "rank", "--by", "stars", "--group-by", "product", "--json"))
    merged = aggregated(run("--reduce", "merge", "--by", "tags", "--group-by", "product", "--json"))
    for product, own in some.items():
        scored = sorted((a["stars"], n) for n, a in own if a["stars"] is not None)
        assert [(row["score"], row["index"]) for row in tops[product]] == scored[:4]
        assert tops[product][0]["output"] == answers[scored[0][1]]
        given = [answer["label"] for _, answer in own]
        assert votes[product]["votes"] == {
            label: given.count(label) for label in dict.fromkeys(given)
        }
        order = sorted((-a["stars"], n) for n, a in own if a["stars"] is not None)
        order += [(None, n) for n, a in own if a["stars"] is None]
        assert [row["index"] for row in ranks[product]] == [n for _, n in order]
        assert merged[product] == [tag for _, answer in own for tag in answer["tags"]]


def test_labels_are_counted_beside_a_column_and_wrong_names_refused(run, fanout):
    done = run("--reduce", "table", "--by", "produkt", "--measure", "count")
    assert done.status == 2
    assert "--by: there is no field or column 'produkt'; did you mean product?" in done.stderr
    done = run("--reduce", "table", "--measure", "mean:label")
    assert (done.status, "--measures: 'label' is no number" in done.stderr) == (2, True)
    common = ["in.csv", "-m", "fake", "-p", "{input}", "--choices", "good,bad"]
    made = fanout("run", *common, "--reduce", "table", "--by", "output", "--measure",
                  "count,sum:column.kilos", "--json")  # fmt: skip
    rows = aggregated(made)
    assert [row["output"] for row in rows] == ["bad", "good"]
    assert sum(row["count"] for row in rows) == COUNT
    assert sum(row["sum:column.kilos"] for row in rows) == sum(n + 0.5 for n in range(COUNT))
