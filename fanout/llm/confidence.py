"""The confidence of a label: how probable the model found it, by the tokens of its answer."""

from __future__ import annotations

import json
import math
import re
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
_MOST_OTHERS = 100
# A logarithm above 0 is a rounding error up to this.
_ROUNDING = 0.01
_IMPOSSIBLE = -1e9
_DIGITS = 6
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_AROUND = b" \t\r\n\"'`*_.!,;:()[]{}"
_QUOTE = b'"'


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
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    if math.isnan(logprob) or logprob > _ROUNDING:
        return None
    data = _bytes(raw)
    if data is None and isinstance(text, str):
        data = text.encode("utf-8", "replace")
    return None if data is None else (data, min(0.0, max(_IMPOSSIBLE, logprob)))


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
    try:
        text = b"".join(token.text for token in tokens).decode()
        if not shape.choices or shape.checked(text) != label:
            return None
    except (UnicodeDecodeError, WrongShapeError):
        # These are not the tokens of the answer.
        return None
    span = _located(text, label)
    if span is None:
        return None
    begin, end, is_quoted = span
    steps = list(_steps(tokens, len(text[:begin].encode()), len(text[:end].encode())))
    labels = _Labels(shape.choices, label, shown=text[begin:end], is_quoted=is_quoted)
    probability = labels.probability(steps)
    if probability is None:
        size = len(text[begin:end].encode())
        own = (step.token.logprob for step in steps if len(step.before) < size)
        probability = math.exp(math.fsum(own)) or None
    # What was answered is not impossible: such a logarithm says nothing.
    return None if probability is None else round(min(1.0, max(0.0, probability)), _DIGITS)


def _located(text: str, label: str) -> tuple[int, int, bool] | None:
    """Return where a label is in an answer, from and to, and whether it is in quotes."""
    rest = without_reasoning(text.strip(), OWN_TAGS + PROMPTED_TAGS).strip()
    at = text.rfind(rest)
    if rest == label:
        return at, at + len(rest), False
    for found in _STRING.finditer(rest):
        if rest[found.end() :].lstrip().startswith(":"):
            # The name of a field.
            continue
        try:
            value = json.loads(found[0], strict=False)
        except ValueError:
            continue
        if loosened(value) == loosened(label):
            return at + found.start() + 1, at + found.end() - 1, True
    for form in (rest, rest.lstrip(OPENINGS)):
        if loosened(form) == loosened(label):
            bare = unwrapped(form)
            at += rest.find(bare)
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


class _Labels:
    """The labels as an answer writes them, and those that it may still become.

    Args:
        labels: All labels.
        label: The label of the answer.
        shown: How the answer writes it.
        is_quoted: Whether it is a JSON string there.
    """

    def __init__(self, labels: tuple[str, ...], label: str, *, shown: str, is_quoted: bool) -> None:
        is_ascii = is_quoted and shown == json.dumps(label)[1:-1]

        def written(one: str) -> bytes:
            text = json.dumps(one, ensure_ascii=is_ascii)[1:-1] if is_quoted else one
            return text.encode("utf-8", "replace")

        forms = {one: written(one) for one in labels}
        lowered = {one: form.lower() for one, form in forms.items()}
        self._is_folded = len(set(lowered.values())) == len(forms)
        self._forms = lowered if self._is_folded else forms
        self._label = label
        self._is_quoted = is_quoted

    def probability(self, steps: list[_Step]) -> float | None:
        """Return the probability of the label; None if its tokens do not spell it."""
        possible, product = set(self._forms), 1.0
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

    def _share(self, possible: set[str], step: _Step) -> float | None:
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

    def _spelled(self, possible: set[str], step: _Step, text: bytes) -> set[str]:
        """Return the labels that an answer is with a token."""
        ways = self._ways(step, text)
        return {one for one in possible if self._forms[one] in ways}

    def _allowed(self, possible: set[str], step: _Step, text: bytes) -> set[str]:
        """Return the labels that an answer may still become with a token."""
        ways = self._ways(step, text)
        begun = {one for one in possible if any(self._forms[one].startswith(way) for way in ways)}
        return begun | {
            one for one in possible if any(self._ends(self._forms[one], way, begun) for way in ways)
        }

    def _ways(self, step: _Step, text: bytes) -> set[bytes]:
        """Return the beginnings of a label that an answer may have with a token."""
        way, bare = step.before + text.removeprefix(step.lead), text.lstrip(_AROUND)
        if self._is_folded:
            way, bare = way.lower(), bare.lower()
        ways = {way, bare}
        # A label may begin within a token, behind other signs than it did here; but the first sign of
        # `.NET` is its own.
        if step.before or any(way and form.startswith(way) for form in self._forms.values()):
            ways = {way}
        return ways - {b""}

    def _ends(self, form: bytes, way: bytes, begun: set[str]) -> bool:
        """Say whether an answer that is ``way`` so far is a label with something behind it."""
        if not way.startswith(form):
            return False
        rest = way[len(form) :]
        if self._is_quoted:
            return rest.startswith(_QUOTE)
        return not rest.strip() or (not begun and not rest.strip(_AROUND))
