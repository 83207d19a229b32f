"""What a person reads of an aggregate."""

from __future__ import annotations

import pytest

from fanout.runs.answer_text import answer_text, cell_words, columns


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2234568.2, "2234568.2"),
        (558642.05, "558642.05"),
        (1000000.01, "1000000.01"),
        (-1234567.89, "-1234567.89"),
        (123456789012.34, "123456789012.34"),
        (1e15, "1000000000000000"),
        (1000000.0, "1000000"),
        (3.0, "3"),
        (0.1 + 0.2, "0.3"),
        (1 / 3, "0.333333"),
        (10 / 3, "3.33333"),
        (2234568.2 / 3, "744856.07"),
        (1e9 / 3, "333333333.33"),
        (-2 / 3, "-0.666667"),
        (99.99999999, "100"),
        (0.000012345678, "1.23457e-05"),
        (1e300, "1e+300"),
        (2**70, "1180591620717411303424"),
        (True, "true"),
        (None, ""),
        ("a\nb", "a b"),
    ],
)
def test_numbers_are_shown_in_full_and_means_at_least_to_cents(value, words):
    assert cell_words(value) == words


def test_rows_of_any_reduce_are_columns():
    rows = [{"rank": 1, "score": 1000000.01, "output": "a"}, {"rank": 2, "score": 7, "output": "b"}]
    for reduction in ("rank", "top", "table"):
        assert answer_text(rows, reduction).splitlines() == [
            "rank       score  output", "   1  1000000.01  a", "   2           7  b",
        ]  # fmt: skip


def test_a_long_cell_is_cut_for_a_terminal_and_whole_in_a_file():
    rows = [{"name": "n" * 70, "members": "m" * 80}, {"name": "a", "members": "b"}]
    assert list(columns(lambda: rows)) == [
        f"name{' ' * 56}  members",
        f"{'n' * 59}…  {'m' * 59}…",
        f"a{' ' * 59}  b",
    ]
    for text in (
        "\n".join(columns(lambda: rows, is_whole=True)),
        answer_text(rows, "resolve", is_whole=True),
        answer_text({"g": rows}, "resolve", is_whole=True).removeprefix("## g\n\n"),
    ):
        assert text.splitlines() == [
            f"name{' ' * 56}  members",
            f"{'n' * 70}  {'m' * 80}",
            f"a{' ' * 59}  b",
        ]


def test_the_heading_of_a_group_is_one_line():
    assert answer_text({"a\n b": "x", "c": "y"}, "concat") == "## a b\n\nx\n\n## c\n\ny"


@pytest.mark.parametrize(
    ("aggregated", "reduction"),
    [({"": "text", "x": "more"}, "concat"), ({"": [{"n": 1}], "x": [{"n": 2}]}, "table")],
)
def test_a_group_without_a_name_has_a_heading(aggregated, reduction):
    assert answer_text(aggregated, reduction).startswith("## (empty)\n\n")
