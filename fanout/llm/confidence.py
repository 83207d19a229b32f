"""The confidence of a label: how probable the model found it, by the tokens of its answer."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.core.answer_shape import WrongShapeError
from fanout.core.label_text import OPENINGS, loosened, unwrapped
from fanout.core.reasoning import OWN_TAGS, PROMPTED_TAGS, without_reasoning
from fanout.llm.base import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.answer_shape import AnswerShape

__all__ = ["OTHERS", "label_confidence", "token_of", "tokens_of"]

# Likely tokens to ask for at each place: some servers allow no more.
OTHERS = 5
# A label and what is around it are short; a reasoning model may put its thoughts before them.
_MOST_TOKENS = 100_000
_MOST_OTHERS = 20
# The answer without its thoughts. A longer one holds more than a label, and would hold up the loop.
_MOST_CHARS = 8_000
_MOST_STEPS = 1_000
# A logarithm above 0 is a rounding error up to this.
_ROUNDING = 0.01
_IMPOSSIBLE = -1e9
_DIGITS = 6
# A string in JSON; without an end, all of the rest, so that the search stays linear.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_COLON = re.compile(r"\s*:")
_AROUND = b" \t\r\n\"'`*_.!,;:()[]{}"
_QUOTE = b'"'
_PAIR = 2


def tokens_of(entries: Any, read: Callable[[Any], Token | None]) -> tuple[Token, ...]:
    """Return the tokens of a reply, or none if one of them makes no sense.

    Args:
        entries: What the server sent for the tokens: a list, if it is well.
        read: Returns the token of an entry, or None.
    """
    if not isinstance(entries, list) or len(entries) > _MOST_TOKENS:
        return ()
    tokens = [read(entry) for entry in entries]
    return () if None in tokens else tuple(token for token in tokens if token is not None)


def token_of(
    text: Any, logprob: Any, raw: Any = None, others: Iterable[tuple[Any, Any, Any]] = ()
) -> Token | None:
    """Return a token; None if its values make no sense. Unusable ``others`` are left out.

    Args:
        text: The token's text.
        logprob: The natural logarithm of its probability; servers write -9999 for almost 0.
        raw: Its bytes as a list of integers, or None: the text may be a part of a character.
        others: Text, logarithm and bytes of likely tokens at its place.
    """
    own = _read(text, logprob, raw)
    if own is None:
        return None
    rest = [_read(*other) for other in list(others)[:_MOST_OTHERS]]
    return Token(own[0], own[1], tuple(one for one in rest if one is not None))


def _read(text: Any, logprob: Any, raw: Any) -> tuple[bytes, float] | None:
    number = _logarithm(logprob)
    if number is None:
        return None
    data = _bytes(raw)
    if data is None and isinstance(text, str):
        data = text.encode("utf-8", "replace")
    return None if data is None else (data, number)


def _logarithm(value: Any) -> float | None:
    """Return the logarithm of a probability; None if the value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if math.isnan(value) or value > _ROUNDING:
        return None
    return min(0.0, max(_IMPOSSIBLE, value))


def _bytes(raw: Any) -> bytes | None:
    if not isinstance(raw, list):
        return None
    try:
        return bytes(raw)
    except (TypeError, ValueError):
        return None


