"""Aggregates by field against plain Python, in any order of arrival and any partition."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.aggregators import Fields, Item, aggregate_groups, make_accumulator, whole

SCHEMA = {"type": "object", "additionalProperties": True}
LABELS = [
    ".NET",
    "NET",
    "C",
    "C#",
    "C++",
    "A",
    "A*",
    "a",
    "-5",
    "\u22125",
    "7,9",
    "79",
    "1",
    "true",
    "null",
]
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.integers(-3, 3),
    st.floats(-1e9, 1e9),
    st.sampled_from([0.1, 0.2, 0.3, 1e300, -1e300, 1e-300, 1.0, 1, 2**63, 2**63 + 1]),
)
VALUES = st.one_of(
    st.sampled_from(
        [*LABELS, 1, 1.0, True, False, None, [1], [1.0], {"a": 1, "b": 2}, {"b": 2, "a": 1.0}]
    ),
    NUMBERS,
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "label": VALUES,
        "n": st.one_of(NUMBERS, st.none(), st.just(True), st.just("many")),
        "in": st.fixed_dictionaries({"city": st.sampled_from(["Bonn", "Köln", None])}),
        "tags": st.lists(st.sampled_from(["x", "y", 1, 1.0]), max_size=4),
    },
)
BRANCHES = st.lists(
    st.tuples(st.one_of(st.none(), ANSWERS), st.sampled_from(["p", "q"])), max_size=25
)


def items_of(branches):
    return [
        Item(
            index=at,
            document=f"d{at}",
            output=None if answer is None else json.dumps(answer, ensure_ascii=bool(at % 2)),
            columns={"product": product},
        )
        for at, (answer, product) in enumerate(branches)
    ]


def result_of(name, items, fields, data):
    """The aggregate of the branches, which arrive in any order, in shards that are merged in any order."""
    shards = [make_accumulator(name, fields) for _ in range(data.draw(st.integers(1, 4)))]
    for item in data.draw(st.permutations(items)):
        shards[data.draw(st.integers(0, len(shards) - 1))].add(item)
    first, *others = data.draw(st.permutations(shards))
    for other in others:
        first.merge(other)
    made = whole(first.result())
    alone = make_accumulator(name, fields)
    for item in items:
        alone.add(item)
    assert msgspec.json.encode(made) == msgspec.json.encode(whole(alone.result()))
    # What a client reads.
    assert msgspec.json.decode(msgspec.json.encode(made))["value"] == made.value
    return made


def same(value):
    """A key that two values share if they are the same JSON value."""
    if isinstance(value, bool) or value is None:
        return (str(value),)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, list):
        return ("list", tuple(map(same, value)))
    if isinstance(value, dict):
        return ("object", frozenset((key, same(one)) for key, one in value.items()))
    return ("text", value)


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@given(branches=BRANCHES, data=st.data())
def test_a_vote_counts_equal_values(branches, data):
    fields = Fields(by=("label",), schema=SCHEMA)
    made = result_of("vote", items_of(branches), fields, data)
    cast = [answer["label"] for answer, _ in branches if answer is not None and "label" in answer]
    counts = Counter(map(same, cast))
    assert sorted(made.value["votes"].values()) == sorted(counts.values())
    most = [one for one, count in counts.items() if count == max(counts.values())]
    assert (made.value["winner"] is None) == (len(most) != 1)
    assert len(made.value["tied"]) == (len(most) if len(most) > 1 else 0)
    if len(most) == 1 and most[0][0] == "text":
        assert made.value["winner"] in (most[0][1], json.dumps(most[0][1], ensure_ascii=False))


@given(labels=st.lists(st.sampled_from(LABELS), max_size=30), data=st.data())
def test_a_vote_on_labels_shows_them_as_they_are(labels, data):
    items = [Item(index=at, document="d", output=label) for at, label in enumerate(labels)]
    votes = result_of("vote", items, Fields(choices=tuple(LABELS)), data).value["votes"]
    assert votes == dict(Counter(labels))
    assert list(votes) == list(dict.fromkeys(labels))


@given(branches=BRANCHES, data=st.data(), k=st.integers(1, 6), sign=st.sampled_from(["", "-"]))
def test_rank_and_top_sort_by_the_number(branches, data, k, sign):
    items, by = items_of(branches), (f"{sign}n",)
    answered = [
        (answer.get("n"), at) for at, (answer, _) in enumerate(branches) if answer is not None
    ]
    direction = 1 if sign else -1
    scored = sorted((direction * n, at) for n, at in answered if is_number(n))
    unscored = [at for n, at in answered if not is_number(n)]
    order = [at for _, at in scored] + unscored
    ranked = result_of("rank", items, Fields(by=by, schema=SCHEMA), data).value
    assert [row["index"] for row in ranked] == order
    for row in ranked:
        score = row["score"]
        above = len(scored) if score is None else sum(n < direction * score for n, _ in scored)
        assert row["rank"] == above + 1
        assert row["output"] == branches[row["index"]][0]
    assert result_of("rank", items, Fields(by=by, schema=SCHEMA, k=k), data).value == ranked[:k]
    top = result_of("top", items, Fields(by=by, schema=SCHEMA, k=k), data)
    assert top.value == ranked[: min(k, len(scored))]
    # What is left out, and equal to the last that is kept.
    last = top.value[-1]["score"] if top.value else None
    tied = [row for row in ranked if row["score"] == last] if last is not None else []
    kept = sum(row["score"] == last for row in top.value)
    notes = [note for note in top.notes if "share rank" in note]
    start = f"{len(tied):,} answers share rank {top.value[-1]['rank'] if top.value else 0}: "
    assert [note.startswith(start) for note in notes] == [True] * (len(tied) > kept)
    if notes:
        assert notes[0].endswith(f" kept, and {len(tied) - kept:,} left out")


MEASURES = ("count", "share", "mean:n", "min:n", "max:n", "sum:n")


def rounded(exact):
    try:
        return float(exact)
    except OverflowError:
        return None


def measured(answers, total):
    """What plain Python makes of the same answers."""
    numbers = [answer["n"] for answer in answers if is_number(answer.get("n"))]
    exact = sum(map(Fraction, numbers))
    is_whole = all(isinstance(number, int) for number in numbers)
    return {
        "count": len(answers),
        "share": len(answers) / total if total else 0.0,
        "mean:n": rounded(exact / len(numbers)) if numbers else None,
        "min:n": min(numbers, default=None),
        "max:n": max(numbers, default=None),
        "sum:n": (sum(numbers) if is_whole else rounded(exact)) if numbers else None,
    }


def parts_of(answer, product):
    city = answer.get("in", {}).get("city")
    return answer.get("label"), product, city


@given(branches=BRANCHES, data=st.data())
def test_a_table_counts_and_measures(branches, data):
    fields = Fields(by=("label", "column.product", "in.city"), measures=MEASURES, schema=SCHEMA)
    rows = result_of("table", items_of(branches), fields, data).value
    groups = {}
    for answer, product in branches:
        if answer is not None:
            groups.setdefault(tuple(map(same, parts_of(answer, product))), []).append(answer)
    found = {tuple(same(row[name]) for name in fields.by): row for row in rows}
    assert found.keys() == groups.keys()
    assert len(found) == len(rows)
    total = sum(answer is not None for answer, _ in branches)
    for key, answers in groups.items():
        row = found[key]
        assert {name: row[name] for name in MEASURES} == measured(answers, total)


@given(branches=BRANCHES, data=st.data())
def test_a_table_without_by_is_one_row_and_sums_are_those_of_python(branches, data):
    items = items_of(branches)
    [row] = result_of("table", items, Fields(measures=MEASURES, schema=SCHEMA), data).value
    answers = [answer for answer, _ in branches if answer is not None]
    assert row == measured(answers, len(answers)) | {"share": 1.0 if answers else 0.0}
    floats = [answer["n"] for answer in answers if isinstance(answer.get("n"), float)]
    if floats and len(floats) == sum(is_number(answer.get("n")) for answer in answers):
        assert row["sum:n"] == math.fsum(floats)


@given(branches=BRANCHES, data=st.data())
def test_each_element_of_a_list_is_counted_once_an_answer(branches, data):
    fields = Fields(by=("tags.*",), schema=SCHEMA)
    rows = result_of("table", items_of(branches), fields, data).value
    counts = Counter()
    for answer, _ in branches:
        if answer is not None:
            counts.update({*answer.get("tags", [])} or {None})
    assert {row["tags.*"]: row["count"] for row in rows} == counts
    made = result_of("vote", items_of(branches), fields, data)
    cast = {str(tag).removesuffix(".0"): votes for tag, votes in counts.items() if tag is not None}
    votes = {label.removesuffix(".0"): count for label, count in made.value["votes"].items()}
    assert votes == cast


@given(branches=BRANCHES, data=st.data(), name=st.sampled_from(["merge", "concat"]))
def test_merge_and_concat_are_those_of_the_input_order(branches, data, name):
    made = result_of(name, items_of(branches), Fields(schema=SCHEMA), data)
    answers = [answer for answer, _ in branches if answer is not None]
    assert made.succeeded == len(answers)
    if name == "merge":
        tags = [tag for answer in answers for tag in answer.get("tags", [])]
        assert made.value.get("tags", []) == tags
    [by] = [result_of("merge", items_of(branches), Fields(by=("tags",), schema=SCHEMA), data)]
    assert by.value == ([tag for answer in answers for tag in answer.get("tags", [])] or
                        ([] if any("tags" in answer for answer in answers) else {}))  # fmt: skip


def listed(value):
    return value if isinstance(value, list) else [value]


def merged(values):
    """What plain Python merges values to, all of them at once."""
    if not values:
        return {}
    first, *rest = values
    if isinstance(first, list):
        return first + [one for value in rest for one in listed(value)]
    at = 0
    if isinstance(first, dict):
        at = next((n for n, one in enumerate(rest) if not isinstance(one, dict)), len(rest))
        objects = [first, *rest[:at]]
        names = dict.fromkeys(name for one in objects for name in one)
        first = {name: merged([one[name] for one in objects if name in one]) for name in names}
    else:
        differs = (n for n, one in enumerate(rest) if same(one) != same(first))
        at = next(differs, len(rest))
    rest = rest[at:]
    if not rest:
        return first
    if isinstance(rest[0], list):
        return [first, *(one for value in rest for one in listed(value))]
    found = {same(first): first}
    for value in rest:
        for one in listed(value):
            found.setdefault(same(one), one)
    return list(found.values())


@given(branches=BRANCHES, data=st.data())
def test_a_merge_is_that_of_plain_python(branches, data):
    answers = [answer for answer, _ in branches if answer is not None]
    made = result_of("merge", items_of(branches), Fields(schema=SCHEMA), data)
    assert json.dumps(made.value) == json.dumps(merged(answers))
    for name in ("label", "n", "in"):
        fields = Fields(by=(name,), schema=SCHEMA)
        made = result_of("merge", items_of(branches), fields, data)
        values = [answer[name] for answer in answers if name in answer]
        assert json.dumps(made.value) == json.dumps(merged(values))


def aggregate(name, outputs, columns=None, **fields):
    items = [
        Item(index=at, document=f"d{at}", output=output, columns=(columns or {}))
        for at, output in enumerate(outputs)
    ]
    return aggregate_groups(name, items, Fields(**fields))[""]


def test_a_table_is_sorted_by_kind_and_value_null_last():
    answers = ["b", "a", 10, 9, 9.5, True, None, [1], {"x": 1}, "B", False]
    made = aggregate("table", [json.dumps({"v": one}) for one in answers], by=("v",), schema=SCHEMA)
    assert [row["v"] for row in made.value] == [
        9, 9.5, 10, "B", "a", "b", False, True, [1], {"x": 1}, None,
    ]  # fmt: skip


def test_a_sum_beyond_the_largest_float_is_null_and_whole_numbers_stay_exact():
    answers = [json.dumps({"n": n}) for n in [1e308, 1e308, 2**70, 1]]
    measures = ("sum:n", "mean:n", "max:n", "min:n")
    [row] = aggregate("table", answers, measures=measures, schema=SCHEMA).value
    assert row == {"sum:n": None, "mean:n": 5e307, "max:n": 1e308, "min:n": 1}
    [row] = aggregate("table", answers[2:], measures=measures, schema=SCHEMA).value
    assert row["sum:n"] == 2**70 + 1


def test_values_that_look_alike_are_told_apart():
    answers = ["1", 1, True, "true", None, "null", 1.0]
    made = aggregate("vote", [json.dumps({"v": one}) for one in answers], by=("v",), schema=SCHEMA)
    assert made.value["votes"] == {
        '"1"': 1, "1": 2, "true": 1, '"true"': 1, "null": 1, '"null"': 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["vote", "rank", "top", "table", "merge"])
def test_answers_without_a_shape_have_fields_too(name):
    outputs = ['```json\n{"v": 2}\n```', 'Sure! {"v": 7}', "no JSON", None, '{"w": 1}']
    made = aggregate(name, outputs, by=("v",))
    assert made.succeeded == 4
    value = {
        "vote": {"2": 1, "7": 1},
        "rank": [7, 2, None, None],
        "top": [7, 2],
        "table": [(2, 1), (7, 1), (None, 2)],
        "merge": [2, 7],
    }[name]
    found = {
        "vote": lambda: made.value["votes"],
        "rank": lambda: [row["score"] for row in made.value],
        "top": lambda: [row["score"] for row in made.value],
        "table": lambda: [(row["v"], row["count"]) for row in made.value],
        "merge": lambda: made.value,
    }[name]()
    assert found == value
    assert any("d4" in note for note in made.notes)


def test_labels_and_columns_are_counted_together():
    labels = ["good", "bad", "good", "good"]
    items = [
        Item(index=at, document="d", output=label, columns={"product": "tea" if at < 3 else "oil"})
        for at, label in enumerate(labels)
    ]
    fields = Fields(by=("product", "output"), measures=("count", "share"), choices=("good", "bad"))
    assert aggregate_groups("table", items, fields)[""].value == [
        {"product": "oil", "output": "good", "count": 1, "share": 0.25},
        {"product": "tea", "output": "bad", "count": 1, "share": 0.25},
        {"product": "tea", "output": "good", "count": 2, "share": 0.5},
    ]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"schema": {"type": "object", "properties": {"v": {}}}}, {"v": "answer", "w": "column"}),
        ({"choices": ("x", "y")}, {"v": "column"}),
        ({}, {"v": "answer", "w": "column", "column.v": "column", "output.v": "answer"}),
    ],
)
def test_which_of_a_field_and_a_column_a_plain_name_is(fields, names):
    answer = "x" if "choices" in fields else '{"v": "answer"}'
    columns = {"v": "column", "w": "column"}
    for name, where in names.items():
        [row] = aggregate("table", [answer], columns, by=(name,), **fields).value
        assert row[name] == where


def test_a_field_that_the_schema_has_and_the_answer_not_is_no_column():
    schema = {"type": "object", "properties": {"v": {}}}
    [row] = aggregate("table", ["{}"], {"v": "column"}, by=("v",), schema=schema).value
    assert row == {"v": None, "count": 1}


@pytest.mark.parametrize("name", ["column.price", "price"])
@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, "{}"),
        ({}, "no JSON"),
        ({"choices": ("x", "y")}, "x"),
        ({"schema": {"type": "object", "properties": {"v": {}}}}, '{"v": 1}'),
    ],
)
def test_numbers_in_cells_of_text_are_measured_and_others_noted(name, fields, output):
    items = [
        Item(index=at, document=f"d{at}", output=output, columns={"price": price})
        for at, price in enumerate(["7,9", "\u22121", "7,900", "cheap", None, 2])
    ]
    fields = Fields(measures=(f"sum:{name}", "count"), **fields)
    made = aggregate_groups("table", items, fields)[""]
    assert made.value == [{f"sum:{name}": 7908.9, "count": 6}]
    [note] = made.notes
    assert note.startswith(f"2 answers have no number in {name}")
    assert note.endswith("d3, d4")


def test_a_text_in_an_answer_is_no_number_of_a_column():
    answers = ['{"price": "7"}', '{"price": 8}']
    [row] = aggregate("table", answers, {"price": "9"}, measures=("sum:price",)).value
    assert row == {"sum:price": 8}


WRITTEN = ["3.10", "3.1", "3.10", "1e1", "10", "10.0", " 3.100\n", "7", "7.0"]


@given(order=st.permutations(WRITTEN), data=st.data())
def test_equal_numbers_are_shown_as_the_first_was_written_everywhere(order, data):
    items = [Item(index=at, document="d", output=answer) for at, answer in enumerate(order)]
    first = {}
    for answer in order:
        first.setdefault(float(answer), answer.strip())
    counts = {first[value]: count for value, count in Counter(map(float, order)).items()}
    for by in ((), ("output",)):
        assert result_of("vote", items, Fields(by=by), data).value["votes"] == counts
    rows = result_of("table", items, Fields(by=("output",)), data).value
    assert [(str(row["output"]), row["count"]) for row in rows] == [
        (first[value], counts[first[value]]) for value in sorted(first)
    ]
    # What JSON writes in the same way stays a number.
    for row in rows:
        form = str(row["output"])
        assert isinstance(row["output"], str) == (json.dumps(json.loads(form)) != form)


@pytest.mark.parametrize(
    ("values", "shown"), [([1.0, 1], 1.0), ([1, 1.0], 1), ([{"b": 1.0, "a": 2}, {"a": 2, "b": 1}],
                                                           {"b": 1.0, "a": 2})]
)  # fmt: skip
def test_a_value_of_a_field_is_shown_as_the_first_one(values, shown):
    answers = [json.dumps({"v": value}) for value in values]
    [row] = aggregate("table", answers, by=("v",), schema=SCHEMA).value
    assert json.dumps(row["v"]) == json.dumps(shown)
    assert aggregate("vote", answers, by=("v",), schema=SCHEMA).value["winner"] == (
        json.dumps(shown)
    )


@pytest.mark.parametrize("fields", [{"by": ("v",)}, {"by": ("v",), "schema": SCHEMA}])
@pytest.mark.parametrize(("value", "winner"), [(None, "null"), ("null", '"null"'), ("no", "no")])
def test_null_is_not_the_text_null(fields, value, winner):
    made = aggregate("vote", [json.dumps({"v": value})] * 2, **fields)
    assert made.value["winner"] == winner


def test_origins_and_groups():
    items = [
        Item(index=at, document=f"d{at % 2}", model=f"m{at % 3}", group=f"g{at % 2}", output="x")
        for at in range(12)
    ]
    fields = Fields(by=("document", "model"))
    made = aggregate_groups("table", items, fields)
    assert list(made) == ["g0", "g1"]
    assert made["g1"].value == [
        {"document": "d1", "model": f"m{at}", "count": 2} for at in range(3)
    ]
