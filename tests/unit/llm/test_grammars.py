"""Grammars for llama.cpp."""

from __future__ import annotations

import pytest

from fanout.llm.grammars import label_end_grammar


@pytest.mark.parametrize(
    ("labels", "literals"),
    [
        (("positive", "negative"), '"positive" | "negative"'),
        (("A", "A*"), '"A" | "A*"'),
        (('say "no"', "a\\b"), r'"say \\\"no\\\"" | "a\\\\b"'),
        (("two\nlines", "a\tb"), r'"two\\nlines" | "a\\tb"'),
        (("größer", "\u200b"), r'"größer" | "\U0000200B"'),
        (("[x]", ".NET"), '"[x]" | ".NET"'),
    ],
)
def test_a_label_is_a_literal_of_the_grammar_as_json_writes_it(labels, literals):
    assert label_end_grammar(labels) == rf'root ::= ({literals}) "\"}}"'