def label_confidence(tokens: tuple[Token, ...], shape: AnswerShape, label: str) -> float | None:
    """Return the probability of a label among all labels, 0 to 1; None if it is unknown.

    It is the product over the tokens of the label. At each place, the likely tokens that continue
    this label stand against those that continue only another label; all others, such as other ways
    to begin a sentence, do not count. Where one label is left, the rest is certain. Without likely
    tokens from the server, the probability of the token itself counts.

    The source of log-probabilities is the reference of OpenAI's chat completions, ``logprobs``.

    Args:
        tokens: The tokens of the whole answer.
        shape: The labels.
        label: The label that was read out of the answer.
    """
    if not shape.choices or len(tokens) > _MOST_TOKENS:
        return None
    try:
        text = b"".join(token.text for token in tokens).decode()
        answer = without_reasoning(text.strip(), OWN_TAGS + PROMPTED_TAGS).strip()
        if len(answer) > _MOST_CHARS or shape.checked(answer) != label:
            return None
    except (AttributeError, TypeError, UnicodeDecodeError, WrongShapeError):
        # These are not the tokens of the answer.
        return None
    span = _located(answer, label)
    if span is None:
        return None
    # The answer is the end of the text.
    before = text[: len(text.rstrip()) - len(answer)]
    shown, is_quoted = answer[span[0] : span[1]], span[2]
    begin = len((before + answer[: span[0]]).encode())
    size = len(shown.encode())
    steps = list(islice(_steps(tokens, begin, begin + size), _MOST_STEPS + 1))
    if len(steps) > _MOST_STEPS or not all(_makes_sense(step.token) for step in steps):
        return None
    is_ascii = is_quoted and shown == json.dumps(label)[1:-1]
    forms = _forms(shape.choices, is_quoted=is_quoted, is_ascii=is_ascii)
    probability = _Spelling(forms, label, is_quoted=is_quoted).probability(steps)
    if probability is None:
        own = (step.token.logprob for step in steps if len(step.before) < size)
        probability = math.exp(math.fsum(own)) or None
    # What was answered is not impossible: such a logarithm says nothing.
    return None if probability is None else round(min(1.0, max(0.0, probability)), _DIGITS)


def _makes_sense(token: Any) -> bool:
    """Say whether a token is one: a user's function may return any value."""
    if not isinstance(token, Token) or not isinstance(token.others, tuple | list):
        return False
    entries: list[Any] = [(token.text, token.logprob), *token.others]
    return all(
        isinstance(one, tuple | list)
        and len(one) == _PAIR
        and isinstance(one[0], bytes)
        and _logarithm(one[1]) is not None
        for one in entries
    )


def _located(answer: str, label: str) -> tuple[int, int, bool] | None:
    """Return where a label is in an answer, from and to, and whether it is in quotes."""
    if answer == label:
        return 0, len(answer), False
    for found in _STRING.finditer(answer):
        if _COLON.match(answer, found.end()):
            # The name of a field.
            continue
        try:
            value = json.loads(found[0], strict=False)
        except ValueError:
            continue
        if loosened(value) == loosened(label):
            return found.start() + 1, found.end() - 1, True
    for form in (answer, answer.lstrip(OPENINGS)):
        if loosened(form) == loosened(label):
            bare = unwrapped(form)
            at = answer.find(bare)
            return at, at + len(bare), False
    return None


class _Step(NamedTuple):
    """A token of a label, or the one behind it.

    Attributes:
        token: The token.
        before: The part of the label before the token.
        lead: The part of the token before the label.
    """

    token: Token
    before: bytes
    lead: bytes


def _steps(tokens: tuple[Token, ...], begin: int, end: int) -> Iterator[_Step]:
    """Yield the tokens of the bytes from ``begin`` to ``end``, and the first one behind them."""
    at, before = 0, b""
    for token in tokens:
        start, at = at, at + len(token.text)
        if at <= begin:
            continue
        lead = token.text[: max(0, begin - start)]
        yield _Step(token, before, lead)
        before += token.text[len(lead) :]
        if at > end:
            return


class _Forms:
    """The labels as an answer writes them.

    Attributes:
        labels: All labels.
        is_folded: Whether their forms are in lower case, in which they differ, too.
    """

    def __init__(self, labels: tuple[str, ...], *, is_quoted: bool, is_ascii: bool) -> None:
        def written(one: str) -> bytes:
            text = json.dumps(one, ensure_ascii=is_ascii)[1:-1] if is_quoted else one
            return text.encode("utf-8", "replace")

        forms = {one: written(one) for one in labels}
        lowered = {one: form.lower() for one, form in forms.items()}
        self.labels = frozenset(labels)
        self.is_folded = len(set(lowered.values())) == len(forms)
        pairs = sorted((form, one) for one, form in (lowered if self.is_folded else forms).items())
        self._forms = [form for form, _ in pairs]
        self._in_order = [one for _, one in pairs]
        self._labels_of: dict[bytes, list[str]] = {}
        for form, one in pairs:
            self._labels_of.setdefault(form, []).append(one)
        self._sizes = sorted({len(form) for form in self._forms})

    def begun(self, way: bytes) -> list[str]:
        """Return the labels that begin with ``way``."""
        # No UTF-8 has this byte, so that it is behind all that begins so.
        end = bisect_left(self._forms, way + b"\xff")
        return self._in_order[bisect_left(self._forms, way, hi=end) : end]

    def is_begun(self, way: bytes) -> bool:
        """Say whether a label begins with ``way``."""
        at = bisect_left(self._forms, way)
        return at < len(self._forms) and self._forms[at].startswith(way)

    def spelled(self, way: bytes) -> list[str]:
        """Return the labels that ``way`` is."""
        return self._labels_of.get(way, [])

    def passed(self, way: bytes) -> Iterator[tuple[list[str], bytes]]:
        """Yield the labels that ``way`` begins with, and what it has behind them."""
        for size in self._sizes:
            if size > len(way):
                return
            labels = self._labels_of.get(way[:size])
            if labels:
                yield labels, way[size:]


