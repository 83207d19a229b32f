from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.conditions import parse_condition
from fanout.core.errors import SpecError
from fanout.core.spec import make_spec

ROW = {
    "stars": 2,
    "price": "9.50",
    "code": "007",
    "country": "DE",
    "first name": "O'Neill",
    "day": "2024-03-01",
    "big": 9_007_199_254_740_993,
    "flag": True,
    "tags": ["new", 5],
    "nothing": None,
    "blank": " ",
    "and": "x",
    "text": "It is not good, at all",
    "half": 2.5,
    "word": "abc",
    "nan": float("nan"),
}


@pytest.mark.parametrize(
    ("where", "is_met"),
    [
        ("stars <= 2", True),
        ("stars<=2", True),
        ("stars < 2", False),
        ("stars = 2", True),
        ("stars == 2.0", True),
        ("stars != 2", False),
        ("stars <> 3", True),
        ("stars > 1e0 and half >= +2.5", True),
        ("half < -1", False),
        # A table of text has its numbers as text.
        ("price < 10", True),
        ("price > 9.499", True),
        ("price = 9.5", True),
        ("code = 7", True),
        ("code = '7'", False),
        ("code = '007'", True),
        # A number in quotes, next to a column of numbers.
        ("stars = '2'", True),
        ("stars < '10'", True),
        ("price < '10'", False),
        ("big = 9007199254740993", True),
        ("big = 9007199254740992", False),
        # A text is no number: it is unequal to each, and in no order with any.
        ("word = 1", False),
        ("word != 1", True),
        ("word < 1", False),
        ("word >= 1", False),
        ("word > abb", True),
        ("day >= 2024-01-01 and day < 2024-04-01", True),
        ("country = DE", True),
        ("country = de", False),
        ('country = "DE"', True),
        ("country in (AT, DE)", True),
        ("country in (AT)", False),
        ("country not in (AT, CH)", True),
        ("stars in (1, 2, three)", True),
        ("country IN ('DE') AND stars = 2", True),
        ("text contains good", True),
        ("text contains 'not good'", True),
        ("text contains Good", False),
        ("text not contains bad", True),
        ("stars contains 2", True),
        ("tags contains new", True),
        ("tags contains ne", False),
        ("tags contains 5", True),
        ("tags = '[\"new\", 5]'", True),
        ("tags < z", False),
        ("flag = true", True),
        ("flag = 1", False),
        ("flag < 2", False),
        ("'first name' = 'O''Neill'", True),
        ('"first name" = "O\'Neill"', True),
        ("`first name` contains Neill", True),
        ("'first name' = O'Neill", True),
        ('"and" = x', True),
        # What is missing meets no comparison, also none with not.
        ("nothing is null", True),
        ("nothing IS NULL", True),
        ("blank is null", True),
        ("gone is null", True),
        ("nan is null", True),
        ("stars is null", False),
        ("stars is not null", True),
        ("nothing is not null", False),
        ("nothing = 1", False),
        ("nothing != 1", False),
        ("gone not in (1)", False),
        ("gone not contains x", False),
        ("nan != 1", False),
        ("nan < 1", False),
        ("blank != x", False),
        ("stars = 2 and country = AT", False),
        ("stars = 3 and country = DE", False),
    ],
)
def test_a_condition_is_met_by_a_row_or_not(where, is_met):
    assert parse_condition(where).matches(ROW.get) is is_met


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        ("stars", "at character 6: an operator (=, !=, <,"),
        ("stars <=", "at character 9: a value"),
        ("stars <= 2 or stars = 5", "at character 12: only `and` joins comparisons"),
        ("stars <= 2 && x = 5", "at character 12: write `and`"),
        ("stars <= 2 and", "at character 15: the name of a column is expected, not the end"),
        ("stars <= 2 3", "at character 12: `and` or the end"),
        ("status = in progress", "at character 13: `and` or the end (a value with spaces"),
        ("first name = x", "at character 7: an operator"),
        ("stars like 2", "at character 7: an operator"),
        ("stars not 2", "at character 11: `in` or `contains` is expected, not '2'"),
        ("<= 2", "at character 1: the name of a column is expected, not '<='"),
        ("(stars = 2)", "at character 1: the name of a column is expected, not '('"),
        ("'' = 2", "at character 1: the name of a column"),
        ("stars in 2", "at character 10: `(`"),
        ("stars in (2", "at character 12: `,` or `)`"),
        ("stars in ()", "at character 11: a value"),
        ("stars in (1 2)", "at character 13: `,` or `)` is expected, not '2'"),
        ("stars = 'two", "at character 9: this quote is not closed"),
        ("stars ! 2", "at character 7: an operator"),
        ("stars =! 2", "at character 10: `and` or the end"),
        ("stars = null", "at character 9: nothing equals null: write `is null`"),
        ("stars is 2", "at character 10: `null` or `not null` is expected, not '2'"),
        ("stars is not 2", "at character 14: `null` is expected"),
        ("x = and", "at character 5: a value"),
        ("__import__('os').system('x') = 1", "at character 11: an operator"),
    ],
)
def test_a_wrong_condition_names_the_position_and_what_is_expected(where, words):
    with pytest.raises(ValueError) as caught:
        parse_condition(where)
    assert words in str(caught.value)
    with pytest.raises(SpecError, match=r"^where: ") as refused:
        make_spec(model="fake", prompt="{input}", where=where)
    assert words in str(refused.value)


def test_the_names_of_a_condition_are_each_there_once():
    condition = parse_condition("a > 1 and 'b c' = 2 and a < 5 and column:d is null")
    assert condition.names == ("a", "b c", "column.d")


_CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_WORDS = ["a", "and", "not", "in", "is", "null", "contains", "=", "<=", "!=", "(", ")", ",", "'",
          '"x y"', "2", "-1e9", "`", "9" * 5_000, " "]  # fmt: skip


@given(
    where=st.text(max_size=40) | st.lists(st.sampled_from(_WORDS), max_size=9).map(" ".join),
    cell=_CELLS,
)
def test_any_text_is_a_condition_or_a_clear_error_and_any_cell_can_be_compared(where, cell):
    try:
        condition = parse_condition(where)
    except ValueError as error:
        reason = str(error)
        condition = None
    if condition is None:
        assert reason.startswith(("at character ", "must not be empty"))
        return
    assert condition.matches(lambda _name: cell) in {True, False}
