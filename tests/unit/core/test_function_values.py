"""What functions return, as texts and JSON values."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import pathlib
import types
import uuid

import msgspec
import numpy as np
import pydantic
import pytest

from fanout.core.function_values import function_text


class Text(str):  # noqa: SLOT000
    def __str__(self):
        return "other"


class Kind(enum.StrEnum):
    BILL = "bill"


class OldKind(str, enum.Enum):  # noqa: UP042
    BILL = "bill"


class Level(enum.Enum):
    HIGH = 3


@dataclasses.dataclass
class Data:
    n: int
    of: tuple[int, ...] = (1, 2)


class Model(pydantic.BaseModel):
    day: dt.date
    inner: list[Kind] = [Kind.BILL]
    x: float = 1.5


class Record(msgspec.Struct):
    a: Data


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024
DAY = dt.date(2026, 1, 31)
UNIQUE = uuid.UUID(int=1)
RECURSIVE: list[object] = []
RECURSIVE.append({"a": RECURSIVE})
DEEP: list[object] = []
for _ in range(5_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((one("bill"), "bill") for one in (str, Text, Kind, OldKind, np.str_)),
        (None, "null"),
        (True, "true"),
        (2**64 - 1, "18446744073709551615"),
        ([Kind.BILL, Text("a"), Level.HIGH], '["bill","a",3]'),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (np.float32(1.5), "1.5"),
        (np.longdouble(1.5), "1.5"),
        (np.array([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (np.datetime64("2026-01-31T00:00:00.000000000"), '"2026-01-31T00:00:00.000000000"'),
        ([DAY, dt.datetime(2026, 1, 31, 8), dt.time(8)],  # noqa: DTZ001
         '["2026-01-31","2026-01-31T08:00:00","08:00:00"]'),
        ([decimal.Decimal("1.50"), UNIQUE, pathlib.PurePosixPath("a/b")],
         f'["1.50","{UNIQUE}","a/b"]'),
        ((1, {2: 3, DAY: 4}), '[1,{"2":3,"2026-01-31":4}]'),
        (Point(1, 2), "[1,2]"),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        (Record(Data(1)), '{"a":{"n":1,"of":[1,2]}}'),
        (Model(day=DAY), '{"day":"2026-01-31","inner":["bill"],"x":1.5}'),
    ],
)  # fmt: skip
def test_a_value_becomes_the_text_or_the_json_that_it_stands_for(value, text):
    found = function_text(value)
    assert (type(found), found) == (str, text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "an empty text"),
        (Text(" \n"), "an empty text"),
        (float("nan"), "nan, which JSON does not have"),
        (np.array([1.0, float("nan")]), "nan at '1'"),
        ({"a": [1, float("-inf")]}, "-inf at 'a.1', which JSON does not have"),
        (Model(day=DAY, x=float("nan")), "nan at 'x'"),
        (decimal.Decimal("NaN"), "NaN, which JSON does not have"),
        (10**5000, "a whole number of more than 64 bits: return it as a text"),
        ({"a": -(2**63) - 1}, "a whole number of more than 64 bits at 'a'"),
        ((one for one in [1]), "generator, which is no text or JSON value: return a list"),
        ({"a": {1, 2}}, "set at 'a', which is no text or JSON value: return a list"),
        ({1: 2}.keys(), "dict_keys, which is no text or JSON value: return a list"),
        (b"a", "bytes, which is no text or JSON value: decode it"),
        (1j, "complex, which is no text or JSON value"),
        (object(), "object, which is no text or JSON value"),
        (Data, "Data, which is no text or JSON value"),
        (dt.timedelta(1), "timedelta, which is no text or JSON value"),
        (RECURSIVE, "a value that contains itself at '0.a'"),
        (DEEP, "a value that is nested more than 100 levels deep"),
        ({"a": {(1, 2): 3}}, "a mapping at 'a' with a key of type tuple"),
        ({None: 3}, "a mapping with a key of type NoneType"),
        ({1: 2, "1": 3}, "a mapping with two keys that read '1'"),
    ],
    ids=lambda one: one if type(one) is str else type(one).__name__,
)
def test_what_json_does_not_have_is_refused_with_the_reason_and_the_place(value, reason):
    with pytest.raises(ValueError, match=r"^[^<]+$") as caught:
        function_text(value)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\ud800", "a?"),
        (["\ud83d"], '["?"]'),
        (
            {"k\udfff": {"of": ("x\udc00", pathlib.PurePath("y\udcff"))}},
            '{"k?":{"of":["x?","y?"]}}',
        ),
        (["K\u00fcche \U0001f600"], '["K\u00fcche \U0001f600"]'),
    ],
)
def test_lone_surrogates_are_replaced_as_in_answers_of_models(value, text):
    assert function_text(value) == text


class Endless(dict[str, int]):
    def items(self):
        return ((f"k{n}", n) for n in itertools.count())


@pytest.mark.parametrize(
    ("fits", "is_longer"),
    [
        ([0] * 499, [0] * 500),
        ([Level.HIGH] * 499, [Level.HIGH] * 500),
        (np.zeros(499, int), np.zeros(10**7, "int8")),
        ([[0]] * 249, [[0]] * 500),
        (["x" * 996], ["x" * 1_001]),
        ({"k": [None] * 198}, Endless()),
        ({"x" * 900: 1}, {"x" * 1_001: 1}),
        ([pathlib.PurePosixPath("a" * 996)], [pathlib.PurePosixPath("a" * 1_001)]),
    ],
    ids=["list", "enums", "array", "nested", "text", "mapping", "key", "path"],
)
def test_no_more_is_read_of_a_value_than_may_be_stored(fits, is_longer):
    assert len(function_text(fits, max_kb=1)) <= 1_000
    with pytest.raises(ValueError, match="a value of more than 1 kB as JSON"):
        function_text(is_longer, max_kb=1)
