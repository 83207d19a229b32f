"""The cells of rows."""

from __future__ import annotations

import datetime as dt
import decimal
import math

import msgspec
import pytest

from fanout.core.cells import cell_of, cell_text, with_point


class Number:
    """A number as numpy has it."""

    def __init__(self, value):
        self.value = value

    def tolist(self):
        return self.value


@pytest.mark.parametrize(
    ("value", "cell", "text"),
    [
        ("007", "007", "007"),
        (7, 7, "7"),
        (7.5, 7.5, "7.5"),
        (True, True, "true"),
        (None, None, ""),
        (math.nan, None, ""),
        (math.inf, "inf", "inf"),
        (2**63, str(2**63), str(2**63)),
        ({"a": [1, Number(2)]}, {"a": [1, 2]}, '{"a": [1, 2]}'),
        (("x", None), ["x", None], '["x", null]'),
        (Number(3), 3, "3"),
        (Number([1.5]), [1.5], "[1.5]"),
        (dt.date(2026, 1, 2), "2026-01-02", "2026-01-02"),
        (decimal.Decimal("1.10"), "1.10", "1.10"),
    ],
)
def test_a_cell_keeps_its_type_where_json_has_it(value, cell, text):
    made = cell_of(value)
    assert (made, type(made)) == (cell, type(cell))
    assert msgspec.json.decode(msgspec.json.encode(made)) == cell
    assert cell_text(made) == text


def test_nested_values_that_json_cannot_hold_become_ones_that_it_can():
    cell = cell_of({"n": math.nan, "big": [2**70], 1: "x"})
    assert msgspec.json.decode(msgspec.json.encode(cell)) == {
        "n": None,
        "big": [str(2**70)],
        "1": "x",
    }


def test_a_prefix_may_end_in_a_colon():
    names = ["column:a", "fanout:a", "column.a", "other:a", "a"]
    assert list(map(with_point, names)) == ["column.a", "fanout.a", "column.a", "other:a", "a"]
