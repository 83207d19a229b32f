"""The shape of an answer: a JSON Schema, or a choice among labels; its check, and what it lacks."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, get_args

import jsonschema_rs
import msgspec

from fanout.core.answer_errors import AnswerErrors, cut
from fanout.core.errors import SpecError
from fanout.core.filled_nulls import without_filled_nulls
from fanout.core.json_text import fenced, is_deeper, parse_json
from fanout.core.label_text import OPENINGS, layers, loosened
from fanout.core.own_schemas import OWN_SCHEMAS
from fanout.core.reasoning import OWN_TAGS, PROMPTED_TAGS, without_reasoning
from fanout.core.schema_contradictions import contradiction
from fanout.core.schema_kinds import takes_text
from fanout.core.schema_references import MOST_LEVELS, MOST_WAYS, empty_circle, levels, ways
from fanout.core.strict_schema import WRAPPED, Dialect, native_schema, object_properties
from fanout.core.tokens import utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fanout.core.strict_schema import NativeSchema

__all__ = ["AnswerShape", "WrongShapeError", "checked_schema", "quoted", "shape_of"]

# Characters of what is wrong with a schema.
_REASON_CHARS = 300
_SHOWN_LABELS = 1_000
# Of a schema, in JSON: an object in an object is two levels.
_DEEPEST = 200
# Of a schema, in JSON: more than a model can read beside its prompt.
_MOST_CHARS = 1_000_000
_DRAFTS = re.compile(
    r"https?://json-schema\.org/(draft-0[467]|draft/(2019-09|2020-12))/schema#?", re.ASCII
)

_NONE = object()
_BULLETS = ("- ", "\u2022 ")


class WrongShapeError(ValueError):
    """An answer does not have its shape; the message says where, what it has, and what is allowed."""


class AnswerShape:
    """What an answer must be.

    Args:
        schema: A JSON Schema.
        choices: The labels among which the answer is one; empty if the shape is the schema.

    Attributes:
        schema: The JSON Schema, also of choices.
        choices: The labels.
    """

    def __init__(self, schema: dict[str, Any], choices: tuple[str, ...] = ()) -> None:
        self.schema = schema
        self.choices = choices
        self._natives: dict[Dialect, NativeSchema | None] = {}

    @cached_property
    def _validator(self) -> Any:
        return _validator(self.schema)

    @cached_property
    def _takes_text(self) -> bool:
        return takes_text(self.schema)

    @cached_property
    def _errors(self) -> AnswerErrors:
        return AnswerErrors(self.schema, _validator)

    @cached_property
    def _labels(self) -> tuple[dict[str, str], ...]:
        """The labels by each of their forms, the strictest first, where that form is unique."""
        return tuple(_unique(self.choices, form) for form in (str, _without_case, loosened))

    def native(self, dialect: Dialect) -> NativeSchema | None:
        """Return the schema in the form of a provider; None if it cannot express it."""
        if dialect not in self._natives:
            self._natives[dialect] = native_schema(self.schema, dialect)
        return self._natives[dialect]

    @cached_property
    def text(self) -> str:
        """The shape as JSON, with its properties in their order: equal for equal shapes."""
        return msgspec.json.encode([self.schema, self.choices]).decode()

    @cached_property
    def is_own(self) -> bool:
        """Whether fanout asks for the shape by itself, so that nothing of the job may say it."""
        return self.schema in OWN_SCHEMAS

    @cached_property
    def in_words(self) -> str:
        """The instruction for a model whose server enforces no schema."""
        if self.choices:
            listed = "\n".join(f"- {label}" for label in self.choices)
            return f"Answer with exactly one of these, and nothing else:\n{listed}"
        schema = msgspec.json.encode(self.schema).decode()
        return (
            "Answer with one JSON value that is valid against this JSON Schema, and nothing else:\n"
            f"{schema}"
        )

    @cached_property
    def most_bytes(self) -> int:
        """The most bytes that the shape adds to a request, in words or in a provider's form."""
        forms = [self.native(dialect) for dialect in get_args(Dialect)]
        schemas = [self.schema, *(form.schema for form in forms if form is not None)]
        words = utf8_bytes(self.in_words)
        # A provider shows a schema to the model with its own indentation.
        return words + 2 * max(len(msgspec.json.encode(schema)) for schema in schemas)

    def checked(self, answer: str) -> str:
        """Return the answer in its stored form: a label, or JSON.

        Raises:
            WrongShapeError: The answer does not have the shape.
        """
        return self._label(answer) if self.choices else self._json(answer)

    def is_beginning(self, answer: str) -> bool:
        """Say whether a label that was cut off may be the beginning of another one."""
        text = _without_reasoning(answer)
        begin, label = loosened(text.lstrip(OPENINGS)), self.checked(answer)
        return any(loosened(one).startswith(begin) for one in self.choices if one != label)

    def is_bare_text(self, answer: str, stored: str) -> bool:
        """Say whether an answer by a schema was a text without the quotes of JSON, as which it is stored."""
        texts = self._bare_texts(answer)
        return any(msgspec.json.encode(one).decode() == stored for one in texts)

    def _json(self, answer: str) -> str:
        try:
            value = parse_json(answer)
        except ValueError as error:
            text = next(self._bare_texts(answer), None)
            if text is None:
                reason = f"the answer {quoted(answer)} is not JSON: {error}"
                raise WrongShapeError(reason) from None
            forms: list[Any] = [text]
        else:
            forms = self._forms(value)
        valid = next(filter(self._validator.is_valid, self._readings(answer, forms)), _NONE)
        if valid is not _NONE:
            return msgspec.json.encode(valid).decode()
        shown = forms[0 if WRAPPED in object_properties(self.schema) else -1]
        if "null" in answer:
            shown = without_filled_nulls(shown, self.schema)
        raise WrongShapeError(self._errors.of(shown, len(answer)))

    def _readings(self, answer: str, forms: Sequence[Any]) -> Iterator[Any]:
        """Yield what an answer may mean, whose JSON has some forms."""
        for form in forms:
            yield form
            if "null" in answer:
                # The schema may seem to allow a null that it does not.
                yield without_filled_nulls(form, self.schema)
                yield without_filled_nulls(form, self.schema, keeps_allowed=False)
        # An answer of null is no text.
        if None not in forms:
            yield from self._bare_texts(answer)

    def _bare_texts(self, answer: str) -> Iterator[str]:
        """Yield the texts that an answer may be without the quotes of JSON, if one may be valid."""
        if not self._takes_text:
            return
        text = _without_reasoning(answer)
        # What begins as JSON is meant as JSON.
        if text and not text.startswith(("{", "[", '"')):
            yield text
            pieces = set(fenced(text))
            if len(pieces) == 1:
                yield from pieces

    def _forms(self, value: Any) -> list[Any]:
        """Return an answer, and what it is without the object that providers put around it."""
        is_wrapped = isinstance(value, dict) and value.keys() == {WRAPPED}
        return [value, value[WRAPPED]] if is_wrapped else [value]

    def _found(self, text: str) -> Iterator[str | None]:
        """Yield the labels that a text may mean, the surest first."""
        exact, without_case, loose = self._labels
        forms = list(layers(text))
        yield from map(exact.get, forms)
        yield from map(without_case.get, map(_without_case, forms))
        yield loose.get(loosened(text))
        yield loose.get(loosened(text.lstrip(OPENINGS)))
        # As the instruction lists them; `- 5` may be a number.
        if text.startswith(_BULLETS) and not text[2:].lstrip()[:1].isdigit():
            yield loose.get(loosened(text[2:]))

    def _label(self, answer: str) -> str:
        text = _without_reasoning(answer)
        if text in self.choices:
            return text
        try:
            value = parse_json(text)
        except ValueError:
            pieces = set(fenced(text))
            text = pieces.pop() if len(pieces) == 1 else text
        else:
            text = _only_scalar(value, text)
        label = next((one for one in self._found(text) if one is not None), None)
        if label is None:
            raise WrongShapeError(
                f"the answer {quoted(text)} is none of the choices {_listed(self.choices)}"
            )
        return label


