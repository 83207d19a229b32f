"""Words of texts in several languages."""

from __future__ import annotations

import pytest

from fanout.retrieval.words import words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" .,;! -- ", []),
        ("Don't STOP: e-mail_2", ["don", "t", "stop", "e", "mail", "2"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("Kündigungsfrist (3 Monate)", ["kündigungsfrist", "3", "monate"]),
        ("\uff26\uff55\uff4c\uff4c width", ["full", "width"]),
        ("合同终止", ["合同", "同终", "终止"]),
        ("法", ["法"]),
        ("GDPR第5条", ["gdpr", "第", "5", "条"]),
        ("ひらがな", ["ひら", "らが", "がな"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("договор ДОГОВОР", ["договор", "договор"]),
        ("cafe\u0301", ["café"]),
    ],
)
def test_words(text, expected):
    assert list(words_of(text)) == expected


def test_ascii_is_read_as_any_other_text_is():
    text = "The A-Team's 2nd run, file_name.txt: OK?"
    assert list(words_of(f"{text} ü")) == [*words_of(text), "ü"]
