"""Conditions on the columns of rows, as ``where`` has them: ``stars <= 2 and country in (DE, AT)``.

A condition is parsed once by the small parser of this module; nothing of it is ever evaluated as
Python. Its grammar::

    condition  = comparison { "and" comparison }
    comparison = column ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
               | column ["not"] "contains" value
               | column ["not"] "in" "(" value { "," value } ")"
               | column "is" ["not"] "null"

A column or a value with spaces or signs is in quotes (``"``, ``'`` or a backtick), in which a doubled
quote stands for one. A value without quotes that looks like a number is one; any other is text.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fanout.core.cells import cell_text, is_missing, with_point

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.cells import Cell

__all__ = ["Comparison", "Condition", "Value", "parse_condition"]

_TOKEN = re.compile(
    r"\s+"
    r"|(?P<quoted>\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'|`(?:[^`]|``)*`)"
    r"|(?P<operator><=|>=|!=|<>|==|=|<|>)"
    r"|(?P<sign>[(),])"
    r"|(?P<word>(?:[^\s<>=!(),\"'`]|!(?!=))(?:[^\s<>=!(),]|!(?!=))*)"
)
# Longer ones are read as text: Python refuses to read a number of very many digits.
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?")
_OPERATORS: dict[str, str] = {"==": "=", "<>": "!="}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ALLOWED = "=, !=, <, <=, >, >=, in, not in, contains, not contains, is null, is not null"
_NULLS = frozenset({"null", "none"})
_OTHER_WORDS = {
    "or": "only `and` joins comparisons; for several values of a column write `in (a, b)`",
    "||": "only `and` joins comparisons; for several values of a column write `in (a, b)`",
    "&&": "write `and`",
    "&": "write `and`",
}


class Value(msgspec.Struct, frozen=True):
    """A value of a condition: its text, and its number if it is one without quotes."""

    text: str
    number: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison of one column.

    Attributes:
        column: The name of the column, maybe with a prefix (see ``fanout.core.cells``).
        operator: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``contains`` or ``null``.
        values: The values to compare with; none for ``null``.
        is_negated: Whether ``not`` stands before ``in``, ``contains`` or ``null``.
        at: The 1-based position of the column in the condition, for messages.
    """

    column: str
    operator: str
    values: tuple[Value, ...] = ()
    is_negated: bool = False
    at: int = 1

    def matches(self, cell: Cell) -> bool:
        """Say whether a cell meets it; a missing cell meets ``is null`` only."""
        if self.operator == "null":
            return _is_null(cell) is not self.is_negated
        if _is_null(cell):
            return False
        if self.operator == "contains":
            return _contains(cell, self.values[0]) is not self.is_negated
        if self.operator in _ORDER:
            return _is_ordered(cell, self.values[0], _ORDER[self.operator])
        is_unequal = self.is_negated or self.operator == "!="
        return any(_equals(cell, value) for value in self.values) is not is_unequal