def _only_scalar(value: Any, text: str) -> str:
    """Return the only text or number of a JSON value, or else the text that it was read from."""
    if isinstance(value, (dict, list)) and len(value) == 1:
        [value] = value.values() if isinstance(value, dict) else value
    if isinstance(value, str):
        return value.strip()
    return text if isinstance(value, (dict, list)) else msgspec.json.encode(value).decode()


def _validator(schema: dict[str, Any]) -> Any:
    # Linear in the length of an answer, and without a look at other documents.
    return jsonschema_rs.validator_for(
        schema,
        validate_formats=True,
        retriever=_no_document,
        pattern_options=jsonschema_rs.RegexOptions(),
    )


def _no_document(uri: str) -> Any:
    msg = f"it refers to another document ({uri}): put that into $defs"
    raise ValueError(msg)


def _without_case(label: str) -> str:
    return " ".join(label.casefold().split())


def _unique(labels: Sequence[str], form: Callable[[str], str]) -> dict[str, str]:
    counts = Counter(map(form, labels))
    return {form(label): label for label in labels if counts[form(label)] == 1}


def _listed(labels: Sequence[str]) -> str:
    text = ", ".join(labels)
    return text if len(text) <= _SHOWN_LABELS else f"{text[:_SHOWN_LABELS]}..."


