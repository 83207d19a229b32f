"""Citations as models write them, in one form; what is not real is marked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.citations import (
    LOST_QUOTE,
    UNKNOWN,
    cited_ids,
    mapped_strings,
    pieces,
    strings_in,
    with_citations,
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


@pytest.mark.parametrize("name", ["s-{}", "S-{}", "s\u2011{}", "s\u2013{}", "s\u2212{}", "s_{}", "\u0455-{}",
    "\uff53\uff0d{}", "^s-{}", "`s-{}`", "source: s-{}", "s\u200b-{}"])  # fmt: skip
@pytest.mark.parametrize(
    "around", ["[{}]", "\u3010{}\u3011", "\uff3b{}\uff3d", "\\[{}\\]", "[ {} ]"]
)
def test_ids_in_brackets_are_known_in_other_forms(name, around):
    real, other = around.format(name.format("aaaaaaa")), around.format(name.format("c4ccccc"))
    assert with_citations(f"x {real}", KNOWN) == (f"x [{A}]", ())
    made = with_citations(f"x {other}", KNOWN)
    assert made.text == f"x {UNKNOWN}"
    assert len(made.unknown) == 1
    assert with_citations(made.text, KNOWN) == (made.text, ())


@pytest.mark.parametrize(
    ("given_text", "text"),
    [
        ("x (s-c4ccccc)", f"x ({UNKNOWN})"),
        ("x s-zzzzzzz.", f"x {UNKNOWN}."),
        ("x s\u2011c4ccccc", f"x {UNKNOWN}"),
        ("x `s-c4ccccc`", f"x `{UNKNOWN}`"),
        ("x [s-c4ccccc and", f"x {UNKNOWN} and"),
        ("x [s-ccccccc", f"x {UNKNOWN}"),
        (f"x [{A} and", f"x [{A}] and"),
        ("x (s\u2011aaaaaaa)", f"x ([{A}])"),
        ("x s-\u0430aaaaaa", f"x [{A}]"),
        ("x s_aaaaaaa", f"x [{A}]"),
    ],
)
def test_ids_outside_of_brackets_are_known_if_they_look_random(given_text, text):
    assert with_citations(given_text, KNOWN).text == text
    assert with_citations(text, KNOWN) == (text, ())


@pytest.mark.parametrize(
    "text",
    [
        "the s-process (s-process), an S\u2011Bahn, s-channel and s-orbital",
        "[s\u2013t] and [s_counter] and x[s_index22]",
        "https://x.org/s-a2b3c4d/ and s-a2b3c4d.css and ?q=s-a2b3c4d and s-a2b3c4d@x.org",
        "part S-A2B3C4D, s_max2min, s-a2b3c4de and a-s-a2b3c4d",
        "[^1], [^note], \\[x\\], \\(s-process\\), s - 1, [s",
    ],
)
def test_ordinary_text_stays(text):
    assert with_citations(text, KNOWN) == (text, ())


def test_what_looks_like_an_id_in_a_source_is_text_outside_of_brackets():
    made = with_citations("s-c4ccccc (s-c4ccccc)", KNOWN, is_text=lambda one: one == "s-c4ccccc")
    assert made == ("s-c4ccccc (s-c4ccccc)", ())
    assert with_citations("[s-c4ccccc]", KNOWN, is_text=lambda _: True).text == UNKNOWN


def test_a_field_for_sources_may_have_several_ids_in_a_text():
    made = with_citations(f"{A}, [{B}] and s-c4ccccc", KNOWN, is_source=True)
    assert made == (f"[{A}][{B}]{UNKNOWN}", ("s-c4ccccc",))
    assert with_citations("s\u2011aaaaaaa", KNOWN, is_source=True) == (A, ())


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
                [
                    "[",
                    "]",
                    "s-",
                    "s\u2011",
                    "\u0455_",
                    "\\",
                    "c4ccccc",
                    "^",
                    "(",
                    "\n",
                    A,
                    B,
                    "[s-x]",
                    ",",
                    " ",
                    '"',
                    UNKNOWN,
                    "\u3010",
                    "\u3011",
                ]
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