@lru_cache(maxsize=64)
def _forms(labels: tuple[str, ...], *, is_quoted: bool, is_ascii: bool) -> _Forms:
    return _Forms(labels, is_quoted=is_quoted, is_ascii=is_ascii)


class _Spelling:
    """The label of an answer, and those that its tokens could still have become.

    Args:
        forms: All labels.
        label: The label of the answer.
        is_quoted: Whether it is a JSON string there.
    """

    def __init__(self, forms: _Forms, label: str, *, is_quoted: bool) -> None:
        self._forms = forms
        self._label = label
        self._is_quoted = is_quoted

    def probability(self, steps: list[_Step]) -> float | None:
        """Return the probability of the label; None if its tokens do not spell it."""
        possible, product = self._forms.labels, 1.0
        for step in steps:
            if len(possible) == 1:
                break
            after = self._allowed(possible, step, step.token.text)
            if self._label not in after:
                return None
            share = self._share(possible, step)
            if share is None:
                return None
            product *= share
            possible = after
        return product if steps else None

    def _share(self, possible: frozenset[str], step: _Step) -> float | None:
        """Return the share of the likely tokens that stay with the label; None if it is unknown."""
        token, stays, leaves = step.token, 0.0, 0.0
        if not token.others:
            return math.exp(token.logprob) or None
        for text, logprob in {token.text: token.logprob, **dict(token.others)}.items():
            allowed = self._allowed(possible, step, text)
            if text != token.text:
                # A token that spells a whole label hardly begins another one.
                allowed = self._spelled(allowed, step, text) or allowed
            if self._label in allowed:
                stays += math.exp(logprob)
            elif allowed:
                leaves += math.exp(logprob)
        if not stays and (not leaves or token.logprob <= _IMPOSSIBLE):
            return None
        return stays / (stays + leaves)

    def _spelled(self, possible: frozenset[str], step: _Step, text: bytes) -> frozenset[str]:
        """Return the labels that an answer is with a token."""
        ways = self._ways(step, text)
        return possible.intersection([one for way in ways for one in self._forms.spelled(way)])

    def _allowed(self, possible: frozenset[str], step: _Step, text: bytes) -> frozenset[str]:
        """Return the labels that an answer may still become with a token."""
        ways = self._ways(step, text)
        begun = possible.intersection([one for way in ways for one in self._forms.begun(way)])
        ended = [
            one
            for way in ways
            for labels, rest in self._forms.passed(way)
            if self._is_behind(rest, has_begun=bool(begun))
            for one in labels
        ]
        return begun | possible.intersection(ended)

    def _ways(self, step: _Step, text: bytes) -> set[bytes]:
        """Return the beginnings of a label that an answer may have with a token."""
        way, bare = step.before + text.removeprefix(step.lead), text.lstrip(_AROUND)
        if self._forms.is_folded:
            way, bare = way.lower(), bare.lower()
        ways = {way, bare}
        # A label may begin within a token, behind other signs than it did here; but the first sign of
        # `.NET` is its own.
        if step.before or (way and self._forms.is_begun(way)):
            ways = {way}
        return ways - {b""}

    def _is_behind(self, rest: bytes, *, has_begun: bool) -> bool:
        """Say whether a label may have ``rest`` behind it in an answer."""
        if self._is_quoted:
            return rest.startswith(_QUOTE)
        return not rest.strip() or (not has_begun and not rest.strip(_AROUND))
