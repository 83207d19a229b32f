"""The check of an answer that cites sources: its ids against those that were shown, and its quotes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.answer_shape import AnswerShape, WrongShapeError
from fanout.core.citations import (
    LOST_QUOTE,
    UNKNOWN,
    ids_in,
    mapped_strings,
    quotes,
    with_citations,
    with_quotes,
)
from fanout.inputs.quotes import QuotedText

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fanout.core.citations import Citations, Quote

__all__ = ["CitedAnswers", "with_found_quotes"]

# Of what is wrong, so much is sent back to the model.
_MOST_NAMED, _NAMED_CHARS = 10, 120


class CitedAnswers:
    """Checks the answers to one prompt.

    Args:
        texts: What the prompt shows of each source, by id.
        shape: What the answer must be; None is any text.
        look_up: Returns the texts of a source itself, by id, where the prompt shows only what others say
            of it; None if they cannot be had now. It may block. None where the prompt shows the sources.
    """

    def __init__(
        self,
        texts: Mapping[str, Sequence[str]],
        shape: AnswerShape | None = None,
        *,
        look_up: Callable[[str], Sequence[str] | None] | None = None,
    ) -> None:
        self._look_up = look_up
        self._found: dict[str, Sequence[str] | None] = {}
        self._texts = texts
        self._shape = shape
        self._read: dict[str, QuotedText] = {}

    def problem(self, answer: str) -> str | None:
        """Return what is wrong with the citations and quotes of an answer; None if nothing is."""
        unknown: list[str] = []
        lost: list[str] = []

        def change(text: str, is_source: bool = False) -> str:  # noqa: FBT001, FBT002 - of mapped_strings
            made = self._in_one_form(text, is_source=is_source)
            unknown.extend(made.unknown)
            lost.extend(one.words for one in quotes(made.text) if not self._has(one))
            return made.text

        self._changed(answer, change)
        told = []
        if unknown:
            told.append(f"no source has these ids: {_named(unknown)}")
        if lost:
            told.append(f"these quotes do not stand in the sources cited for them: {_named(lost)}")
        return "; ".join(told) or None

    def marked(self, answer: str) -> str:
        """Return an answer with its citations in one form, and marks in place of what is not real.

        Raises:
            WrongShapeError: It does not have its shape with the marks, nor without these citations.
        """
        made = self._changed(answer, self._mark)
        if self._shape is None or made == answer:
            return made
        try:
            return self._shape.checked(made)
        except WrongShapeError:
            bare = self._changed(
                made, lambda text, _: text.replace(UNKNOWN, "").replace(LOST_QUOTE, "")
            )
            return self._shape.checked(bare)

    def _mark(self, text: str, is_source: bool = False) -> str:  # noqa: FBT001, FBT002 - of mapped_strings
        made = self._in_one_form(text, is_source=is_source)
        return with_quotes(made.text, self._has)

    def _in_one_form(self, text: str, *, is_source: bool) -> Citations:
        return with_citations(
            text, self._texts, is_source=is_source, is_text=lambda one: one in self._words
        )

    @cached_property
    def _words(self) -> set[str]:
        """What looks like an id in the sources, but names none."""
        return {one for texts in self._texts.values() for text in texts for one in ids_in(text)}

    def _changed(self, answer: str, change: Callable[[str, bool], str]) -> str:
        if self._shape is None:
            return change(answer, False)  # noqa: FBT003 - of mapped_strings
        value: Any = msgspec.json.decode(answer)
        made = mapped_strings(value, change)
        return answer if made == value else msgspec.json.encode(made).decode()

    def _has(self, quote: Quote) -> bool:
        """Say whether a quote stands in one of the texts of the sources that are cited for it."""
        if self._look_up is not None:
            found = [self._source(one) for one in quote.ids]
            return None in found or any(
                self._text(text).has(quote.words) for some in found for text in some or ()
            )
        return any(
            self._text(text).has(quote.words)
            for one in quote.ids
            for text in self._texts.get(one, ())
        )

    def _source(self, one: str) -> Sequence[str] | None:
        if one not in self._found and self._look_up is not None:
            self._found[one] = self._look_up(one)
        return self._found[one]

    def _text(self, text: str) -> QuotedText:
        found = self._read.get(text)
        if found is None:
            found = self._read[text] = QuotedText(text)
        return found


def with_found_quotes(value: Any, texts: Mapping[str, Sequence[str]]) -> Any:
    """Return an aggregate in which the quotes are marked that do not stand in their sources.

    Args:
        value: A checked aggregate: a text, or a JSON value.
        texts: The texts of each source, by id; quotes of others stay.
    """
    read = {one: [QuotedText(text) for text in some] for one, some in texts.items()}

    def is_found(quote: Quote) -> bool:
        known = [one for one in quote.ids if one in read]
        return not known or any(text.has(quote.words) for one in known for text in read[one])

    return mapped_strings(value, lambda text, _: with_quotes(text, is_found))


def _named(found: list[str]) -> str:
    first = [one[:_NAMED_CHARS] for one in dict.fromkeys(found)]
    more = f" and {len(first) - _MOST_NAMED} more" if len(first) > _MOST_NAMED else ""
    return ", ".join(first[:_MOST_NAMED]) + more