def quoted(answer: str) -> str:
    """Return the beginning of an answer, without its reasoning, as messages quote it."""
    return repr(cut(_without_reasoning(answer)))


def _without_reasoning(answer: str) -> str:
    return without_reasoning(answer.strip(), OWN_TAGS + PROMPTED_TAGS).strip()


def checked_schema(schema: Mapping[str, Any], *, field: str) -> dict[str, Any]:
    """Return a JSON Schema. Raises SpecError if it is none, or refers to other documents."""
    made = dict(schema)
    draft = made.get("$schema")
    if draft is not None and not (isinstance(draft, str) and _DRAFTS.fullmatch(draft)):
        # The validator would fetch it.
        raise SpecError(
            f"is not a JSON Schema: $schema must name a draft, such as "
            f"https://json-schema.org/draft/2020-12/schema (got {draft!r})",
            field=field,
        )
    if is_deeper(made, _DEEPEST):
        raise SpecError(
            f"is not a JSON Schema: nested more than {_DEEPEST} levels deep", field=field
        )
    _require_bounded(made, field)
    try:
        jsonschema_rs.meta.validate(made)
        _validator(made)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        where = "".join(f"/{part}" for part in getattr(error, "instance_path", ()))
        reason = _cut_reason(str(getattr(error, "message", error)))
        raise SpecError(
            f"is not a JSON Schema: {where}{': ' if where else ''}{reason}", field=field
        ) from None
    if circle := empty_circle(made):
        raise SpecError(
            f"says nothing: the reference {circle!r} leads back to itself without a field or an item "
            "between",
            field=field,
        )
    if why := contradiction(made):
        raise SpecError(f"can be met by no answer: {why}", field=field)
    return made


def _require_bounded(schema: dict[str, Any], field: str) -> None:
    """Refuse a schema that the validator cannot read at all, or not in a bounded time."""
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"is not a JSON Schema: it is not JSON: {error}", field=field) from None
    problem = None
    if size > _MOST_CHARS:
        problem = f"larger than {_MOST_CHARS:,} bytes of JSON ({size:,})"
    elif levels(schema) > MOST_LEVELS:
        problem = f"its references are more than {MOST_LEVELS:,} levels deep"
    elif ways(schema) > MOST_WAYS:
        problem = f"its alternatives refer to one value in more than {MOST_WAYS:,} ways"
    if problem is not None:
        raise SpecError(f"is too large: {problem}", field=field)


def _cut_reason(reason: str) -> str:
    first = reason.splitlines()[0] if reason else "it is wrong"
    return first if len(first) <= _REASON_CHARS else f"{first[:_REASON_CHARS]}..."


@lru_cache(maxsize=256)
def _shape(schema: str, choices: tuple[str, ...]) -> AnswerShape:
    if choices:
        return AnswerShape({"type": "string", "enum": list(choices)}, choices)
    made = msgspec.json.decode(schema)
    _require_bounded(made, "schema")
    return AnswerShape(made)


def shape_of(schema: dict[str, Any] | None, choices: tuple[str, ...] = ()) -> AnswerShape | None:
    """Return the shape of an answer; None if any text is one. The same one for the same schema."""
    if schema is None and not choices:
        return None
    return _shape("" if schema is None else msgspec.json.encode(schema).decode(), choices)
