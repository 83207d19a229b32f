"""The corpus whose text is known, and how much of it counts as found."""

from __future__ import annotations

import pytest
from corpus.prose import articles, content, text_of
from corpus.words import found_chars, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Section 1.\nAll persons", ["Section", "1", "All", "persons"]),
        ("| **born** |\t(or\\_not)", ["born", "or", "not"]),
        ("人人生 Würde", ["人", "人", "生", "Würde"]),
        ("ﬁne e\u0301tat", ["fine", "état"]),
        ("स्वतन्त्रता और", ["स्वतन्त्रता", "और"]),
    ],
)
def test_words_are_letters_digits_and_marks_without_markup(text, expected):
    assert list(words(text)) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("one two two", (9, 9, 0)),
        ("two, **two** | one", (9, 9, 0)),
        ("one two", (9, 6, 0)),
        ("one two two two page", (9, 9, 7)),
        ("", (9, 0, 0)),
    ],
)
def test_found_characters_are_those_of_the_words_of_the_reference(found, expected):
    assert found_chars("one two two", found) == expected


def test_a_number_always_gives_the_same_content_in_the_languages_that_its_format_can_hold():
    assert content(7) == content(7)
    assert text_of(content(7)) != text_of(content(8))
    others = {language for number in range(40) for language in content(number).languages}
    assert others == set(articles())
    assert all(set(content(number, ("greek",)).languages) <= {"greek"} for number in range(40))
