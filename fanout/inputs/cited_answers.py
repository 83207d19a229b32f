"""The check of an answer that cites sources: its ids against those that were shown, and its quotes."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.answer_shape import AnswerShape, WrongShapeError
from fanout.core.citations import (
    LOST_QUOTE,
    UNKNOWN,
    cited_ids,
    ids_in,
    mapped_strings,
    with_citations,
)
from fanout.core.quotations import quotes, with_quotes
from fanout.inputs.quotes import QuotedText

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fanout.core.citations import Citations
    from fanout.core.quotations import Quote

__all__ = ["CitedAnswers", "quoted_ids", "with_found_quotes"]

# Of what is wrong, so much is sent back to the model.
_MOST_NAMED, _NAMED_CHARS = 10, 120
# An object or list, which may be in a code fence.
_JSON = re.compile(
    r"(?P<before>\s*(?:```(?:json)?\s*\n\s*)?)(?P<json>\{.*\}|\[\s*[{\"\[].*\])(?P<behind>\s*(?:```\s*)?)",
    re.DOTALL,
)


class CitedAnswers:
    """Checks the answers to one prompt.

    Args:
        texts: What the prompt shows of each source, by id.
        shape: What the answer must be; None is any text.
        shown: All that the prompt shows, the names of documents included; empty for no more than the texts.
        look_up: Returns the texts of a source itself, by id, where the prompt shows only what others say
            of it; None if they cannot be had now. It may block. None where the prompt shows the sources.
    """

    def __init__(
        self,
        texts: Mapping[str, Sequence[str]],
        shape: AnswerShape | None = None,
        *,
        shown: str = "",
        look_up: Callable[[str], Sequence[str] | None] | None = None,
    ) -> None:
        self._look_up = look_up
        self._found: dict[str, Sequence[str] | None] = {}
        self._texts = texts
        self._shown = shown
        self._shape = shape
        self._read: dict[str, QuotedText] = {}

    def problem(self, answer: str) -> str | None:
        """Return what is wrong with the citations and quotes of an answer; None if nothing is."""
        unknown: list[str] = []
        lost: list[str] = []

        def change(text: str, is_source: bool = False) -> str:  # noqa: FBT001, FBT002 - of mapped_strings
            made = self._in_one_form(text, is_source=is_source)
            unknown.extend(made.unknown)
            return made.text

        made = _changed(answer, change, shape=self._shape)
        cited = self._cited(made)

        def look(text: str, is_source: bool = False) -> str:  # noqa: FBT001, FBT002, ARG001 - the same
            lost.extend(one.words for one in quotes(text, cited) if not self._has(one))
            return text

        _changed(made, look, shape=self._shape)
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
        made = _changed(
            answer,
            lambda text, is_source: self._in_one_form(text, is_source=is_source).text,
            shape=self._shape,
        )
        cited = self._cited(made)
        made = _changed(
            made, lambda text, _: with_quotes(text, self._has, cited), shape=self._shape
        )
        if self._shape is None or made == answer:
            return made
        try:
            return self._shape.checked(made)
        except WrongShapeError:
            bare = _changed(
                made,
                lambda text, _: text.replace(UNKNOWN, "").replace(LOST_QUOTE, ""),
                shape=self._shape,
            )
            return self._shape.checked(bare)

    def _cited(self, answer: str) -> tuple[str, ...]:
        """Return the ids that an answer cites with its citations in one form."""
        return tuple(cited_ids(answer, self._texts))

    def _in_one_form(self, text: str, *, is_source: bool) -> Citations:
        return with_citations(
            text, self._texts, is_source=is_source, is_text=lambda one: one in self._words
        )

    @cached_property
    def _words(self) -> set[str]:
        """What looks like an id in the sources or in the names of their documents, but names none."""
        found = {one for texts in self._texts.values() for text in texts for one in ids_in(text)}
        return found | ids_in(self._shown)

    def _has(self, quote: Quote) -> bool:
        """Say whether a quote stands in one of the texts of the sources that are cited for it."""
        for one in quote.ids:
            found = self._source(one) if self._look_up is not None else self._texts.get(one, ())
            if found is None or any(self._text(text).has(quote.words) for text in found):
                return True
        return False

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
    cited = tuple(one for one in _cited_in(value) if one in texts)

    def is_found(quote: Quote) -> bool:
        known = [one for one in quote.ids if one in read]
        is_of_others = bool(quote.ids) and not known
        return is_of_others or any(text.has(quote.words) for one in known for text in read[one])

    def change(text: str, _is_source: bool) -> str:  # noqa: FBT001 - of mapped_strings
        return with_quotes(text, is_found, cited)

    return _changed(value, change) if isinstance(value, str) else mapped_strings(value, change)


def quoted_ids(value: Any) -> set[str]:
    """Return the ids of the sources in which the quotes of a checked aggregate must stand."""
    cited, found = _cited_in(value), set[str]()

    def look(text: str, _is_source: bool) -> str:  # noqa: FBT001 - of mapped_strings
        found.update(one for quote in quotes(text, cited) for one in quote.ids)
        return text

    _ = _changed(value, look) if isinstance(value, str) else mapped_strings(value, look)
    return found


def _cited_in(value: Any) -> tuple[str, ...]:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return tuple(sorted(ids_in(text)))


def _changed(
    answer: str, change: Callable[[str, bool], str], *, shape: AnswerShape | None = None
) -> str:
    """Return an answer with its texts changed: those in it, if it is JSON, whose marks are no quotes."""
    if shape is None:
        match = _JSON.fullmatch(answer)
        if match is None:
            return change(answer, False)  # noqa: FBT003 - of mapped_strings
        try:
            value: Any = msgspec.json.decode(match["json"])
        except (msgspec.DecodeError, ValueError, RecursionError):
            return change(answer, False)  # noqa: FBT003 - of mapped_strings
        made = mapped_strings(value, change)
        text = msgspec.json.format(msgspec.json.encode(made), indent=2).decode()
        return answer if made == value else f"{match['before']}{text}{match['behind']}"
    value = msgspec.json.decode(answer)
    made = mapped_strings(value, change)
    return answer if made == value else msgspec.json.encode(made).decode()


def _named(found: list[str]) -> str:
    first = [one[:_NAMED_CHARS] for one in dict.fromkeys(found)]
    more = f" and {len(first) - _MOST_NAMED} more" if len(first) > _MOST_NAMED else ""
    return ", ".join(first[:_MOST_NAMED]) + more
