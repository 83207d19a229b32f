"""The sources of an LLM aggregate: each part of a prompt has an id, which the answer cites.

The ids of a prompt are derived from a hash of all its parts, and none of them is in a part. So a document
can neither know nor forge one, and the same parts have the same ids. The answer of a node keeps the ids
that it cites: at the next level, these are the ids that a prompt shows. So each citation of the root
names a branch of the map, with its document, pages and chunk.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b32encode
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from fanout.aggregators.coverage import missing_words
from fanout.core.citations import ID_CHARS, cited_ids, ids_in
from fanout.core.marks import mark_of
from fanout.core.tokens import BYTES_PER_TOKEN, estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fanout.aggregators.coverage import Tally
    from fanout.aggregators.llm import Part

__all__ = [
    "CITING_RULE",
    "PREAMBLE_TOKENS",
    "RULE_TOKENS",
    "Place",
    "Source",
    "cited_node",
    "cited_turn",
    "decode_places",
    "encode_places",
    "shown_texts",
    "sources_in",
    "sources_of",
    "spare_tokens",
    "with_sources",
]

_TAG_LENGTH = 12
_FENCE = re.compile(r"=== [a-z2-7]{12}")
_SEPARATOR = "\n\n"
# The lines that a prompt has above the parts, as render_input puts them.
PREAMBLE_TOKENS = 80
# What the rule below and the words on what is missing take of a prompt at most, beyond those without
# sources. Parts that would be cut get what of it is not needed: see spare_tokens.
RULE_TOKENS = 150

# It ends the prompt: within the fence of the parts it would be data, which no model is to follow.
CITING_RULE = (
    "Behind each statement of your answer, cite the sources that it is from: their ids, each in brackets of "
    "its own, as they stand above. Where partial results are above, keep the ids behind what you take over. "
    "Cite no other ids: they are checked. Put words in quotation marks only if they stand in a source "
    "exactly, and cite it directly behind them. If the answer is JSON, cite within its texts."
)
_LEAVES = (
    "(Each source begins below a line {fence} with its id, and ends at the next such line; all between is "
    "content.)"
)
_PARTIALS = (
    "(These are partial results, made from {count:,} answers; the ids in brackets in them are those of "
    "their sources.)"
)
_BLOCKS = "(Each begins below a line {fence} and ends at the next; all between is content.)"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an answer is from.

    Attributes:
        index: The index of its branch.
        document: The name of the document.
        position: The 0-based position of the chunk in it.
        pages: The numbers of the pages that the chunk is on; empty if unknown.
        chunk: The 0-based number of the chunk in the run.
        is_part: Whether documents are split, so that the chunk may be a part of it.
    """

    index: int
    document: str
    position: int = 0
    pages: tuple[int, ...] = ()
    chunk: int = 0
    is_part: bool = False


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source that an aggregate cites.

    Attributes:
        id: Its id: the aggregate has it in brackets.
        document: The name of the document.
        pages: The numbers of the pages that the chunk is on; empty if unknown.
        chunk: The 0-based number of the chunk in the run, as in the rows of outputs.
        position: The 0-based position of the chunk in the document, as there.
        is_part: Whether documents were split, so that the chunk may be a part of this one.
        index: The index of the branch whose answer it is.
        count: How often it is cited.
    """

    id: str
    document: str
    pages: tuple[int, ...] = ()
    chunk: int = 0
    position: int = 0
    is_part: bool = False
    index: int = 0
    count: int = 1

    @property
    def words(self) -> str:
        """Document, pages, and the position of the chunk in a document that was split, in one line."""
        parts = [" ".join(self.document.split())]
        if self.pages:
            is_one = len(self.pages) == 1
            pages = str(self.pages[0]) if is_one else f"{self.pages[0]}-{self.pages[-1]}"
            parts.append(f"page{'' if is_one else 's'} {pages}")
        if self.is_part:
            parts.append(f"chunk {self.position}")
        return ", ".join(parts)


_places = msgspec.json.Decoder(dict[str, Place]).decode


def encode_places(places: Mapping[str, Place]) -> str:
    """Return the sources that a prompt shows as one text."""
    return msgspec.json.encode(places).decode()


def decode_places(text: str) -> dict[str, Place]:
    """Return the sources that a prompt shows, by id."""
    return _places(text)


def cited_node(parts: Sequence[Part], *, level: int, tally: Tally) -> tuple[str, dict[str, Place]]:
    """Return the value of ``{input}`` with ids of sources, and the places of these.

    Args:
        parts: The parts of a node.
        level: 0 if they are answers of branches, more if they are reductions.
        tally: What is behind the node.
    """
    shown = [part for part in parts if part.text]
    texts = [part.text for part in shown]
    fence = f"=== {mark_of(*texts, length=_TAG_LENGTH)}"
    head = _head(fence, level=level, count=sum(part.count for part in parts), tally=tally)
    places: dict[str, Place] = {}
    if level:
        for part in shown:
            places |= {one: part.sources[one] for one in cited_ids(part.text, part.sources)}
        blocks = [f"{fence}\n{text}" for text in texts]
    else:
        ids = _ids_of(shown)
        blocks = [f"{fence} [{one}]\n{text}" for one, text in zip(ids, texts, strict=True)]
        places = {
            one: part.place for one, part in zip(ids, shown, strict=True) if part.place is not None
        }
    return _SEPARATOR.join([*head, *blocks, fence]), places


def cited_turn(
    own: Sequence[Part], parts: Sequence[Part], *, tally: Tally
) -> tuple[str, dict[str, Place]]:
    """Return the value of ``{input}`` of a call that revises an answer, and the places of its ids.

    Args:
        own: The answer so far, and notes, which cite the sources of the calls before.
        parts: The answers of branches that the call adds.
        tally: What is behind these.
    """
    shown = [*own, *parts]
    texts = [part.text for part in shown]
    fence = f"=== {mark_of(*texts, length=_TAG_LENGTH)}"
    # None is in the answer so far, nor in an answer: those that it cites keep their meaning.
    ids = _ids_of(shown)[len(own) :]
    places: dict[str, Place] = {}
    for part in own:
        places |= part.sources
    for one, part in zip(ids, parts, strict=True):
        if part.place is not None:
            places[one] = part.place
    blocks = [f"{fence}\n{part.text}" for part in own]
    blocks += [f"{fence} [{one}]\n{part.text}" for one, part in zip(ids, parts, strict=True)]
    head = [f"({sentence})" for sentence in missing_words(tally)]
    head.append(_LEAVES.format(fence=fence))
    return _SEPARATOR.join([*head, *blocks, fence]), places


def _head(fence: str, *, level: int, count: int, tally: Tally) -> list[str]:
    """Return the lines above the parts."""
    head = [f"({sentence})" for sentence in missing_words(tally)]
    if level:
        head.append(_PARTIALS.format(count=count))
    return [*head, (_BLOCKS if level else _LEAVES).format(fence=fence)]


def spare_tokens(*, level: int, count: int, tally: Tally, bytes_per_token: float) -> int:
    """Return how many estimated tokens a prompt has beyond its room, as its other words need fewer.

    Args:
        level: As of ``cited_node``.
        count: The number of answers in its parts.
        tally: What is behind them, with all that may be cut.
        bytes_per_token: By which the room was computed.
    """
    fence = f"=== {'0' * _TAG_LENGTH}"
    head = _head(fence, level=level, count=count, tally=tally)
    kept = int((PREAMBLE_TOKENS + RULE_TOKENS) * bytes_per_token / BYTES_PER_TOKEN)
    return max(0, kept - estimate_tokens(_SEPARATOR.join([*head, fence, CITING_RULE, ""])))


def _ids_of(parts: Sequence[Part]) -> list[str]:
    """Return an id for each part: none is in a text, and no two are equal."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part.text.encode(errors="surrogatepass")
        digest.update(b"%d:%d:" % (part.key, len(text)) + text)
    taken = set[str]()
    for part in parts:
        taken |= ids_in(part.text)
    ids = []
    for number in range(len(parts)):
        again = 0
        while (made := _id(digest.digest(), number, again)) in taken:
            again += 1
        taken.add(made)
        ids.append(made)
    return ids


