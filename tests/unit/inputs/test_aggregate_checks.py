"""What an aggregate goes by, and measures, is there and of the right type before anything is sent."""

from __future__ import annotations

import pytest

from fanout.core.answer_parts import known_fields, part_of
from fanout.core.errors import SpecError
from fanout.core.spec import make_spec
from fanout.inputs.intake import checked_documents

REVIEW = {
    "$defs": {"City": {"type": "object", "properties": {"name": {"type": "string"}}}},
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["good", "bad"]},
        "stars": {"type": ["integer", "null"]},
        "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "city": {"$ref": "#/$defs/City"},
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"kind": {"type": "string"}}},
        },
        "sure": {"type": "boolean"},
    },
}
ROWS = [{"text": "a", "product": "tea", "kilos": 2}, {"text": "b", "product": "oil", "kilos": 3}]
TYPED = {"schema": REVIEW}
LABELS = {"choices": "good,bad"}


STEPS = {
    "prompt": None,
    "steps": [
        {"name": "kind", "prompt": "{input}", "choices": ["a", "b"]},
        {
            "name": "facts",
            "prompt": "{input}",
            "schema": {"properties": {"days": {"type": "integer"}}},
        },
        {"name": "note", "prompt": "{input} {kind}"},
    ],
}


def checked(rows=ROWS, **fields):
    spec = make_spec(**{"model": "fake", "prompt": "{input}", **fields})
    return list(checked_documents(spec, rows))


@pytest.mark.parametrize(
    "fields",
    [
        {"reduce": "vote", "by": "sentiment", **TYPED},
        {"reduce": "vote", "group_by": "title", "split": "model"},
        {
            "reduce": "vote",
            "group_by": "fanout.subtask",
            "split": "model",
            "prompt": "{subtask} {input}",
        },
        {"reduce": "vote", "by": "output.sentiment", **TYPED},
        {"reduce": "rank", "by": "stars", **TYPED},
        {"reduce": "top", "by": "-price", "k": 3, **TYPED},
        {"reduce": "top", "by": "column.kilos", **TYPED},
        {"reduce": "rank", "by": "sentiment", **TYPED},
        {
            "reduce": "table",
            "by": "product,sentiment",
            "measures": "count,share,mean:stars",
            **TYPED,
        },
        {
            "reduce": "table",
            "by": ["city.name", "items.*.kind", "column:product", "model"],
            **TYPED,
        },
        {"reduce": "table", "measures": "sum:column.kilos,max:kilos", **TYPED},
        {"reduce": "table", "by": "output,product,document", **LABELS},
        {"reduce": "vote", "by": "output", **LABELS},
        {"reduce": "merge", "by": "items", **TYPED},
        {"reduce": "table", "by": "anything,product", "measures": "mean:some"},
        {"reduce": "table", "by": "anything", "schema": {"type": "object"}},
        {"reduce": "table", "by": "aspect", "aspects": {"a": "{input}"}, "prompt": None, **TYPED},
    ],
)
def test_what_is_there_is_taken(fields):
    assert len(checked(**fields)) == 2


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            {"by": "prodct"},
            ["by: there is no column 'prodct'; did you mean product? known: kilos, "],
        ),
        ({"by": "product,nope"}, ["by: there is no column 'nope'; known: kilos, product"]),
        ({"measures": "sum:kilo"}, ["measures: there is no column 'kilo'; did you mean kilos?"]),
        ({"measures": ["sum:nope", "mean:nope"]}, ["measures: there is no column 'nope'"]),
        ({"reduce": "vote", "by": "nope"}, ["by: there is no column 'nope'"]),
        ({"reduce": "top", "by": "-nope"}, ["by: there is no column 'nope'"]),
        ({"by": "product,document,output,output.x", "measures": "sum:kilos"}, []),
        ({"by": "nope", "output_format": "json"}, []),
        (
            {"by": "knd", **STEPS},
            ["by: there is no column 'knd'; did you mean steps.kind? known: "],
        ),
        ({"by": "steps.kind,output.kind,column.product", **STEPS}, []),
        ({"by": "anything", "schema": {"type": "object"}}, []),
    ],
)
def test_a_name_that_no_column_has_is_said_before_answers_without_a_shape_are_paid(fields, names):
    told = []
    spec = make_spec(**{"model": "fake", "prompt": "{input}", "reduce": "table", **fields})
    list(checked_documents(spec, ROWS, notify=told.append))
    assert [notice.is_warning for notice in told] == [True] * len(names)
    assert all(n.text.startswith(name) for n, name in zip(told, names, strict=True)), told


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"aggregate_prompt": "{group}: {input}"}, "aggregate_prompt"),
        ({"aggregate_prompt": "{fanout.group}: {input}", "fold": "refine"}, "aggregate_prompt"),
        ({"reduces": [{"name": "sum", "reduce": "llm", "aggregate_prompt": "{group} {input}"}]},
         "reduce.sum.aggregate_prompt"),
        ({"aggregate_prompt": "{group}: {input}", "group_by": "product"}, None),
        ({"aggregate_prompt": "{count}: {input}"}, None),
    ],
)  # fmt: skip
def test_a_prompt_that_names_the_group_of_answers_without_groups_is_warned_of(fields, field):
    told = []
    list(
        checked_documents(
            make_spec(model="fake", prompt="{input}", **fields), ROWS, notify=told.append
        )
    )
    assert [(one.text, one.is_warning) for one in told] == [
        (f"{field}: {{group}} is empty, as the answers have no groups without group_by", True)
    ] * (field is not None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"by": "output..x"}, "by: 'output..x' names no field: there is nothing between"),
        ({"by": "output."}, "by: 'output.' names no field"),
        ({"by": ".x"}, "by: '.x' names no field"),
        ({"by": "a..b"}, "by: 'a..b' names no field"),
        ({"reduce": "rank", "by": "-a..b"}, "by: 'a..b' names no field"),
        ({"reduce": "table", "measures": "mean:a..b"}, "measures: 'a..b' names no field"),
        ({"by": "steps."}, "by: the job has no steps (got 'steps.'); write output.steps."),
        ({"by": "steps.kind"}, "by: the job has no steps (got 'steps.kind'); write output.steps.kind"),
        ({"reduce": [{"name": "a", "vote": "steps.kind"}]}, "reduce.a.by: the job has no steps"),
        ({"by": "steps.kind", "output_format": "json"}, "by: the job has no steps"),
    ],
)  # fmt: skip
def test_names_that_no_answer_can_have_are_refused(fields, words):
    with pytest.raises(SpecError) as caught:
        checked(**{"reduce": "vote", **fields})
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("name", ["approx.", "output.approx.", "output", "output.steps.kind", "*"])
def test_names_that_some_answers_have_are_taken(name):
    assert checked(reduce="vote", by=name, output_format="json")
    assert checked(
        [{"text": "x", "a..b": 1, "steps.kind": 2}], reduce="table", by="a..b,steps.kind"
    )
    steps = {"properties": {"steps": {"properties": {"kind": {}}}}}
    assert checked(reduce="vote", by="steps.kind", schema=steps)


