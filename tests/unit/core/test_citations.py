"""Citations as models write them, in one form; what is not real is marked."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.citations import (
    LOST_QUOTE,
    UNKNOWN,
    cited_ids,
    mapped_strings,
    pieces,
    quotes,
    strings_in,
    with_citations,
    with_quotes,
)

A, B = "s-aaaaaaa", "s-bbbbbb2"
KNOWN = frozenset({A, B})


@pytest.mark.parametrize(
    ("given_text", "text", "unknown"),
    [
        (f"x [{A}].", f"x [{A}].", ()),
        (f"x [{A}, {B}]", f"x [{A}][{B}]", ()),
        (f"x [{A}][{B}]", f"x [{A}][{B}]", ()),
        (f"x [ {A.upper()} ]", f"x [{A}]", ()),
        (f"x [{A} and {A}]", f"x [{A}]", ()),
        (f"x [source: {A}; `{B}`]", f"x [{A}][{B}]", ()),
        (f"x \u3010{A}\u3011", f"x [{A}]", ()),
        (f"x ({A})", f"x ([{A}])", ()),
        (f"x {A}, y", f"x [{A}], y", ()),
        (f"x [{A}, p. 3]", f"x [{A}] (p. 3)", ()),
        ("x [s-ccccccc]", f"x {UNKNOWN}", ("s-ccccccc",)),
        (f"x [{A}, s-no]", f"x [{A}]{UNKNOWN}", ("s-no",)),
        ("x [s-\u2026]", f"x {UNKNOWN}", ("s-\u2026",)),
        (f"x [{A}x]", f"x {UNKNOWN}", (f"{A}x",)),
        # No citations.
        ("x [1] and [see below] and the S-Bahn, an s-process", None, ()),
        (f"my-{A} and {A}-more", None, ()),
        (f"{UNKNOWN} {LOST_QUOTE}", None, ()),
        ("an [empty, ] one, [], [ ]", None, ()),
    ],
)
def test_citations_have_one_form(given_text, text, unknown):
    wanted = given_text if text is None else text
    assert with_citations(given_text, KNOWN) == (wanted, unknown)
    assert with_citations(wanted, KNOWN) == (wanted, ())


def test_a_field_for_sources_needs_no_brackets():
    value = {"claim": "S-Bahn", "sources": [A.upper(), "s-invented", "S-Bahn [s-x]"], "s-x": 1}

    def change(text, is_source):
        return with_citations(text, KNOWN, is_source=is_source).text

    made = mapped_strings(value, change)
    assert made == {"claim": "S-Bahn", "sources": [A, UNKNOWN, UNKNOWN], "s-x": 1}
    assert list(strings_in(made)) == ["S-Bahn", A, UNKNOWN, UNKNOWN]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["[", "]", "s-", A, B, "[s-x]", ",", " ", '"', UNKNOWN, "\u3010", "\u3011"]
            ),
            st.text(max_size=5),
        )
    ).map("".join)
)
def test_any_text_comes_out_with_real_citations_only_and_stays_so(text):
    made = with_citations(text, KNOWN)
    again = with_citations(made.text, KNOWN)
    assert again.unknown == ()
    assert again.text == made.text
    assert cited_ids(made.text, KNOWN).keys() <= KNOWN
    assert "".join(piece for piece, _ in pieces(made.text, KNOWN)) == made.text


def test_quotes_are_those_with_a_citation_directly_behind_them():
    text = f'He says "a b" and \u201cc d.\u201d [{A}][{B}] "not cited", 5" and 6" [{A}], \u00abe\u00bb, [{B}]'
    found = list(quotes(text))
    assert found == [("c d.", (A, B)), ("e", (B,))]
    marked = with_quotes(text, lambda quote: quote.words != "e")
    assert marked == text.replace("\u00abe\u00bb", f"\u00abe\u00bb {LOST_QUOTE}")
    assert list(quotes(marked)) == found[:1]
    assert with_quotes(marked, lambda quote: quote.words != "e") == marked


@pytest.mark.parametrize("text", ["[" * 200_000, '"' * 200_000, '" a' * 60_000, "[s-" * 60_000])
def test_hostile_texts_take_no_long_time(text):
    begun = time.monotonic()
    with_quotes(with_citations(text, KNOWN).text, lambda _: False)
    assert time.monotonic() - begun < 5
