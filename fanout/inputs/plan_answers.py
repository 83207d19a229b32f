"""What a model is asked that splits documents, and the shape of its answer."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.answer_shape import AnswerShape, WrongShapeError
from fanout.core.cells import OWN
from fanout.core.parts import Part
from fanout.inputs.planned_parts import Proposal, located
from fanout.inputs.prompts import Template
from fanout.inputs.step_prompts import StepPrompts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fanout.core.spec import RunSpec

__all__ = [
    "PARTS_SCHEMA",
    "SUBTASKS_SCHEMA",
    "PlanShape",
    "plan_prompt",
    "plan_schema",
    "proposed_parts",
    "tiles",
    "wants_subtasks",
]

_SUBTASK = frozenset({"subtask", f"{OWN}subtask"})
_TEXT = {"type": "string"}
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_TITLE_WORDS, _QUOTED_WORDS = 5, 8
_PARTS, _SUBTASKS = "parts", "subtasks"


def _list_of(name: str, *fields: str) -> dict[str, Any]:
    item = {
        "type": "object",
        "properties": dict.fromkeys(fields, _TEXT),
        "required": list(fields),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {name: {"type": "array", "items": item}},
        "required": [name],
        "additionalProperties": False,
    }


PARTS_SCHEMA = _list_of(_PARTS, "title", "first_words", "last_words")
SUBTASKS_SCHEMA = _list_of(_SUBTASKS, "title", "subtask")

_PARTS_PROMPT = """Divide the text below into parts, in its order. {what}

Give each part a title of a few words. As first_words, copy the five to twelve words that the part begins \
with from the text, exactly as they stand there; as last_words, those that it ends with. Parts do not \
overlap.

The text:

{{input}}"""
_WHAT_PARTS = "A part is a section, a topic or an item that makes sense by itself."
_SUBTASKS_PROMPT = """Divide the work on the text below into subtasks that can be done apart from each \
other. {what}

Give each subtask a title of a few words, and as subtask an instruction that says all that is needed to do \
it with the text at hand. Do not do the subtasks.

The text:

{{input}}"""
_WHAT_SUBTASKS = "Propose as many subtasks as the text needs, and no more."


def wants_subtasks(spec: RunSpec) -> bool:
    """Return whether a job asks for subtasks over a document, not for its parts: a prompt has ``{subtask}``.

    Raises:
        PromptError: A template has a misplaced brace.
    """
    templates: Iterable[Template] = StepPrompts(spec.steps).templates.values()
    if not spec.steps:
        templates = [Template.parse(source) for source in spec.prompts.values()]
    return any(not _SUBTASK.isdisjoint(one.names) for one in templates)


def plan_prompt(spec: RunSpec) -> str:
    """Return the template of the prompt that asks for the parts or subtasks of a document."""
    if wants_subtasks(spec):
        return _SUBTASKS_PROMPT.format(what=spec.split_prompt or _WHAT_SUBTASKS)
    return _PARTS_PROMPT.format(what=spec.split_prompt or _WHAT_PARTS)


def plan_schema(spec: RunSpec) -> dict[str, Any]:
    """Return the JSON Schema of the answer."""
    return SUBTASKS_SCHEMA if wants_subtasks(spec) else PARTS_SCHEMA


class PlanShape(AnswerShape):
    """The shape of an answer whose quotes must stand in a text.

    Args:
        base: The shape of all such answers.
        text: The text.
    """

    def __init__(self, base: AnswerShape, text: str) -> None:
        super().__init__(base.schema)
        # What is made of the schema is made once.
        self.__dict__.update(base.__dict__)
        self.source = text

    def checked(self, answer: str) -> str:
        """Return the answer as JSON.

        Raises:
            WrongShapeError: It does not have the schema, or a quote does not stand in the text.
        """
        stored = super().checked(answer)
        _, problems = proposed_parts(self.source, msgspec.json.decode(stored))
        if problems:
            raise WrongShapeError("; ".join(problems))
        return stored

    def example(self) -> str:
        """Return an answer of this shape: the paragraphs of the text, or a subtask."""
        if self.schema == SUBTASKS_SCHEMA:
            return msgspec.json.encode(
                {_SUBTASKS: [{"title": "All of it", "subtask": "Do all of it."}]}
            ).decode()
        parts = [
            {
                "title": " ".join(words[:_TITLE_WORDS]),
                "first_words": " ".join(words[:_QUOTED_WORDS]),
                "last_words": " ".join(words[-_QUOTED_WORDS:]),
            }
            for words in map(str.split, _PARAGRAPH.split(self.source))
            if words
        ]
        return msgspec.json.encode({_PARTS: parts}).decode()


def proposed_parts(text: str, answer: Any) -> tuple[list[Part], list[str]]:
    """Return the parts or subtasks of an answer, and what is wrong with those that are not in the text.

    A subtask is a part that is the whole text.
    """
    if _SUBTASKS in answer:
        ones = answer[_SUBTASKS]
        whole = [
            Part(start=0, end=len(text), title=one["title"].strip(), subtask=one["subtask"].strip())
            for one in ones
        ]
        empty = [
            f"subtask {at} is empty" for at, one in enumerate(whole, 1) if not one.subtask.strip()
        ]
        return whole, empty if ones else ["there is no subtask"]
    proposals = [
        Proposal(one["title"], one["first_words"], one["last_words"]) for one in answer[_PARTS]
    ]
    return located(text, proposals)


def tiles(
    text: str, cut: Callable[[str], Iterable[tuple[int, int]]], *, most: Callable[[str], bool]
) -> list[Part]:
    """Return the pieces in which a text is shown to a model: together they are the text.

    Args:
        text: The text.
        cut: Cuts a text that is too large into pieces.
        most: Returns whether a text is too large to be shown as it is.
    """
    if not most(text):
        return [Part(start=0, end=len(text))]
    begins = [0, *(start for start, _ in list(cut(text))[1:]), len(text)]
    return list(_between(begins))


def _between(begins: Sequence[int]) -> Iterator[Part]:
    for start, end in pairwise(begins):
        if end > start:
            yield Part(start=start, end=end)