def test_texts_without_columns_have_only_fields():
    told = []
    spec = make_spec(model="fake", prompt="{input}", reduce="table", by="nope")
    assert len(list(checked_documents(spec, ["a", "b"], notify=told.append))) == 2
    assert told == []
    for name, words in [("xyz", []), ("kinds", ["did you mean steps.kind?"])]:
        told.clear()
        spec = make_spec(model="fake", reduce="table", by=name, **STEPS)
        list(checked_documents(spec, ["a"], notify=told.append))
        assert len(told) == len(words)
        assert all(word in one.text for one, word in zip(told, words, strict=True)), told


def test_known_names_are_listed_once():
    with pytest.raises(SpecError) as caught:
        checked([{"text": "a", "sentiment": "good", "stars": 1}], reduce="vote", by="x", **TYPED)
    known = caught.value.reason.partition("known: ")[2].split(", ")
    assert len(known) == len({*known})


REFUSED = [
    ({"reduce": "vote", "by": "sentimnt", **TYPED},
     "by: there is no field or column 'sentimnt'; did you mean sentiment? known: sentiment, stars, "),
    ({"reduce": "vote", "by": "output.sentimnt", **TYPED},
     "by: the schema has no field 'sentimnt'; did you mean sentiment? known: sentiment, stars, "),
    ({"reduce": "table", "by": "city.nam", **TYPED}, "did you mean city.name?"),
    ({"reduce": "table", "by": "city.name.first", **TYPED}, "has no field 'city.name.first'"),
    ({"reduce": "table", "by": "items.kind", **TYPED}, "did you mean items.*.kind?"),
    ({"reduce": "table", "by": "prodct", **TYPED}, "did you mean product?"),
    ({"reduce": "table", "by": "column.prodct", **TYPED}, "no column 'prodct'; did you mean column.product?"),
    ({"reduce": "table", "by": "fanout.product", **TYPED}, "known: fanout.document, fanout.aspect"),
    ({"reduce": "table", "by": "aspect", **TYPED}, "by: 'aspect' needs aspects"),
    ({"reduce": "table", "measures": "mean:sentiment", **TYPED},
     "measures: 'sentiment' is no number by the schema (its type: enum)"),
    ({"reduce": "table", "measures": "sum:sure", **TYPED}, "(its type: boolean)"),
    ({"reduce": "table", "measures": "max:city", **TYPED}, "'city' is no number by the schema"),
    ({"reduce": "table", "measures": "max:document", **TYPED}, "'document' is no number"),
    ({"reduce": "table", "measures": "mean:strs", **TYPED}, "measures: there is no field or column 'strs'"),
    ({"reduce": "rank", "by": "sure", **TYPED}, "by: 'sure' is no number by the schema"),
    ({"reduce": "top", "by": "-items", **TYPED}, "by: 'items' is no number by the schema"),
    ({"reduce": "table", "by": "sentiment", **LABELS}, "by: answers are labels, and there is no"),
    ({"reduce": "table", "by": "output.sentiment", **LABELS}, "labels, which have no fields"),
    ({"reduce": "table", "measures": "mean:output", **LABELS}, "'output' is a label, and no number"),
    *(({"reduce": name, "by": "kind", **STEPS},
       "by: 'kind' is not clear: there is a step 'kind'; write steps.kind for its answer, or output.kind")
      for name in ("vote", "rank", "top", "merge", "table")),
    ({"reduce": "table", "measures": "mean:facts.days", **STEPS},
     "measures: 'facts.days' is not clear: there is a step 'facts'; write steps.facts.days"),
    ({"reduce": "vote", "group_by": "kind", **STEPS}, "there is no column 'kind'; did you mean steps.kind?"),
    ({"reduce": "table", "by": "kind", **STEPS, "output": "kind"},
     "there is no field or column 'kind'; did you mean steps.kind?"),
    ({"reduce": "table", "by": "steps.knd", **STEPS}, "did you mean steps.kind?"),
    ({"reduce": "vote", "group_by": "title"}, "group_by: there is no column 'title'"),
    ({"reduce": "vote", "group_by": "fanout.title"}, "group_by: there is no column 'fanout.title'"),
    ({"reduce": "vote", "group_by": "tile", "split": "model"}, "did you mean title?"),
    ({"reduce": "table", "by": "column.anything"}, "by: there is no column 'anything'"),
    ({"reduce": "table"}, "by: reduce 'table' needs by or measures"),
    ({"reduce": "table", "measures": "avg:stars", **TYPED},
     "measures: there is no measure 'avg:stars'; (allowed: count, share, mean:FIELD, min:FIELD, "),
    ({"reduce": "table", "measures": "Mean:stars,count"}, "did you mean mean?"),
    ({"reduce": "table", "measures": "mean"}, "'mean' needs a field, as in mean:stars"),
    ({"reduce": "table", "measures": "count:stars"}, "'count:stars' takes no field: write count"),
    ({"reduce": "table", "measures": "count,count"}, "measures: has 'count' twice"),
    ({"reduce": "table", "by": "a,a"}, "by: has 'a' twice"),
    ({"reduce": "table", "by": "a,,b"}, "by: has an empty name"),
    ({"reduce": "table", "by": "a.*,b.*"}, "by: several lists cannot be counted element by element"),
    ({"reduce": "table", "by": "count", "measures": "count"}, "by: a name is also a measure"),
    ({"reduce": "vote", "by": "a,b"}, "by: reduce 'vote' goes by one field"),
    ({"reduce": "top", "by": "a", "k": 0}, "k: must be 1 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_is_not_there_is_refused_with_what_there_is(fields, words):
    with pytest.raises(SpecError) as caught:
        checked(**fields)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["document", "model"])
@pytest.mark.parametrize("shape", [{}, TYPED, LABELS])
def test_an_origin_called_like_a_column_must_be_said_to_be_meant(name, shape):
    rows = [{"text": "a", name: "x"}]
    with pytest.raises(SpecError, match=f"by: '{name}' is not clear.*column.{name}"):
        checked(rows, reduce="table", by=name, **shape)
    for by in (f"column:{name}", f"fanout:{name}", f"column.{name}", f"fanout.{name}"):
        assert checked(rows, reduce="table", by=by, **shape)


def test_a_search_for_columns_does_not_read_on_for_fields_of_answers():
    read = []

    def rows():
        for at in range(5_000):
            read.append(at)
            yield {"text": "x" * 500, "product": "tea"}

    spec = make_spec(model="fake", prompt="{input}", reduce="table", by="label")
    next(iter(checked_documents(spec, rows())))
    assert len(read) < 5_000


def test_schemas_that_refer_to_themselves_have_an_end():
    tree = {"$defs": {"T": {"type": "object", "properties": {"next": {"$ref": "#/$defs/T"}}}},
            "$ref": "#/$defs/T"}  # fmt: skip
    assert "next.next" in known_fields(tree)
    assert part_of("next.next.next", schema=tree).sources == ("answer",)
    assert part_of("nxt", schema=tree).sources == ("column",)