class Condition(msgspec.Struct, frozen=True):
    """One or more comparisons, all of which must be met."""

    comparisons: tuple[Comparison, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns in order, each once."""
        return tuple(dict.fromkeys(one.column for one in self.comparisons))

    def matches(self, cell_of: Callable[[str], Cell]) -> bool:
        """Say whether a row meets it.

        Args:
            cell_of: Returns the cell of a column, or None if the row has no such cell.
        """
        return all(one.matches(cell_of(one.column)) for one in self.comparisons)


def parse_condition(text: str) -> Condition:
    """Parse a condition.

    Raises:
        ValueError: It is not valid; the message has the position and what is expected there.
    """
    return Condition(_Parser(text).comparisons())


def _is_null(cell: Cell) -> bool:
    """Say whether a cell is missing; an empty one is, as a CSV file has no other missing cells."""
    return is_missing(cell) or (isinstance(cell, str) and not cell.strip())


def _number(text: str) -> float | None:
    """Return the number that a text is, or None. Whole numbers stay exact."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def _number_of(cell: Cell) -> float | None:
    if isinstance(cell, str):
        return _number(cell.strip())
    return cell if isinstance(cell, (int, float)) and not isinstance(cell, bool) else None


def _equals(cell: Cell, value: Value) -> bool:
    if value.number is not None:
        return _number_of(cell) == value.number
    return cell_text(cell) == value.text


def _is_ordered(cell: Cell, value: Value, is_met: Callable[[Any, Any], bool]) -> bool:
    # A number in quotes is a number too, next to a column of numbers.
    number = _number(value.text) if value.number is None and not isinstance(cell, str) else None
    number = value.number if number is None else number
    if number is not None:
        found = _number_of(cell)
        return found is not None and is_met(found, number)
    return isinstance(cell, str) and is_met(cell, value.text)


def _contains(cell: Cell, value: Value) -> bool:
    if isinstance(cell, list):
        return any(_equals(one, value) for one in cell)
    return value.text in cell_text(cell)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words

    @property
    def shown(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


class _Parser:
    """Reads the tokens of a condition from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    def comparisons(self) -> tuple[Comparison, ...]:
        if self._peek().kind == "end":
            raise ValueError("must not be empty: give a comparison, such as `stars <= 2`")
        found = [self._comparison()]
        while (token := self._take()).kind != "end":
            if not token.is_word("and"):
                raise _unexpected(token, "`and` or the end (a value with spaces is in quotes)")
            found.append(self._comparison())
        return tuple(found)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        # The last token is the end, which stays.
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _accept(self, *words: str) -> bool:
        is_found = self._peek().is_word(*words)
        if is_found:
            self._take()
        return is_found

    def _comparison(self) -> Comparison:
        token = self._take()
        if token.kind not in {"word", "quoted"} or not token.text:
            raise _unexpected(token, "the name of a column")
        found = self._operation()
        column = with_point(token.text)
        return msgspec.structs.replace(found, column=column, at=token.at)

    def _operation(self) -> Comparison:
        token = self._take()
        if token.kind == "operator":
            name = _OPERATORS.get(token.text, token.text)
            return Comparison(column="", operator=name, values=(self._value(),))
        if token.is_word("is"):
            return self._null()
        is_negated = token.is_word("not")
        word = self._take() if is_negated else token
        if word.is_word("contains"):
            values: tuple[Value, ...] = (self._value(),)
        elif word.is_word("in"):
            values = self._list()
        else:
            expected = "`in` or `contains`" if is_negated else f"an operator ({_ALLOWED})"
            raise _unexpected(word, expected)
        operation = word.text.lower()
        return Comparison(column="", operator=operation, values=values, is_negated=is_negated)

    def _null(self) -> Comparison:
        is_negated = self._accept("not")
        token = self._take()
        if not token.is_word(*_NULLS):
            raise _unexpected(token, "`null`" if is_negated else "`null` or `not null`")
        return Comparison(column="", operator="null", is_negated=is_negated)

    def _value(self) -> Value:
        token = self._take()
        if token.kind == "quoted":
            return Value(token.text)
        if token.kind != "word" or token.is_word("and"):
            raise _unexpected(token, "a value (one that is such a word or sign is in quotes)")
        if token.is_word(*_NULLS):
            raise ValueError(
                f"at character {token.at}: nothing equals {token.text}: write `is null` or "
                "`is not null`, or put the word in quotes"
            )
        return Value(token.text, _number(token.text))

    def _list(self) -> tuple[Value, ...]:
        token = self._take()
        if token.text != "(" or token.kind != "sign":
            raise _unexpected(token, "`(`, and after it the values, as in `in (1, 2)`")
        values = [self._value()]
        while (token := self._take()).kind == "sign" and token.text == ",":
            values.append(self._value())
        if token.kind != "sign" or token.text != ")":
            raise _unexpected(token, "`,` or `)`")
        return tuple(values)


def _tokens(text: str) -> list[_Token]:
    """Return the tokens of a text, and its end as the last one."""
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            what = "this quote is not closed" if text[at] in "\"'`" else f"cannot use {text[at]!r}"
            raise ValueError(f"at character {at + 1}: {what}")
        if match.lastgroup is not None:
            found.append(_Token(match.lastgroup, _unquoted(match), at + 1))
        at = match.end()
    return [*found, _Token("end", "", len(text) + 1)]


def _unquoted(match: re.Match[str]) -> str:
    if match.lastgroup != "quoted":
        return match[0]
    quote = match[0][0]
    return match[0][1:-1].replace(quote * 2, quote)


def _unexpected(token: _Token, expected: str) -> ValueError:
    hint = _OTHER_WORDS.get(token.text.lower(), "") if token.kind == "word" else ""
    reason = hint or f"{expected} is expected, not {token.shown}"
    return ValueError(f"at character {token.at}: {reason}")