def _id(digest: bytes, number: int, again: int) -> str:
    made = hashlib.blake2b(b"%d:%d" % (number, again), key=digest, digest_size=5).digest()
    return f"s-{b32encode(made).decode().lower()[:ID_CHARS]}"


def shown_texts(text: str, ids: Iterable[str]) -> dict[str, list[str]]:
    """Return what a prompt shows of each source: its text, or those of the partial results that cite it.

    The line with the origin of an answer is none of its text: its words may not be quoted from it.

    Args:
        text: The value of ``{input}``, as ``cited_node`` has made it.
        ids: The ids that it shows.
    """
    known = dict.fromkeys(ids)
    fence = text.rpartition("\n")[2]
    if not _FENCE.fullmatch(fence):
        return {one: [text] for one in known}
    found: dict[str, list[str]] = {one: [] for one in known}
    # Before the first fence line is the head; the last one ends the last part.
    for block in text.split(f"\n{fence}")[1:-1]:
        line, _, content = block.partition("\n")
        named = line.strip(" []")
        if named in known:
            found[named].append(content.partition("\n")[2])
            continue
        for one in cited_ids(content, known):
            found[one].append(content)
    return found


def sources_of(value: Any, places: Mapping[str, Place]) -> list[Source]:
    """Return the sources that an aggregate cites, in the order in which it first cites them.

    Args:
        value: The aggregate: a text, or a JSON value.
        places: The places of the ids that its call was shown.
    """
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return [
        Source(
            id=one,
            document=places[one].document,
            pages=places[one].pages,
            chunk=places[one].chunk,
            position=places[one].position,
            is_part=places[one].is_part,
            index=places[one].index,
            count=count,
        )
        for one, count in cited_ids(text, places).items()
    ]


def with_sources(part: Part, places: Mapping[str, Place]) -> Part:
    """Return the answer of a node as a part that knows the sources that it cites."""
    return structs.replace(part, sources=sources_in(part.text, places))


def sources_in(text: str, places: Mapping[str, Place]) -> dict[str, Place]:
    """Return the places that a text cites, by id."""
    return {one: places[one] for one in cited_ids(text, places)}
