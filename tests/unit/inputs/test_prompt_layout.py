"""What the prompts of one chunk share, and how it comes first."""

import pytest

from fanout.inputs.prompt_layout import (
    REFERENCE,
    common_parts,
    document_first,
    has_input,
    in_order,
)
from fanout.inputs.prompts import Template

VALUES = {"input": "TEXT", "document": "d1", "aspect": "a", "sample": "0"}


def parsed(*sources):
    return [Template.parse(source) for source in sources]


@pytest.mark.parametrize(
    ("sources", "shared", "is_of_input"),
    [
        (["Say {input} now"], "Say TEXT now", True),
        (["Say {input} as {sample}"], "Say TEXT as ", True),
        (["{sample}: {input}"], "", False),
        (["Good of {input}?", "Bad of {input}?"], "", False),
        (["{input} good?", "{input} bad?"], "TEXT", True),
        (["Of {document}: {input}\ngood?", "Of {document}: {input}\nbad?"], "Of d1: TEXT", True),
        (["Read {input} as {aspect}", "Read {input} as {aspect}!"], "Read TEXT as ", True),
        (["Read {fanout.input}", "Read {fanout.input} again"], "Read TEXT", True),
        (["Of {document}: good {input}", "Of {document}: bad {input}"], "Of d1", False),
    ],
)
def test_what_all_prompts_of_a_chunk_begin_with(sources, shared, is_of_input):
    templates = parsed(*sources)
    parts = common_parts(templates)
    assert has_input(templates[0], parts) is is_of_input
    for template in templates:
        laid_out = in_order(template, VALUES, {}, parts)
        assert laid_out.text == template.render(VALUES)
        assert laid_out.text[: laid_out.shared] == shared


def test_the_text_comes_first_and_the_template_refers_to_it():
    good, bad = (
        document_first(template, VALUES, {"stars": 5})
        for template in parsed("Good ({stars}) of:\n\n{input}", "Bad of {input} in {input}?")
    )
    head = "<document>\nTEXT\n</document>\n\n"
    assert good.text == f"{head}Good (5) of:\n\n{REFERENCE}"
    assert bad.text == f"{head}Bad of {REFERENCE} in {REFERENCE}?"
    assert good.shared == bad.shared == len(head)
    assert REFERENCE in document_first(Template.parse("{fanout.input}"), VALUES, {}).text
