"""Quotations in answers: each has the sources that it must stand in, or is marked."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.citations import LOST_QUOTE, with_citations
from fanout.core.quotations import quotes, with_quotes

A, B = "s-aaaaaaa", "s-bbbbbb2"
KNOWN = frozenset({A, B})


def test_each_quote_has_the_sources_that_it_must_stand_in():
    text = f'He says "a b" and \u201cc d.\u201d [{A}][{B}] 5" and 6" [{A}], \u00abe\u00bb, [{B}]'
    found = list(quotes(text))
    assert found == [("a b", (A, B)), ("c d.", (A, B)), ("e", (B,))]
    marked = with_quotes(text, lambda quote: quote.words != "e")
    assert marked == text.replace("\u00abe\u00bb", f"\u00abe\u00bb {LOST_QUOTE}")
    assert list(quotes(marked)) == found[:2]
    assert with_quotes(marked, lambda quote: quote.words != "e") == marked


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Before the quote, or behind it, with words in between.
        ('According to [A]: "a b".', (A,)),
        ('[A] says "a b" [B].', (B,)),
        ('[A] says "a b".', (A,)),
        ('"a b", according to [A]', (A,)),
        ('"a b" (see [A])', (A,)),
        # Of its sentence, which ends behind the citation.
        ('[B] is old. He said "a b" there. [A] Further, it is [B].', (A,)),
        ('"a b" is said, cf. [A]. [B] is not.', (A, B)),
        ('Dr. No says "a b" in [A]. In [B], it is not.', (A,)),
        ("\u5f7c\u8bf4\u201ca b\u201d\u5f88\u597d[A]\u3002[B]", (A,)),
        # Of its paragraph, or of the whole answer, where its sentence has none.
        ('He said "a b". It is [A].\n\n[B] is not.', (A,)),
        ('He said "a b".\n\nIt is [A].\n\n[B]', (A, B)),
        ("> a b\n\nAs [A] has it.", (A,)),
        ('He said "a b".', ()),
    ],
)
def test_a_quote_without_a_citation_directly_behind_it_has_those_around_it(text, ids):
    text = text.replace("[A]", f"[{A}]").replace("[B]", f"[{B}]")
    assert [(quote.words, quote.ids) for quote in quotes(text)] == [("a b", ids)]
    assert list(quotes('He said "a b".', [B])) == [("a b", (B,))]


@pytest.mark.parametrize(
    ("quoted", "marked"),
    [
        ("\uff02a b\uff02 {}", "\uff02a b\uff02 {lost} {}"),
        ("\u300ca b\u300d{}", "\u300ca b\u300d {lost}{}"),
        ("\u300ea b\u300f {}", "\u300ea b\u300f {lost} {}"),
        ("'a b' {}", "'a b' {lost} {}"),
        ("the dogs' \u2018a b\u2019. {}", "the dogs' \u2018a b\u2019 {lost}. {}"),
        ("\u201aa b\u2018 {}", "\u201aa b\u2018 {lost} {}"),
        ('"a b" \u2014 {}', '"a b" {lost} \u2014 {}'),
        ('"a b" - {}', '"a b" {lost} - {}'),
        ('"a b" (Bob) {}', '"a b" {lost} (Bob) {}'),
        ('"a b" ({})', '"a b" {lost} ({})'),
        # Other languages, and marks that face the other way.
        ("\u201ea b\u201c {}", "\u201ea b\u201c {lost} {}"),
        ("\u201ea b\u201d {}", "\u201ea b\u201d {lost} {}"),
        ("\u201da b\u201d {}", "\u201da b\u201d {lost} {}"),
        ("\u00bba b\u00ab {}", "\u00bba b\u00ab {lost} {}"),
        ("\u00ab\u00a0a b\u00a0\u00bb {}", "\u00ab\u00a0a b\u00a0\u00bb {lost} {}"),
        # Blanks within, other forms, and what is around it.
        ('" a b" {}', '" a b" {lost} {}'),
        ('"a b " {}', '"a b " {lost} {}'),
        ('"a b"{}', '"a b" {lost}{}'),
        ('\\"a b\\" {}', '\\"a b\\" {lost} {}'),
        ("``a b'' {}", "``a b'' {lost} {}"),
        ("''a b'' {}", "''a b'' {lost} {}"),
        ("<q>a b</q> {}", "<q>a b</q> {lost} {}"),
        ('<blockquote cite="x">a b</blockquote> {}', '<blockquote cite="x">a b</blockquote> {lost} {}'),
        ("&ldquo;a b&rdquo; {}", "&ldquo;a b&rdquo; {lost} {}"),
        ("&quot;a b&quot; {}", "&quot;a b&quot; {lost} {}"),
        ('`"a b"` {}', '`"a b"` {lost} {}'),
        ('```"a b"``` {}', '```"a b"``` {lost} {}'),
        ("```\u00aba b\u00bb```{}", "```\u00aba b\u00bb``` {lost}{}"),
        ("'a b'```{}", "'a b'``` {lost}{}"),
        ('"a b"```` {}', '"a b" {lost}```` {}'),
        ('**"a b"** {}', '**"a b" {lost}** {}'),
        ('{} "a b"', '{} "a b" {lost}'),
        ('"a b" is said.', '"a b" {lost} is said.'),
        ("'a b' is said.", "'a b' {lost} is said."),
        # Lines of quotations.
        ("x\n> a b {}", "x\n> a b {lost} {}"),
        ("> a\n> b {}.\n\nx", "> a\n> b {lost} {}.\n\nx"),
        ("> a b\n> \u2014 Bob, p. 3 {}", "> a b\n> \u2014 Bob, p. 3 {lost} {}"),
        ("> *a b*\n>\n> {}", "> *a b*\n>\n> {lost} {}"),
        ("> a b\n\n{} has it", "> a b {lost}\n\n{} has it"),
        ("> a b", "> a b {lost}"),
    ],
)  # fmt: skip
def test_quotes_have_many_forms(quoted, marked):
    text, wanted = quoted.format(f"[{A}]"), marked.format(f"[{A}]", lost=LOST_QUOTE)
    ids = (A,) if "{}" in quoted else ()
    assert [(quote.words.split(), quote.ids) for quote in quotes(text)] == [(["a", "b"], ids)]
    assert with_quotes(text, lambda _: True) == text
    assert with_quotes(text, lambda _: False) == wanted
    assert with_quotes(wanted, lambda _: False) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"they said "fine" today" {}', ['they said "fine" today']),
        ("\u201cthey \u201cfine\u201d said\u201d {}", ["they \u201cfine\u201d said"]),
        ('"they said ("fine") today" {}', ['they said ("fine") today']),
        ("\u201ethey \u201afine it is\u2018 said\u201c {}", ["they \u201afine it is\u2018 said"]),
        ('"they \u00abfine\u00bb said" {}', ["they \u00abfine\u00bb said"]),
        ("<q>they 'fine it' \"so\" said</q> {}", ["they 'fine it' \"so\" said"]),
        ('"a","b" and ("c") {}', ["a", "b", "c"]),
        ('an open " mark, and "a b" {}', ["a b"]),
        ('```text\n"a b"\n``` {}', ["a b"]),
        ('"a.\n\nb" {}', ["a.\n\nb"]),
    ],
)  # fmt: skip
def test_quotes_within_quotes_are_of_the_outermost(text, words):
    assert [quote.words for quote in quotes(text.replace("{}", f"[{A}]"))] == words


@pytest.mark.parametrize(
    "text",
    [
        "It isn't the dogs' {} nor the cats' {}",
        "the users' data is the firms' {}",
        "the 'golden' {} age of '99 {}",
        "'tis the season, and the dogs' day {}",
        "the '90s were the kids' time {}",
        '5" and 6" {}',
        "Home \u00bb News \u00bb More {}",
        "x = '' and y = '' {}",
        "``code`` and ``more`` {}",
        '```python\nprint("a b")\n``` {}',
        "> **Note** a b {}",
        "> Note: a b {}",
        "> - a b {}",
        "> \u2014 Bob {}",
        "> a b {} c",
        "a > b {}",
    ],
)
def test_other_text_is_no_quote(text):
    assert not list(quotes(text.replace("{}", f"[{A}]")))


PARTS = ['"', "\u201c", "\u201d", "\u201e", "\u00ab", "\u00bb", "'", "''", "``", "`", "a b", "a", " ", "\n",
    "\n\n", "> ", "```", "<q>", "</q>", "&quot;", ".", ",", "(", ")", "*", f"[{A}]", f"[{B}]", LOST_QUOTE,
    f" {LOST_QUOTE}", "5"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), st.booleans())
def test_to_mark_a_marked_text_again_changes_nothing(text, is_by_length):
    def is_found(quote):
        return is_by_length and len(quote.words) % 2 == 0

    marked = with_quotes(text, is_found)
    assert marked.replace(LOST_QUOTE, "").replace(" ", "") == text.replace(LOST_QUOTE, "").replace(
        " ", ""
    )
    assert with_quotes(marked, is_found) == marked
    assert all(map(is_found, quotes(marked)))


@pytest.mark.parametrize("text", ["'" * 200_000, " 'a b" * 40_000, "> a\n" * 50_000, "s-" * 100_000,
    "> " + "a" * 200_000, '"a b" (' * 30_000, "[" * 200_000, '"' * 200_000, '" a' * 60_000,
    "[s-" * 60_000, '("a' * 60_000, '"a" ' * 60_000,
    f'"a" [{A}] ' * 20_000, "<q>" * 60_000, "```a\n" * 60_000, "\u201ca\u300c" * 40_000,
    "> a\n\n" * 40_000])  # fmt: skip
def test_hostile_texts_take_no_long_time(text):
    begun = time.thread_time()
    with_quotes(with_citations(text, KNOWN).text, lambda _: False)
    # In quadratic time, these would take minutes; so, a second of a machine that is not busy.
    assert time.thread_time() - begun < 30
