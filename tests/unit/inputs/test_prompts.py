from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.errors import PromptError, SpecError
from fanout.core.spec import make_spec
from fanout.inputs.intake import checked_documents
from fanout.inputs.prompts import BRANCH_NAMES, Template


def render(source, **values):
    return Template.parse(source).render(values)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Score: {input}", "Score: X"),
        ("{input}{input}", "XX"),
        ("{ input }", "X"),
        ("{{input}}", "{input}"),
        ('{{"a": {input}}}', '{"a": X}'),
        ("{{{input}}}", "{X}"),
        ("plain", "plain"),
    ],
)
def test_names_are_replaced_and_doubled_braces_are_braces(source, text):
    assert render(source, input="X") == text


def test_a_name_may_hold_spaces():
    assert Template.parse("{customer id}").render({"customer id": "7"}) == "7"


@given(st.text())
def test_a_value_is_never_read_as_a_template(value):
    assert render("<{input}>", input=value) == f"<{value}>"


def test_a_value_that_looks_like_a_template_stays_as_it_is():
    assert render("{input} {x}", input="{x} {{ }", x="1") == "{x} {{ } 1"


@pytest.mark.parametrize(
    "source", ["a {", "a }", "{}", "{ }", '{"a": 1} {input}', "{a\nb}", "{a{b}}"]
)
def test_a_brace_out_of_place_says_where_and_how_to_write_one(source):
    with pytest.raises(PromptError, match=r"prompt: the brace at character \d+ .*double it"):
        Template.parse(source)


def test_an_unknown_name_lists_the_known_ones():
    template = Template.parse("{inptu}", field="aspects.mood")
    with pytest.raises(PromptError) as caught:
        template.require([*BRANCH_NAMES, "who"])
    message = str(caught.value)
    assert message.startswith("aspects.mood: there is no {inptu}; did you mean {input}?")
    assert "{document}" in message
    assert "{who}" in message


def test_the_place_of_the_text_is_required():
    with pytest.raises(PromptError, match=r"prompt: must contain \{input\}"):
        Template.parse("{document}").require(BRANCH_NAMES)


def test_a_known_template_passes():
    template = Template.parse("{input} {who}")
    template.require([*BRANCH_NAMES, "who"])
    with pytest.raises(PromptError, match=r"no \{who\}"):
        template.require(BRANCH_NAMES)


def test_a_missing_value_names_itself():
    with pytest.raises(PromptError, match="no column 'who'"):
        render("{who}", input="x")


def test_a_name_may_say_whose_it_is():
    template = Template.parse("{fanout:document} {column:document} {column:who} {who}")
    values = {"document": "r.csv:2"}
    assert template.render(values, {"who": "Ann", "document": "x"}) == "r.csv:2 x Ann Ann"
    with pytest.raises(PromptError, match="no column 'nobody'"):
        render("{column:nobody}", input="x")


class Untouched(list[float]):
    """A large cell, which nothing may look at."""

    def __iter__(self):
        raise AssertionError


def test_only_the_columns_that_a_template_names_are_looked_at():
    columns = {"who": 7, "vector": Untouched([1.5])}
    for source, text in [("{input}", "x"), ("{who} {column.who} {fanout.input}", "7 7 x")]:
        assert Template.parse(source).render({"input": "x"}, columns) == text


def test_a_column_whose_name_has_a_prefix_is_that_column():
    columns = {"fanout.a": "1", "column.a": "2", "a": "3"}
    assert Template.parse("{fanout.a}{column.a}{a}").render({}, columns) == "123"


def taken(prompt, documents=("a\nb",), **fields):
    spec = make_spec(model="fake", prompt=prompt, split="lines", **fields)
    return list(checked_documents(spec, list(documents)))


@pytest.mark.parametrize(
    ("name", "needed"),
    [("before", "neighbours"), ("context", "retrieve"), ("title", "split"), ("subtask", "split")],
)
def test_a_name_that_needs_a_field_of_the_job_says_which(name, needed):
    with pytest.raises(PromptError, match=rf"^prompt: there is no {{{name}}}; it needs {needed}"):
        taken(f"{{{name}}} {{input}}")
    # Where no field of a job gives it, none is named.
    prompt = f"{{{name}}} {{input}}"
    with pytest.raises(PromptError, match=rf"^aggregate_prompt: there is no {{{name}}};") as caught:
        taken("{input}", aggregate_prompt=prompt)
    assert "it needs" not in str(caught.value)


@pytest.mark.parametrize("by", ["document", "product"])
def test_the_prompt_of_an_aggregate_has_its_group_by_another_name(by):
    words = (
        f"there is no {{{by}}} in the prompt of an aggregate: write {{group}}, which is its {by}"
    )
    with pytest.raises(PromptError, match=f"^aggregate_prompt: {words}$"):
        taken("{input}", aggregate_prompt=f"{{{by}}}: {{input}}", group_by=by)


def test_the_text_around_a_chunk_needs_neighbours_and_neighbours_need_a_prompt_with_it():
    assert len(taken("{before} {input} {fanout.after}", neighbours=1)) == 1
    with pytest.raises(PromptError, match=r"\{before\}; it needs neighbours"):
        taken("{before} {input}")
    with pytest.raises(SpecError, match=r"neighbours: has no effect, as no prompt has \{before\}"):
        taken("{input}", neighbours=1)
    rows = [{"text": "a", "before": "then"}]
    # A column keeps its name in a job that does not use fanout's.
    assert len(taken("{before} {input}", rows)) == 1
    with pytest.raises(PromptError, match=r"\{before\} is not clear"):
        taken("{before} {input}", rows, neighbours=1)
    steps = [{"name": "a", "prompt": "{input}"}, {"name": "b", "prompt": "{a} {after}"}]
    assert len(taken(None, steps=steps, neighbours=1)) == 1
    with pytest.raises(SpecError, match="neighbours: has no effect"):
        taken(None, steps=steps[:1], neighbours=1)
